"""NNX models, each with one trap, and pairs of networks written in Linen and NNX.

The files hold the models by kind, and their rows of the tables.
"""

from itertools import chain

from tests.support.nnx_models import (
    attention,
    control,
    dense,
    layers,
    lifted,
    parameters,
    recurrent,
    shared,
    stateful,
    twins_convolutional,
    twins_dense,
    twins_sequence,
)
from tests.support.nnx_models.cases import TAGS as TAGS
from tests.support.nnx_models.cases import NnxCase as NnxCase
from tests.support.nnx_models.twin import Twin as Twin
from tests.support.nnx_models.twin import copy_params as copy_params

KINDS = (
    (dense, parameters, shared, lifted, control, recurrent)
    + (attention, stateful, layers)
)  # fmt: skip
NNX_CASES: dict[str, NnxCase] = dict(
    chain.from_iterable(kind.CASES.items() for kind in KINDS)
)
TWINS: dict[str, Twin] = (
    twins_dense.TWINS | twins_convolutional.TWINS | twins_sequence.TWINS
)
