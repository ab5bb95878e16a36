"""One HTML file of everything: its parts, its tables and its style.

Imports `reporting`, whose figures and words it shows. Start in `_report.py`."""

from ._report import report as report
from ._training_curves import TrainingCurves as TrainingCurves
