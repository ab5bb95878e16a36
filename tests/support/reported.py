"""A small model with a dead layer, to be measured, watched and drawn."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

import einit_jax as ei

X = jax.random.normal(jax.random.key(1), (32, 8))


class Net(nn.Module):
    """The last layer but one gives zeros, and so has no gradient to give."""

    @nn.compact
    def __call__(self, x):
        x = nn.tanh(nn.Dense(16)(x))
        x = x + nn.Dense(16, kernel_init=nn.initializers.zeros, name="dead")(x)
        return nn.Dense(4, name="head")(x)


def measurement_of(
    model: nn.Module, scales: Any = None, probe: bool = False
) -> ei.Measurement:
    """Of the parameters as they are, or tuned."""
    params = model.init(jax.random.key(0), X)["params"]
    loss = lambda y: jnp.mean(jnp.square(y - 1))
    if scales == "tuned":
        scales = ei.tune(model, params, X, loss)
    return ei.measure(model, params, X, loss, scales=scales, probe=probe)
