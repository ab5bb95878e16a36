"""Plain structure: layers, blocks, and units called more than once."""

from typing import Any

import flax.linen as nn

from tests.support.cases import Case, make, paths, to_one, vectors


class CompactMlp(nn.Module):
    """No trap: the layers are named by flax."""

    dtype: Any = None

    @nn.compact
    def __call__(self, x):
        for width in (16, 16):
            x = nn.relu(nn.Dense(width, dtype=self.dtype)(x))
        return nn.Dense(4, dtype=self.dtype)(x)


class Block(nn.Module):
    """A residual block: two units on one level."""

    width: int = 8

    @nn.compact
    def __call__(self, x):
        h = nn.relu(nn.Dense(2 * self.width, name="up")(x))
        return x + nn.Dense(x.shape[-1], name="down")(h)


class SetupMlp(nn.Module):
    """Submodules held in a list by `setup`."""

    def setup(self):
        self.blocks = [Block(), Block()]
        self.head = nn.Dense(4)

    def __call__(self, x):
        for block in self.blocks:
            x = block(x)
        return self.head(x)


class Nest(nn.Module):
    """Units at unequal depths, some four levels down."""

    depth: int

    @nn.compact
    def __call__(self, x):
        x = nn.tanh(nn.Dense(8, name="own")(x))
        return Nest(self.depth - 1, name="inner")(x) if self.depth else x


class Twice(nn.Module):
    """One unit called twice in a run."""

    @nn.compact
    def __call__(self, x):
        layer = nn.Dense(8, name="layer")
        x = nn.tanh(layer(x))
        return nn.Dense(4, name="head")(nn.tanh(layer(x)))


class SwiGlu(nn.Module):
    """A product of two units: the output is quadratic in their common scale."""

    @nn.compact
    def __call__(self, x):
        x = nn.RMSNorm(name="norm")(x)
        gate = nn.silu(nn.Dense(16, use_bias=False, name="gate")(x))
        h = gate * nn.Dense(16, use_bias=False, name="up")(x)
        return nn.Dense(8, use_bias=False, name="down")(h)


BLOCK = "{up,down}"

ROWS: tuple[Case, ...] = (
    Case(
        "compact_mlp",
        lambda: make(CompactMlp(), vectors),
        paths("Dense_{0,1,2}"),
    ),
    Case(
        "setup_list",
        lambda: make(SetupMlp(), vectors),
        paths(f"blocks_{{0,1}}/{BLOCK} head"),
    ),
    Case(
        "deep_nesting",
        lambda: make(Nest(3), vectors, to_one),
        paths("own inner/own inner/inner/own inner/inner/inner/own"),
    ),
    Case(
        "used_twice",
        lambda: make(Twice(), vectors),
        paths("layer head"),
        shared=paths("layer"),
    ),
    Case("swiglu", lambda: make(SwiGlu(), vectors), paths("norm gate up down")),
)
