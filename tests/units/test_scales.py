"""The tree of factors: what it holds, and what of it is refused."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest

import einit_jax as ei
from tests.support.cases import Case, as_inputs
from tests.support.checks import KEY, VARIED, factors_of, refuses, some
from tests.support.models.dense import CompactMlp
from tests.support.models.inputs import TiedLm
from tests.support.models.lifted import Layers

FACTORS = {"output", "input_grad", "output_grad"}
X = jax.random.normal(KEY, (16, 8))


def zeros_of(function: Callable, *args: Any) -> Any:
    """What the function would return, with zeros for values: nothing is compiled."""
    zeros = lambda s: jnp.zeros(s.shape, s.dtype)
    return jax.tree.map(zeros, jax.eval_shape(function, *args))


def without(tree: dict, path: str) -> dict:
    """A copy of a nested dict that lacks the entry at `path`."""
    name, _, rest = path.partition("/")
    kept = {k: v for k, v in tree.items() if rest or k != name}
    return kept | ({name: without(tree[name], rest)} if rest else {})


@some(*VARIED)
def test_init_adds_factors_at_the_paths_of_the_units(case: Case):
    """The shapes of the model's own variables, and three factors per unit."""
    job = case.build()
    inputs = as_inputs(job.input_fn(KEY))
    rngs = dict.fromkeys(("params", *job.options.get("rngs", ())), KEY)
    init = lambda model: lambda: dict(model.init(rngs, *inputs.args, **inputs.kwargs))
    variables = jax.eval_shape(init(ei.scaled(job.model)))
    scales = variables.pop("scales")
    assert variables == jax.eval_shape(init(job.model))
    assert factors_of(scales).keys() == case.units
    assert all(unit.keys() == FACTORS for unit in factors_of(scales).values())
    assert {leaf.dtype for leaf in jax.tree.leaves(scales)} == {jnp.dtype("float32")}


# Refusals.
MLP, SCAN, TIED = CompactMlp(), Layers(), TiedLm()


@pytest.mark.parametrize(
    ("model", "change", "words"),
    [
        (MLP, lambda s: None, ["'scales'", "ei.tune"]),
        (MLP, lambda s: {}, ["Dense_0", "Dense_2"]),
        (MLP, lambda s: without(s, "Dense_1"), ["Dense_1"]),
        (MLP, lambda s: without(s, "Dense_1/output"), ["Dense_1", "output"]),
        (MLP, lambda s: s | {"Dense_9": s["Dense_0"]}, ["Dense_9"]),
        (MLP, lambda s: s | {"block": {"up": s["Dense_0"]}}, ["block"]),
        (MLP, lambda s: s | {"Dense_0": {"gain": 1.0}}, ["Dense_0", "gain"]),
        (MLP, lambda s: jax.tree.map(lambda x: jnp.ones(3), s), ["Dense_0"]),
        (SCAN, lambda s: without(s, "layers/block/up"), ["layers/block/up"]),
        (
            SCAN,
            lambda s: s | {"layers": jax.tree.map(lambda x: x[:2], s["layers"])},
            ["layers/block"],
        ),
        (TIED, lambda s: without(s, "wte/attend"), ["wte/attend"]),
        (TIED, lambda s: s | {"wte": {"attend": s["wte"]["attend"]}}, ["wte"]),
    ],
    ids=[
        "no_collection",
        "empty",
        "missing_unit",
        "missing_factor",
        "foreign_unit",
        "foreign_module",
        "foreign_entry",
        "not_scalar",
        "missing_in_scan",
        "other_layers",
        "missing_method",
        "missing_call",
    ],
)
def test_scales_that_do_not_fit_are_refused(model, change, words):
    """`apply` names the path at which scales and model part."""
    x = jnp.zeros((2, 5), int) if model is TIED else X
    tuned = ei.scaled(model)
    variables = zeros_of(tuned.init, KEY, x)
    scales = change(variables.pop("scales"))
    given = {} if scales is None else {"scales": scales}
    with refuses(ValueError) as error:
        tuned.apply({**variables, **given}, x)
    for word in words:
        assert word in str(error.value)
