"""Units are found in the trace of any model of the table."""

import fnmatch

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest

from einit_jax.core import path_str
from tests.support.cases import Case, make, vectors
from tests.support.checks import every, measured, traced, tuned
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


class Square(nn.Module):
    """As many layers of norms under a scan as these have features."""

    axis: int

    @nn.compact
    def __call__(self, x):
        scan = nn.scan(
            Normed,
            variable_axes={"params": self.axis},
            split_rngs={"params": True},
            length=8,
        )
        x, _ = scan(name="layers")(x, None)
        return nn.Dense(4, name="head")(x)


class Normed(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return x + jnp.tanh(nn.LayerNorm(name="norm")(x)), None


@pytest.mark.parametrize(("axis", "lifted"), [(0, (8,)), (1, (0, 8))])
def test_layers_lie_where_the_scan_takes_them(axis, lifted):
    """Shapes do not tell the axis of layers where it is as long as another one."""
    job = make(Square(axis), vectors)
    (norm,) = (u for u in traced(job).units if u.name == "layers/norm")
    assert norm.lifted_axes == lifted
    np.testing.assert_allclose(
        measured(job, scales=tuned(job)).output_rms, 1, rtol=1e-5
    )
