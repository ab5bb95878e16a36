"""What the command line reads and says: arguments, users' jobs, errors, output.

Imports nothing that takes long, so that wrong arguments are refused at once, and of
other rooms `reporting`. Start in `_arguments.py`; how an error is told: `_errors.py`.
"""

from ._arguments import compare_arguments as compare_arguments
from ._arguments import rate_arguments as rate_arguments
from ._arguments import report_arguments as report_arguments
from ._arguments import tune_arguments as tune_arguments
from ._conclusion import curves_at_best as curves_at_best
from ._errors import CommandError as CommandError
from ._errors import told_with_place as told_with_place
from ._jobs import load_job as load_job
from ._output import complain as complain
from ._output import finish_output as finish_output
from ._output import say as say
from ._output import write_or_complain as write_or_complain
from ._saving import check_figure_name as check_figure_name
from ._saving import check_figures as check_figures
from ._saving import check_files as check_files
from ._saving import save_figure as save_figure
from ._saving import save_report as save_report
from ._stages import progress_bars as progress_bars
from ._stages import with_bar as with_bar
