"""Units are found in the trace of any model of the table."""

import fnmatch

import flax.linen as nn
import pytest

from einit_jax.core import path_str
from tests.support.cases import Case, make, vectors
from tests.support.checks import every, traced
from tests.support.models.dense import CompactMlp
from tests.support.models.lifted import Ensemble, Layers


@every(())
def test_units_are_found(case: Case):
    """The trace alone tells units, shared units, loose parameters, blocking zeros."""
    graph = traced(case.build())
    assert {u.name for u in graph.units} == case.units
    assert {u.name for u in graph.units if u.calls > 1} == case.shared
    loose = {path_str(path) for path in graph.raw_parameters}
    unreached = {
        p for p in loose for q in case.unreached if fnmatch.fnmatch(p, q + "*")
    }
    assert loose - unreached == case.loose
    assert {path_str(path) for path in graph.multiplied} >= case.zeros - case.loose


class After(nn.Module):
    """A layer before and after a transform that carries parameters alone."""

    lifted: nn.Module

    @nn.compact
    def __call__(self, x):
        x = self.lifted(nn.tanh(nn.Dense(8, name="before")(x)))
        return nn.Dense(4, name="after")(x)


@pytest.mark.parametrize("lifted", [Layers(), Ensemble(), CompactMlp()])
def test_a_run_that_was_given_up_is_no_second_call(lifted):
    """What runs before such a transform is traced again, and called once."""
    graph = traced(make(After(lifted), vectors))
    assert {"before", "after"} < {u.name for u in graph.units}
    assert {u.calls for u in graph.units} == {1}
