"""The NNX models that the tests run over run by themselves, as their Linen twins do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.support.nnx_models import (
    NNX_CASES,
    TAGS,
    TWINS,
    NnxCase,
    Twin,
    copy_params,
)

KEY = jax.random.key(1)
ROUNDED = frozenset({"dtype", "complex"})


def floats(tree) -> list[np.ndarray]:
    """The floating leaves, in a type that NumPy knows."""
    leaves = [jnp.asarray(leaf) for leaf in jax.tree.leaves(tree)]
    inexact = [leaf for leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.floating)]
    return [np.asarray(leaf, np.float32) for leaf in inexact]


def merged_run(case: NnxCase, model: nnx.Module, args: tuple) -> tuple:
    """The outputs and the gradients of the model, split and merged inside of a jit."""
    graphdef, state = nnx.split(model)

    def objective(model, *args):
        outputs = model(*args, **case.kwargs)
        return case.loss(outputs), outputs

    @jax.jit
    def run(state, args):
        model = nnx.merge(graphdef, state)
        return nnx.value_and_grad(objective, has_aux=True)(model, *args)

    (_, outputs), gradients = run(state, args)
    return outputs, gradients


@pytest.mark.parametrize("name", NNX_CASES)
def test_runs(name):
    """Plainly and merged alike; some gradient is not zero, and none is not finite."""
    case = NNX_CASES[name]
    model, args = case.build(nnx.Rngs(0)), case.args(KEY)
    outputs, gradients = merged_run(case, model, args)
    plain = floats(model(*args, **case.kwargs))
    tolerance = 3e-2 if case.tags & ROUNDED else 1e-5
    assert plain and all(np.isfinite(y).all() for y in plain)
    for y, again in zip(plain, floats(outputs), strict=True):
        np.testing.assert_allclose(y, again, rtol=tolerance, atol=tolerance)
    sizes = [np.abs(np.asarray(g)).max() for g in jax.tree.leaves(gradients)]
    assert np.isfinite(sizes).all() and max(sizes) > 0


def test_tags_are_used():
    """Each tag marks some case."""
    assert TAGS.keys() == set().union(*(case.tags for case in NNX_CASES.values()))


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
