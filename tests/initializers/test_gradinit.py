"""GradInit: what it descends, by definition, and what becomes of it."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import einit_jax as ei
from einit_jax.binding import setup
from einit_jax.initializers.learned._gradinit import _Step, _step_norm
from einit_jax.initializers.learned._rescaling import Variables, make_rescaling
from tests.support.descents import KEY, MODEL, PARAMS, draw, loss_fn, loss_of, trained

SMALL = nn.Sequential([nn.Dense(8), nn.tanh, nn.Dense(4)])


def small_loss(params, x):
    return loss_fn(SMALL.apply({"params": params}, x), x)


def reference(power, gamma, params, batches, factors):
    """The objective as the paper writes it: scale, gradient, step, loss."""
    scaled = jax.tree.unflatten(
        jax.tree.structure(params),
        [a * p for a, p in zip(factors, jax.tree.leaves(params), strict=True)],
    )
    gradient = jax.grad(small_loss)(scaled, batches[0])
    leaves = jax.tree.leaves(gradient)
    total = sum(jnp.sum(jnp.abs(g) ** power) for g in leaves) ** (1 / power)
    if gamma == 0:
        return total
    if power == 1:
        moved = jax.tree.map(lambda p, g: p - 0.01 * jnp.sign(g), scaled, gradient)
    else:
        moved = jax.tree.map(lambda p, g: p - 0.1 * g, scaled, gradient)
    return (small_loss(moved, batches[0]) + small_loss(moved, batches[1])) / 2


@pytest.mark.parametrize("gamma", [0.0, 1e9])
@pytest.mark.parametrize(
    ("optimizer", "kind"), [(optax.sgd(0.1), (2, 0.1)), (optax.adam(0.01), (1, 0.01))]
)
def test_gradinit_descends_what_it_says(optimizer, kind, gamma):
    """Value and gradient, against the definition; Adam's first step is a sign."""
    params = SMALL.init(KEY, draw(KEY))["params"]
    objective, arrays = setup(SMALL, params, draw, loss_fn, key=KEY, draws=2)
    now, then = arrays.batches
    how = make_rescaling(
        objective, arrays.args, lambda *_: True, include=None, exclude=()
    )
    power, eta = _step_norm(optimizer, params)
    assert (power, eta) == pytest.approx(kind, rel=1e-3)
    step = _Step(how, optimizer, power, gamma)
    factors = 1 + 0.1 * jnp.arange(4.0)
    batches = [b.inputs.args[0] for b in (now, then)]
    want = jax.jit(
        jax.value_and_grad(partial(reference, power, gamma, params, batches))
    )
    value, gradient = jax.jit(step)(factors, Variables(params, {}), now, then)
    right, slope = want(factors)
    assert float(value) == pytest.approx(float(right), rel=1e-4)
    np.testing.assert_allclose(gradient, slope, rtol=1e-3, atol=1e-4 * abs(slope).max())


FEWER = {"draws": 4, "steps": 60, "learning_rate": 0.03}


def test_gradinit_lowers_the_loss_after_a_step():
    """On fresh data, and the gradient keeps the bound that it broke before."""
    seen = []
    report = lambda *args: seen.append(args[0])
    found = ei.gradinit(MODEL, PARAMS, draw, loss_fn, progress=report, **FEWER)
    assert seen == list(range(1, 61))

    @jax.jit
    def look(params):
        x = draw(jax.random.key(77))
        gradient = jax.grad(loss_of)(params, x)
        moved = jax.tree.map(lambda p, g: p - 0.1 * g, params, gradient)
        return loss_of(moved, x), optax.tree.norm(gradient)

    (before, steep), (after, flat) = look(PARAMS), look(found)
    assert steep > 10 and flat < 1.1
    assert after < 1.4 < before
    assert trained(found)[-20:].mean() < 0.7
