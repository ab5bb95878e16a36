"""How numbers are shown: tables as text, figures, and one HTML file of everything.

Takes plain rows and arrays, knows no model, and imports no other room.
Start in `_report.py`; tables are in `_tables.py`, figures begin in `_figures.py`.
"""

from ._comparison_figure import comparison_figure as comparison_figure
from ._comparison_figure import rate_figure as rate_figure
from ._figures import LABELS as LABELS
from ._figures import empty_figure as empty_figure
from ._figures import pillar_panels as pillar_panels
from ._figures import unit_of_row as unit_of_row
from ._files import check_writable as check_writable
from ._files import write_atomically as write_atomically
from ._report import report as report
from ._tables import difference as difference
from ._tables import flat_scalars as flat_scalars
from ._tables import format_number as format_number
from ._tables import format_table as format_table
from ._tables import power_of_two as power_of_two
from ._tables import shortened as shortened
from ._training_curves import TrainingCurves as TrainingCurves
from ._training_figures import history_figure as history_figure
from ._training_figures import width_figure as width_figure
from ._version import __version__ as __version__
