"""`measure` against finite differences in float64: no derivative of jax is involved."""

from collections.abc import Callable, Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import einit_jax as ei
from einit_jax._paths import flatten
from einit_jax._units import from_tree

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


def gradient(function: Callable, at: jax.Array) -> jax.Array:
    """All partial derivatives of a scalar function, by central differences."""
    basis = STEP * jnp.eye(at.size).reshape(at.size, *at.shape)
    rise = jax.jit(jax.vmap(lambda d: function(at + d) - function(at - d)))(basis)
    return (rise / (2 * STEP)).reshape(at.shape)


def outputs(model, variables, shifts: Mapping) -> tuple[jax.Array, dict, dict]:
    """The loss, and inputs and outputs of units, with inputs shifted by path."""
    inputs, found = {}, {}

    def intercept(proceed, args, kwargs, context):
        path = context.module.path
        if path not in shifts:
            return proceed(*args, **kwargs)
        inputs[path] = args[0]
        found[path] = proceed(args[0] + shifts[path], *args[1:], **kwargs)
        return found[path]

    with nn.intercept_methods(intercept):
        y = ei.scaled(model).apply(variables, X)
    return loss_fn(y), inputs, found


def rms(x) -> float:
    return float(jnp.sqrt(jnp.mean(jnp.square(x))))


@pytest.mark.parametrize("name", NETWORKS)
def test_measure_agrees_with_finite_differences(name):
    """Outputs, input gradients, updates and total updates of every unit, to 1e-3."""
    with jax.enable_x64(True):
        check(*NETWORKS[name])


def check(model: nn.Module, shape: tuple[int, ...], chain: bool) -> None:
    global X
    X = jax.random.normal(jax.random.key(1), shape, jnp.float64)
    params = model.init(jax.random.key(0), X)["params"]
    params = jax.tree.map(lambda p: p.astype(jnp.float64) + 0.05, params)
    scales = ei.tune(model, params, X, loss_fn)
    if not chain:  # only in a chain are carried gradients true ones, up to factors
        forward = jax.tree.map(jnp.ones_like, scales)
        pick = lambda path, one, s: s if path[-1].key == "output" else one
        scales = jax.tree.map_with_path(pick, forward, scales)
    rows = ei.measure(model, params, X, loss_fn, scales=scales).rows()
    table = {row["path"]: row for row in rows}
    factors = {path: v for (path, _), v in from_tree(scales, params).items()}
    units = dict.fromkeys(p[:-1] for p in flatten(params))
    zero = dict.fromkeys(units, jnp.zeros(()))
    variables = {"params": params, "scales": scales}
    _, inputs, _ = outputs(model, variables, zero)
    order = list(inputs)
    steps = {}
    for i, path in enumerate(order):
        row = table["/".join(path)]
        downstream = [factors[p] for p in order[i:]] if chain else []
        carried = np.prod([float(f["output_grad"]) for f in downstream])
        passed = carried * np.prod([float(f["input_grad"]) for f in downstream[:1]])
        for f in downstream[1:]:
            carried *= float(f["input_grad"])
            passed *= float(f["input_grad"])
        steps[path] = check_unit(model, variables, zero, path, row, carried, passed)
    for path, change in moved_together(model, variables, zero, steps).items():
        row = table["/".join(path)]
        np.testing.assert_allclose(row["total_update_rms"], rms(change), rtol=1e-3)


def moved_together(model, variables, zero, steps) -> dict:
    """The change of each unit's output when all parameters take a step at once."""

    def at(rate):
        params = variables["params"]
        for path, step in steps.items():
            own = {n: v - rate * step[n] for n, v in get(params, path).items()}
            params = put(params, path, own)
        return outputs(model, {**variables, "params": params}, zero)[2]

    below, above = at(STEP), at(-STEP)
    return {path: (above[path] - below[path]) / (2 * STEP) for path in steps}


def check_unit(model, variables, zero, path, row, carried, passed):
    """One unit: shift its inputs and its parameters, and look; returns its step."""

    def with_input(shift):
        return outputs(model, variables, {**zero, path: shift})[0]

    def with_own(own):
        params = put(variables["params"], path, own)
        return outputs(model, {**variables, "params": params}, zero)

    _, inputs, out = outputs(model, variables, zero)
    own = get(variables["params"], path)
    back = passed * gradient(with_input, jnp.zeros(inputs[path].shape))
    loss_of = lambda leaf: lambda value: with_own({**own, leaf: value})[0]
    steps = {leaf: carried * gradient(loss_of(leaf), own[leaf]) for leaf in own}

    def moved(rate):
        stepped = {leaf: value - rate * steps[leaf] for leaf, value in own.items()}
        return unit_output(model, variables, path, stepped, inputs[path])

    change = (moved(-STEP) - moved(STEP)) / (2 * STEP)
    np.testing.assert_allclose(row["output_rms"], rms(out[path]), rtol=1e-3)
    np.testing.assert_allclose(row["input_grad_rms"], rms(back), rtol=1e-3)
    np.testing.assert_allclose(row["update_rms"], rms(change), rtol=1e-3)
    flat = jnp.concatenate([s.ravel() for s in steps.values()])
    np.testing.assert_allclose(row["param_grad_rms"], rms(flat), rtol=1e-3)
    return steps


def unit_output(model, variables, path, own, x):
    """A unit's output with its input held and other parameters of its own."""
    held = {}

    def intercept(proceed, args, kwargs, context):
        if context.module.path != path:
            return proceed(*args, **kwargs)
        held["y"] = proceed(x, *args[1:], **kwargs)
        return held["y"]

    params = put(variables["params"], path, own)
    with nn.intercept_methods(intercept):
        ei.scaled(model).apply({**variables, "params": params}, X)
    return held["y"]


def get(tree, path):
    for name in path:
        tree = tree[name]
    return tree


def put(tree, path, value):
    if not path:
        return value
    return {**tree, path[0]: put(tree[path[0]], path[1:], value)}
