"""Targets that a measurement found, and those of the layers of a stack."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import einit_jax as ei
from einit_jax.core import flatten
from einit_jax.verification import judge
from tests.support.cases import to_one
from tests.support.checks import KEY, params_of, refuses, some, traced
from tests.support.models import CASES
from tests.support.models.dense import CompactMlp
from tests.support.models.lifted import Layers
from tests.support.nnx_models import NNX_CASES

X = jax.random.normal(KEY, (16, 8))
STACK: Any = Layers()
MLP: Any = CompactMlp()
PARAMS = params_of(STACK)
UP = "layers/block/up"


def output_factors(scales: Any) -> np.ndarray:
    """Of all units and layers."""
    found = [f for path, f in flatten(scales).items() if path[-1] == "output"]
    return np.concatenate([np.ravel(f) for f in found])


@some("compact_mlp", "scan_axis_1", "remat_scan", "vmap_ensemble", "tied_lm", "cond")
def test_measured_targets_keep_the_function(case):
    """All output factors are 1, but for rounding; as they are not by themselves.

    Those of units that are called several times are found within a tolerance of 1%.
    """
    model, params, input_fn, loss_fn, options = case.build()
    run = partial(ei.tune, model, params, input_fn, loss_fn, **options)
    found = ei.measure(model, params, input_fn, loss_fn, **options).targets()
    near = 0.01 if case.shared else 1e-5
    np.testing.assert_allclose(output_factors(run(targets=found)), 1, rtol=near)
    assert np.abs(output_factors(run()) - 1).max() > 0.1


@pytest.mark.parametrize("name", ["scan_layers", "mlp"])
def test_models_of_nnx_keep_theirs(name):
    case = NNX_CASES[name]
    net, x = case.build(nnx.Rngs(0)), case.inputs(KEY)
    found = ei.measure(net, None, x, case.loss).targets()
    tuned = ei.scaled(net, ei.tune(net, None, x, case.loss, targets=found))
    np.testing.assert_allclose(tuned(x), net(x), rtol=1e-4, atol=1e-5)
    other = ei.scaled(net, ei.tune(net, None, x, case.loss))
    assert not np.allclose(other(x), net(x), rtol=0.1, atol=0.1)


def test_targets_are_by_unit_and_layer():
    """An array where there are layers, in the order of the table's rows."""
    table = ei.measure(STACK, PARAMS, X, to_one)
    targets = table.targets()
    rows = {row["path"]: row["output_rms"] for row in table.rows()}
    assert np.asarray(targets[UP]).tolist() == [rows[f"{UP}[{i}]"] for i in range(3)]
    assert targets["head"] == rows["head"]
    assert len(targets) == 3


def test_what_has_no_size_has_a_target_of_one():
    params = jax.tree.map(jnp.zeros_like, params_of(MLP))
    found = ei.measure(MLP, params, X, to_one, probe=False).targets()
    assert found == {"Dense_0": 1, "Dense_1": 1, "Dense_2": 1}


def test_traced_measurements_have_no_targets():
    with refuses(
        ValueError, match="no targets are known of a Measurement of 7 layers .traced"
    ):
        jax.jit(lambda x: ei.measure(STACK, PARAMS, x, to_one).targets())(X)


@pytest.mark.parametrize("given", [[0.5, 1.0, 4.0], jnp.array([0.5, 1.0, 4.0])])
def test_each_layer_of_a_stack_has_its_own_target(given):
    """The rms measured is the one asked for; a layer that misses its own is flagged."""
    targets = {UP: given, "*": 1.0}
    scales = ei.tune(STACK, PARAMS, X, to_one, targets=targets)
    run = partial(ei.measure, STACK, PARAMS, X, to_one, scales=scales)
    rows = run(targets=targets).rows()
    got = [row["output_rms"] for row in rows if row["path"].startswith(UP)]
    np.testing.assert_allclose(got, given, rtol=1e-5)
    assert {row["flag"] for row in rows} == {"ok"}
    missed = [row["path"] for row in run(targets=1).rows() if row["flag"] == "missed"]
    assert missed == [f"{UP}[0]", f"{UP}[2]"]


def test_the_referee_reads_each_layer():
    """It names what the worst one has and is to have."""
    graph = traced(CASES["scan_layers"].build())
    unit = next(unit for unit in graph.units if unit.name == UP)
    due = unit.carried([0.5, 1.0, 4.0])
    verdict = lambda *sizes: judge(
        {unit: due}, {unit.key: jnp.array([sizes])}, tolerance=0.01
    )
    assert verdict(0.5, 1.0, 4.0).missed() == {}
    assert verdict(0.5, 1.1, 2.0).missed() == {UP: f"{UP} has 2, expected 4"}


def test_lsuv_takes_a_variance_for_each_layer():
    drawn = ei.lsuv(STACK, PARAMS, X, key=KEY, target={UP: [0.25, 1.0, 4.0]})
    found = np.asarray(ei.measure(STACK, drawn, X, to_one).targets()[UP])
    assert 0.4 < found[0] / found[1] < 0.6  # variances are about the mean
    assert 1.6 < found[2] / found[1] < 2.4


@pytest.mark.parametrize(
    ("targets", "words"),
    [
        (
            {UP: [1.0, 2.0]},
            rf"'{UP}' have the shape \(2,\).* array of the shape \(3,\)",
        ),
        ({"head": [1.0]}, r"'head' have the shape \(1,\), expected one number: it is"),
        ([1.0, 2.0, 3.0], r"'head' have the shape \(3,\), expected one number"),
        ({UP: [1.0, 0.0, 1.0]}, r"pattern '.*' is no number that is positive"),
        ({UP: [1.0, [2.0], 1.0]}, "nor an array of such numbers"),
        ({UP: ["a", "b", "c"]}, "is no number"),
        ({UP: [True, True, True]}, "is no number"),
        ({UP: []}, "is no number"),
    ],
)
def test_arrays_that_are_not_of_the_layers_are_refused(targets, words):
    with refuses(ValueError, match=words):
        ei.tune(STACK, PARAMS, X, to_one, targets=targets)
