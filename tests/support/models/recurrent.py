"""Recurrence: cells of Flax and written by hand."""

from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp

from tests.support.cases import Case, make, paths, series


class Recurrent(nn.Module):
    """A cell inside `nn.RNN`: its units are called once per time step."""

    cell_type: Callable

    def setup(self):
        self.rnn = nn.RNN(self.cell_type(8))
        self.head = nn.Dense(4)

    def __call__(self, x):
        return self.head(self.rnn(x))


class CellBeside(nn.Module):
    """A cell built beside its `nn.RNN`: the parameters are not under the RNN."""

    def setup(self):
        self.cell = nn.GRUCell(8)
        self.rnn = nn.RNN(self.cell)

    def __call__(self, x):
        return self.rnn(x)


class CellPassed(nn.Module):
    """A cell that came in as an attribute, run by an RNN of another name."""

    cell: nn.RNNCellBase

    @nn.compact
    def __call__(self, x):
        return nn.Dense(4, name="head")(nn.RNN(self.cell, name="rnn")(x))


class Step(nn.Module):
    """An Elman cell."""

    @nn.compact
    def __call__(self, h, x):
        h = nn.tanh(nn.Dense(8, name="input")(x) + nn.Dense(8, name="state")(h))
        return h, nn.Dense(4, name="output")(h)


class TimeScan(nn.Module):
    """`nn.scan` over time with broadcast parameters, and only those."""

    @nn.compact
    def __call__(self, x):
        scan = nn.scan(
            Step,
            variable_broadcast="params",
            split_rngs={"params": False},
            in_axes=1,
            out_axes=1,
        )
        return scan(name="step")(jnp.zeros((x.shape[0], 8)), x)[1]


GRU = "{ir,iz,in,hr,hz,hn}"
LSTM = "{ii,if,ig,io,hi,hf,hg,ho}"


ROWS: tuple[Case, ...] = (
    Case(
        "rnn_lstm",
        lambda: make(Recurrent(nn.LSTMCell), series),
        paths(f"rnn/cell/{LSTM} head"),
        shared=paths(f"rnn/cell/{LSTM}"),
    ),
    Case(
        "rnn_gru",
        lambda: make(Recurrent(nn.GRUCell), series),
        paths(f"rnn/cell/{GRU} head"),
        shared=paths(f"rnn/cell/{GRU}"),
    ),
    Case(
        "rnn_optimized_lstm",
        lambda: make(Recurrent(nn.OptimizedLSTMCell), series),
        paths("rnn/cell head"),
        shared=paths("rnn/cell"),
    ),
    Case(
        "cell_beside_rnn",
        lambda: make(CellBeside(), series),
        paths(f"cell/{GRU}"),
        shared=paths(f"cell/{GRU}"),
    ),
    Case(
        "cell_passed_in",
        lambda: make(CellPassed(nn.OptimizedLSTMCell(8)), series),
        paths("cell head"),
        shared=paths("cell"),
    ),
    Case(
        "time_scan",
        lambda: make(TimeScan(), series),
        paths("step/{input,state,output}"),
        shared=paths("step/{input,state,output}"),
    ),
)
