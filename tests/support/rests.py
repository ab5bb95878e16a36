"""Models in which something rests, and all that is measured and tuned of them.

What rests is a matrix of zeros on one side of a product, and a sum reads the product.
Run as a module it prints the numbers: in a process of its own.
"""

import json
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

import einit_jax as ei
from tests.support.cases import cross_entropy, integers, normal, squared_error

SMALL = nn.initializers.normal(0.2)


class RawPositions(nn.Module):
    """Where they move alone, the kernel of the last unit rests."""

    @nn.compact
    def __call__(self, tokens):
        position = self.param("position", SMALL, (tokens.shape[1], 32))
        return nn.Dense(65)(nn.Embed(65, 32)(tokens) + position)


class RawMatrix(nn.Module):
    """Where units move, it rests; the model itself sums its products."""

    @nn.compact
    def __call__(self, x):
        matrix = self.param("matrix", SMALL, (32, 65))
        return nn.Dense(5)(jnp.mean(jnp.square(nn.Dense(32)(x) @ matrix), 0))


class IgnoredOutput(nn.Module):
    """Its loss reads the first output alone: the gradient of the other is zero."""

    @nn.compact
    def __call__(self, x):
        raw = self.param("raw", SMALL, (32,))
        matrix = self.param("matrix", SMALL, (32, 65))
        y = nn.Dense(5)(nn.Dense(32)(x) + raw)
        return y, matrix.T @ jnp.broadcast_to(raw[:, None], (32, 256))


def first_alone(outputs: Any, key: jax.Array) -> jax.Array:
    return squared_error(outputs[0], key)


JOBS: dict[str, tuple[nn.Module, Callable, Callable]] = {
    "raw_positions": (RawPositions(), integers(65, 4, 16), cross_entropy),
    "raw_matrix": (RawMatrix(), normal(64, 8), squared_error),
    "ignored_output": (IgnoredOutput(), normal(256, 8), first_alone),
}


def numbers() -> dict[str, dict[str, float]]:
    """Of each model, by name: the factors, and what is measured without them."""
    return {name: _numbers_of(*job) for name, job in JOBS.items()}


def _numbers_of(model: nn.Module, input_fn: Callable, loss: Callable) -> dict:
    key = jax.random.key(0)
    params = model.init(key, input_fn(key))["params"]
    table = ei.measure(model, params, input_fn, loss)
    found: dict[str, Any] = ei.tune(model, params, input_fn, loss)
    found |= {"loose": table.loose_update_rms, "total": table.total_update_rms}
    found |= {"own": table.update_rms, "gradients": table.param_grad_rms}
    leaves = jax.tree_util.tree_leaves_with_path(found)
    return {jax.tree_util.keystr(path): x.tolist() for path, x in leaves}


if __name__ == "__main__":
    print(json.dumps(numbers()))
