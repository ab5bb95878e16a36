"""Two processes of four devices: the batch and the parameters are spread over both."""

import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from tests.support import processes


class Layer(nn.Module):
    """A residual layer of the scanned stack."""

    @nn.compact
    def __call__(self, x, _):
        return x + jnp.tanh(nn.Dense(16)(x)), None


class Mlp(nn.Module):
    """Layers under a scan, a norm, and a head too narrow to be split."""

    @nn.compact
    def __call__(self, x):
        x = jnp.tanh(nn.Dense(16)(x))
        x, _ = nn.scan(
            Layer, variable_axes={"params": 0}, split_rngs={"params": True}, length=2
        )()(x, None)
        return nn.Dense(3)(nn.LayerNorm()(x))


def arguments(place, spread):
    x = jax.random.normal(jax.random.key(0), (32, 8))
    model = Mlp()
    params = model.init(jax.random.key(1), x)["params"]
    return model, jax.tree.map(place, params), spread(x)


@pytest.mark.slow
def test_two_processes_agree_with_one(tmp_path):
    """Those of one process's half of the batch do not."""
    alone = processes.check_agreement(__file__, arguments, tmp_path)
    processes.check_half_differs(arguments, alone, "Dense_0")


if __name__ == "__main__":
    processes.worker(arguments, *sys.argv[1:])
