"""Whether distinct inputs stay distinct, and what of a model decides it.

Imports `binding` and what it may. Start at `_pairs`: which features can be mirrored,
read off the trace; `_channel_walk` follows them; `_search` decides by measuring."""

from ._amplification import amplification_with as amplification_with
from ._pairs import Pairs as Pairs
from ._pairs import find_pairs as find_pairs
from ._search import Choice as Choice
from ._search import check_told_apart as check_told_apart
from ._search import checked_amplification as checked_amplification
from ._search import first_choice as first_choice
from ._search import next_choice as next_choice
from ._targets import distinct_targets as distinct_targets
