"""Recurrence: the cells of Flax under `nnx.RNN`, and recurrence by hand."""

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx

from tests.support.nnx_models.cases import NnxCase, row, series


class Recurrent(nnx.Module):
    """A cell inside of `nnx.RNN`."""

    def __init__(self, rngs, cell):
        self.rnn = nnx.RNN(cell(8, 8, rngs=rngs))
        self.head = nnx.Linear(8, 4, rngs=rngs)

    def __call__(self, x):
        return self.head(self.rnn(x))


class Bidirectional(nnx.Module):
    """One cell forwards, another one backwards."""

    def __init__(self, rngs):
        forward = nnx.RNN(nnx.GRUCell(8, 8, rngs=rngs))
        backward = nnx.RNN(nnx.GRUCell(8, 8, rngs=rngs))
        self.both = nnx.Bidirectional(forward, backward, rngs=rngs)
        self.head = nnx.Linear(16, 4, rngs=rngs)

    def __call__(self, x):
        return self.head(self.both(x))


class PythonLoop(nnx.Module):
    """A cell called in a Python loop, from a carry of zeros."""

    def __init__(self, rngs):
        self.cell = nnx.GRUCell(8, 8, rngs=rngs)
        self.head = nnx.Linear(8, 4, rngs=rngs)

    def __call__(self, x):
        carry = jnp.zeros((x.shape[0], 8))
        for t in range(x.shape[1]):
            carry, y = self.cell(carry, x[:, t])
        return self.head(y)


class Elman(nnx.Module):
    """A cell written by hand."""

    def __init__(self, rngs):
        self.input = nnx.Linear(8, 8, rngs=rngs)
        self.state = nnx.Linear(8, 8, rngs=rngs)

    def __call__(self, h, x):
        h = nnx.tanh(self.input(x) + self.state(h))
        return h, h


class TimeScan(nnx.Module):
    """`nnx.scan` over time, with the cell broadcast."""

    def __init__(self, rngs):
        self.cell = Elman(rngs)
        self.head = nnx.Linear(8, 4, rngs=rngs)

    def __call__(self, x):
        @nnx.scan(in_axes=(None, nnx.Carry, 1), out_axes=(nnx.Carry, 1))
        def over_time(cell, h, x):
            return cell(h, x)

        return self.head(over_time(self.cell, jnp.zeros((x.shape[0], 8)), x)[1])


class GatedRecurrence(nnx.Module):
    """A linear recurrence whose decay depends on the input, by `associative_scan`.

    After Gu and Dao, "Mamba: Linear-Time Sequence Modeling with Selective State
    Spaces", 2023, with one state per channel; the rates are raw parameters.
    """

    def __init__(self, rngs):
        self.norm = nnx.RMSNorm(8, rngs=rngs)
        self.input = nnx.Linear(8, 32, rngs=rngs)
        self.step = nnx.Linear(16, 16, rngs=rngs)
        self.log_rate = nnx.Param(jnp.log(jnp.linspace(1.0, 4.0, 16)))
        self.output = nnx.Linear(16, 8, rngs=rngs)

    def __call__(self, x):
        h, gate = jnp.split(self.input(self.norm(x)), 2, axis=-1)
        step = nnx.softplus(self.step(h))
        decay = jnp.exp(-step * jnp.exp(self.log_rate[...]))
        states = jax.lax.associative_scan(_compose, (decay, step * h), axis=1)[1]
        return x + self.output(states * nnx.silu(gate))


def _compose(first, then):
    """The affine map `h -> a h + b` that two of them make, one after the other."""
    return first[0] * then[0], then[0] * first[1] + then[1]


def _rnn(cell):
    return row(partial(Recurrent, cell=cell), series, "cell state")


CASES: dict[str, NnxCase] = {
    "rnn_lstm": _rnn(nnx.LSTMCell),
    "rnn_optimized_lstm": _rnn(nnx.OptimizedLSTMCell),
    "rnn_gru": _rnn(nnx.GRUCell),
    "rnn_simple": _rnn(nnx.SimpleCell),
    "bidirectional": row(Bidirectional, series, "cell state"),
    "cell_loop": row(PythonLoop, series, "cell"),
    "time_scan": row(TimeScan, series, "cell"),
    "gated_recurrence": row(GatedRecurrence, series, "raw"),
}
