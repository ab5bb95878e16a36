"""The method: `tune`, and what becomes of its factors, `fold` and `scale_updates`.

Imports `binding` and what it may, never `measurement`. Start at `_sweep`, one pass,
then `_solve` and `_factors`: from passes to factors."""

from ._fold import fold as fold
from ._scale_updates import scale_updates as scale_updates
from ._tune import tune as tune
