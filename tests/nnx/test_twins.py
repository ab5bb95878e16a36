"""The same network in Linen and NNX, of the same weights: same outputs, same scales."""

import jax
import numpy as np
import optax
import pytest

import einit_jax as ei
from einit_jax.core import flatten
from tests.support.nnx_models import TWINS, Twin, copy_params

KEY = jax.random.key(1)
NEAR = 1e-6
# The gradient of a bias of attention's keys is rounding, of which Adam makes a step.
ROUNDED = {("transformer", optax.adam): 1e-2}
LARGE = {"lstm", "transformer", "resnet"}
PAIRS = [
    pytest.param(
        name,
        optimizer,
        marks=pytest.mark.slow if optimizer or name in LARGE else (),
        id=f"{name}-{'adam' if optimizer else 'sgd'}",
    )
    for name in TWINS
    for optimizer in (None, optax.adam)
    if optimizer is None or name in LARGE
]


def by_linen_path(twin, scales: dict) -> dict:
    """The factors of an NNX model by the paths of Linen."""
    modules = {}
    for nnx_path, linen_path in twin.paths.items():
        parts = nnx_path.split("/"), linen_path.split("/")
        for n in range(1, 1 + min(map(len, parts))):
            ours, theirs = (tuple(part[:-n]) for part in parts)
            modules.setdefault(ours, theirs)
    found = {}
    for path, factor in flatten(scales).items():
        owner = next(path[:n] for n in range(len(path), -1, -1) if path[:n] in modules)
        found[(*modules[owner], *path[len(owner) :])] = factor
    return found


@pytest.mark.parametrize(("name", "optimizer"), PAIRS)
def test_twins_have_the_same_scales(name, optimizer):
    twin = TWINS[name]
    linen, args = twin.linen(), twin.args(KEY)
    variables = jax.jit(linen.init)(jax.random.key(0), *args)
    params = variables["params"]
    rest = {k: v for k, v in variables.items() if k != "params"}
    inputs = ei.Inputs(*args)
    ours = ei.tune(
        linen, params, inputs, twin.loss, collections=rest, optimizer=optimizer
    )
    model = copy_params(twin, params)
    theirs = ei.tune(model, None, inputs, twin.loss, optimizer=optimizer)
    near = ROUNDED.get((name, optimizer), NEAR)
    expected, got = flatten(ours), by_linen_path(twin, theirs)
    assert expected.keys() == got.keys()
    for path, factor in expected.items():
        np.testing.assert_allclose(got[path], factor, rtol=near, err_msg=str(path))


def perturbed(params):
    """Parameters no two of which are equal, those that start at zero included."""
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(KEY, len(leaves))
    draw = lambda key, leaf: leaf + 0.1 * jax.random.normal(key, leaf.shape)
    return jax.tree.unflatten(structure, map(draw, keys, leaves))


@pytest.mark.parametrize("name", TWINS)
def test_twins_agree(name):
    """The outputs of Linen, from the parameters of Linen."""
    twin: Twin = TWINS[name]
    linen, args = twin.linen(), twin.args(KEY)
    variables = jax.jit(linen.init)(jax.random.key(0), *args)
    params, rest = perturbed(variables["params"]), sorted(variables.keys() - {"params"})
    expected, _ = jax.jit(linen.apply, static_argnames="mutable")(
        {**variables, "params": params}, *args, mutable=tuple(rest)
    )
    outputs = copy_params(twin, params)(*args)
    np.testing.assert_allclose(outputs, expected, rtol=1e-5, atol=1e-5)
    assert np.isfinite(twin.loss(outputs))
