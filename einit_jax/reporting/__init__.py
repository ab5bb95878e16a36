"""How numbers are shown: tables as text, verdicts, figures; and files.

Takes plain rows and arrays, knows no model, and imports no other room.
Start in `_printable.py`; tables are in `_tables.py`, figures begin in `_figures.py`.
"""

from ._comparison_figure import comparison_figure as comparison_figure
from ._comparison_figure import rate_figure as rate_figure
from ._figures import LABELS as LABELS
from ._figures import TABLE_COLOURS as TABLE_COLOURS
from ._figures import empty_figure as empty_figure
from ._figures import pillar_panels as pillar_panels
from ._files import check_writable as check_writable
from ._files import write_atomically as write_atomically
from ._pillar_table import PILLAR_HEADS as PILLAR_HEADS
from ._pillar_table import RULE_NAMES as RULE_NAMES
from ._pillar_table import WORD_COLUMNS as WORD_COLUMNS
from ._pillar_table import amplification_note as amplification_note
from ._pillar_table import draws_note as draws_note
from ._pillar_table import epsilon_note as epsilon_note
from ._pillar_table import pillar_cell as pillar_cell
from ._pillar_table import probes_note as probes_note
from ._pillar_table import ranked_columns as ranked_columns
from ._pillar_table import raw_notes as raw_notes
from ._pillar_table import rules_note as rules_note
from ._pillar_table import total_note as total_note
from ._printable import Printable as Printable
from ._tables import difference as difference
from ._tables import flat_scalars as flat_scalars
from ._tables import format_number as format_number
from ._tables import power_of_two as power_of_two
from ._tables import shortened as shortened
from ._training_figures import history_figure as history_figure
from ._training_figures import width_figure as width_figure
from ._verdict import FACTOR_COLUMNS as FACTOR_COLUMNS
from ._verdict import OFF as OFF
from ._verdict import VALUE_WORDS as VALUE_WORDS
from ._verdict import Judgement as Judgement
from ._verdict import largest_distance as largest_distance
from ._verdict import layers_off as layers_off
from ._verdict import summary_lines as summary_lines
from ._version import __version__ as __version__
