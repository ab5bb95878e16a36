"""TODO door."""

from ._fold import fold as fold
from ._scale_updates import scale_updates as scale_updates
from ._tune import tune as tune
