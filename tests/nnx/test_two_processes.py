"""Two processes of four devices each run a model of NNX that is spread over both."""

import sys

import jax
import pytest
from flax import nnx

from tests.support import processes
from tests.support.nnx_models.lifted import stacked, through


class Layer(nnx.Module):
    """A residual layer of the scanned stack, with dropout by its own stream."""

    def __init__(self, rngs):
        self.linear = nnx.Linear(16, 16, rngs=rngs)
        self.dropout = nnx.Dropout(0.2, rngs=rngs)

    def __call__(self, x):
        return x + nnx.tanh(self.dropout(self.linear(x)))


class Mlp(nnx.Module):
    """A norm of the batch, layers under a scan, and a head too narrow to be split.

    No bias comes before the norm: Adam would follow the rounding that is its gradient.
    Only parameters are placed: statistics and random keys lie where NNX puts them.
    """

    def __init__(self, rngs):
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.stem = nnx.Linear(8, 16, rngs=rngs)
        self.layers = stacked(rngs, Layer)
        self.head = nnx.Linear(16, 3, rngs=rngs)

    def __call__(self, x):
        return self.head(through(self.layers, nnx.tanh(self.stem(self.norm(x)))))


def arguments(place, spread):
    model = Mlp(nnx.Rngs(1))
    nnx.update(model, jax.tree.map(place, nnx.state(model, nnx.Param)))
    return model, None, spread(jax.random.normal(jax.random.key(0), (32, 8)))


@pytest.mark.slow
def test_two_processes_agree_with_one(tmp_path):
    """Those of one process's half of the batch do not."""
    alone = processes.check_agreement(__file__, arguments, tmp_path)
    processes.check_half_differs(arguments, alone, "stem")


if __name__ == "__main__":
    processes.worker(arguments, *sys.argv[1:])
