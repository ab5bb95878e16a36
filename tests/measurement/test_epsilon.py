"""What an optimizer's epsilon takes of its steps."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import einit_jax as ei
from tests.support.cases import Job
from tests.support.checks import measured, tuned

X = jax.random.normal(jax.random.key(1), (16, 8))
MODEL = nn.Sequential([nn.Dense(8), jnp.tanh, nn.Dense(4)])
PARAMS = jax.jit(MODEL.init)(jax.random.key(0), X)["params"]


def job(size: float) -> Job:
    """Its gradients are about that large."""
    loss = lambda y: size * jnp.mean(jnp.square(y - jnp.arange(4.0)))
    return Job(MODEL, PARAMS, lambda key: X, loss)


def gradients(size: float) -> dict:
    return jax.grad(lambda p: job(size).loss_fn(MODEL.apply({"params": p}, X)))(PARAMS)


def share_by_hand(gradient: dict, eps: float) -> float:
    """1 - rms(g / (|g| + eps)), as Adam's first step is 1 for any gradient."""
    flat = np.concatenate([np.ravel(np.float64(g)) for g in jax.tree.leaves(gradient)])
    return 1 - float(np.sqrt(np.mean((np.abs(flat) / (np.abs(flat) + eps)) ** 2)))


@pytest.mark.parametrize("size", [1e-5, 1e-8, 1e-11])
def test_share_is_what_adam_loses(size):
    table = measured(job(size), optimizer=optax.adam)
    by_unit = gradients(size)
    wanted = [share_by_hand(by_unit[f"layers_{i}"], 1e-8) for i in (0, 2)]
    np.testing.assert_allclose(table.epsilon_share, wanted, rtol=1e-3, atol=1e-4)
    warned = "epsilon of the optimizer: it takes" in str(table)
    assert warned == (max(wanted) > 0.1)


def test_true_for_any_optimizer():
    """Of steps that grow with gradients, of a smaller epsilon and after `tune`, 0."""
    small = job(1e-11)
    for optimizer in (
        None,
        optax.sgd,
        lambda rate: optax.sgd(rate, 0.9),
        lambda rate: optax.adam(rate, eps=1e-20),
        optax.lion,
    ):
        table = measured(small, optimizer=optimizer)
        np.testing.assert_allclose(table.epsilon_share, 0, atol=1e-4)
        assert "epsilon of the optimizer" not in str(table)
    scales = tuned(small, optimizer=optax.adam)
    hidden = measured(small, scales=scales, optimizer=optax.adam).epsilon_share[0]
    bare = measured(small, optimizer=optax.adam).epsilon_share[0]
    assert float(hidden) < 0.01 < 0.5 < float(bare)
    wide = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1.0))
    assert float(ei.measure(*small[:4], optimizer=wide).epsilon_share.max()) > 0.5
