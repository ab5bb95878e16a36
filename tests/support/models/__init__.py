"""The table of models the tests run over: each row holds one trap.

The files hold the models by kind, and their rows of the table.
"""

from itertools import chain

from tests.support.cases import Case
from tests.support.models import (
    calls,
    convolutional,
    dense,
    inputs,
    insides,
    lifted,
    numbers,
    published,
    recurrent,
    stateful,
    transformers,
    wrapped,
)

KINDS = (
    (dense, lifted, recurrent, inputs, stateful, numbers, calls, insides)
    + (transformers, convolutional, published, wrapped)
)  # fmt: skip
TABLE: tuple[Case, ...] = tuple(chain.from_iterable(kind.ROWS for kind in KINDS))
CASES: dict[str, Case] = {case.name: case for case in TABLE}
