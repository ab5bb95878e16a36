"""`measure` against finite differences in float64: no derivative of jax is involved."""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import einit_jax as ei
from einit_jax.core import flatten, insert
from einit_jax.units import from_tree

STEP = 1e-5  # a central difference is off by its square, 1e-10


class Chain(nn.Module):
    """Each gradient is the true one times the factors downstream of it."""

    @nn.compact
    def __call__(self, x):
        x = jnp.tanh(nn.Dense(5)(x))
        x = jnp.tanh(nn.Dense(4)(nn.LayerNorm()(x)))
        return nn.Dense(3)(x)


class Convolutions(nn.Module):
    """Two convolutions around a skip."""

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(3, (2, 2))(x)
        x = x + nn.Conv(3, (3, 3))(jnp.sin(x))
        return nn.Dense(2)(x.mean((1, 2)))


class Attention(nn.Module):
    """A residual attention block."""

    @nn.compact
    def __call__(self, x):
        x = x + nn.MultiHeadDotProductAttention(2, name="attend")(nn.LayerNorm()(x))
        return nn.Dense(2)(nn.tanh(x))


NETWORKS = {
    "chain": (Chain(), (4, 6), True),
    "convolutions": (Convolutions(), (2, 3, 3, 2), False),
    "attention": (Attention(), (2, 3, 4), False),
}


def loss_fn(y):
    return jnp.mean(jnp.square(y - 0.3)) + jnp.mean(jnp.sin(y))


def gradient(function: Callable, at: Any) -> Any:
    """All partial derivatives of a scalar function of a tree, by central differences.

    All in one `vmap`: the model is traced and compiled once, not once per array.
    """
    flat, unravel = ravel_pytree(at)
    basis = STEP * jnp.eye(flat.size)
    shifts = jnp.concatenate([basis, -basis])
    values = jax.vmap(lambda shift: function(unravel(flat + shift)))(shifts)
    above, below = jnp.split(values, 2)
    return unravel((above - below) / (2 * STEP))


def slope(function: Callable) -> Any:
    """The derivative at 0 of a tree that is a function of one number."""
    values = jax.vmap(function)(jnp.array([STEP, -STEP]))
    return jax.tree.map(lambda y: (y[0] - y[1]) / (2 * STEP), values)


def look(model, scales, x, params, change: Callable) -> tuple[jax.Array, dict, dict]:
    """The loss, inputs and outputs of units by path; `change(path, x)` is put in."""
    inputs, found = {}, {}
    units = {path[:-1] for path in flatten(params)}

    def intercept(proceed, args, kwargs, context):
        path = context.module.path
        if path not in units:
            return proceed(*args, **kwargs)
        inputs[path] = args[0]
        found[path] = proceed(change(path, args[0]), *args[1:], **kwargs)
        return found[path]

    with nn.intercept_methods(intercept):
        y = ei.scaled(model).apply({"params": params, "scales": scales}, x)
    return loss_fn(y), inputs, found


def rms(*arrays: jax.Array) -> jax.Array:
    flat = jnp.concatenate([a.ravel() for a in arrays])
    return jnp.sqrt(jnp.mean(jnp.square(flat)))


@pytest.mark.parametrize("name", NETWORKS)
def test_measure_agrees_with_finite_differences(name):
    """Outputs, input gradients, updates and total updates of every unit, to 1e-3."""
    with jax.enable_x64(True):
        check(*NETWORKS[name])


def check(model: nn.Module, shape: tuple[int, ...], chain: bool) -> None:
    x = jax.random.normal(jax.random.key(1), shape, jnp.float64)
    params = jax.jit(model.init)(jax.random.key(0), x)["params"]
    params = jax.tree.map(lambda p: p.astype(jnp.float64) + 0.05, params)
    scales = ei.tune(model, params, x, loss_fn)
    if not chain:  # only in a chain are carried gradients true ones, up to factors
        forward = jax.tree.map(jnp.ones_like, scales)
        pick = lambda path, one, s: s if path[-1].key == "output" else one
        scales = jax.tree.map_with_path(pick, forward, scales)
    rows = ei.measure(model, params, x, loss_fn, scales=scales).rows()
    found = jax.jit(partial(differences, model, chain))(params, scales, x)
    assert {row["path"] for row in rows} == found.keys()
    for row in rows:
        for name, wanted in found[row["path"]].items():
            np.testing.assert_allclose(row[name], wanted, rtol=1e-3, err_msg=name)


def differences(model, chain: bool, params, scales, x) -> dict[str, dict]:
    """What `measure` is to report of each unit: shift its inputs and its parameters."""
    see = partial(look, model, scales, x)
    as_it_is = lambda path, x: x
    _, inputs, out = see(params, as_it_is)
    shifted = lambda at: see(at[0], lambda path, x: x + at[1][path])[0]
    zeros = jax.tree.map(jnp.zeros_like, inputs)
    of_params, of_inputs = gradient(shifted, (params, zeros))
    factors = {path: v for (path, _), v in from_tree(scales, params).items()}
    above = carried([factors[path] for path in inputs], chain)
    passed = dict(zip(inputs, above, strict=True))
    steps = {p: passed[p[:-1]][0] * g for p, g in flatten(of_params).items()}

    def stepped(rate):
        return insert({}, {p: v - rate * steps[p] for p, v in flatten(params).items()})

    # with all inputs held, no unit feels the steps of the others
    alone = slope(lambda rate: see(stepped(rate), lambda path, x: inputs[path])[2])
    together = slope(lambda rate: see(stepped(rate), as_it_is)[2])
    return {
        "/".join(path): {
            "output_rms": rms(out[path]),
            "input_grad_rms": rms(passed[path][1] * of_inputs[path]),
            "update_rms": rms(alone[path]),
            "total_update_rms": rms(together[path]),
            "param_grad_rms": rms(*(s for p, s in steps.items() if p[:-1] == path)),
        }
        for path in inputs
    }


def carried(factors: list[dict], chain: bool) -> list[tuple]:
    """What true gradients are multiplied by inside of each unit, and above it."""
    if not chain:
        return [(1.0, 1.0)] * len(factors)
    found, product = [], 1.0
    for own in reversed(factors):
        inside = product * own["output_grad"]
        product = inside * own["input_grad"]
        found.append((inside, product))
    return found[::-1]
