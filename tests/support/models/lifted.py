"""Lifted transforms: scan, remat, vmap, jit, cond and switch."""

import flax.linen as nn

from tests.support.cases import Case, batches, constant, make, paths, vectors
from tests.support.models.dense import BLOCK, Block, CompactMlp


class Layer(nn.Module):
    """A residual block shaped for `nn.scan`: carry in, carry out."""

    @nn.compact
    def __call__(self, x, _=None):
        return Block(name="block")(x), None


class Layers(nn.Module):
    """Layers under `nn.scan`, which lists no collection but the parameters."""

    axis: int = 0
    remat: bool = False

    @nn.compact
    def __call__(self, x):
        stack = nn.scan(
            nn.remat(Layer) if self.remat else Layer,
            variable_axes={"params": self.axis},
            split_rngs={"params": True},
            length=3,
        )
        x, _ = stack(name="layers")(x)
        return nn.Dense(4, name="head")(x)


class RematScan(nn.Module):
    """Two layer axes, one inside the other."""

    @nn.compact
    def __call__(self, x):
        x = nn.remat_scan(Block, lengths=(2, 2))(name="stack")(x)
        return nn.Dense(4, name="head")(x)


class Ensemble(nn.Module):
    """Members under `nn.vmap`, each with its own parameters."""

    @nn.compact
    def __call__(self, x):
        members = nn.vmap(
            CompactMlp,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=None,  # pyright: ignore[reportArgumentType]
            axis_size=3,
        )
        return members(name="members")(x)


class SharedVmap(nn.Module):
    """A block under `nn.vmap` over the inputs, with one set of parameters."""

    @nn.compact
    def __call__(self, x):
        each = nn.vmap(
            Block, variable_axes={"params": None}, split_rngs={"params": False}
        )
        return nn.Dense(4, name="head")(each(name="each")(x))


JitBlock = nn.jit(Block)


class Jitted(nn.Module):
    """Two blocks under `nn.jit`.

    Of one class, they are alike to the cache: the body of the second is not traced
    again, nor those of later runs. Otherwise each run makes new classes.
    """

    cached: bool = False

    @nn.compact
    def __call__(self, x):
        for name in ("first", "second"):
            block = JitBlock if self.cached else nn.jit(Block)
            x = block(name=name)(x)
        return nn.Dense(4, name="head")(x)


class Cond(nn.Module):
    """A branch that the inputs never take, under `nn.cond`."""

    def setup(self):
        self.left, self.right, self.head = nn.Dense(8), nn.Dense(8), nn.Dense(4)

    def __call__(self, x, pred):
        if self.is_initializing():
            self.left(x)
            self.right(x)
        x = nn.cond(pred, lambda m, x: m.left(x), lambda m, x: m.right(x), self, x)
        return self.head(nn.tanh(x))


class Switch(nn.Module):
    """Branches of different depth under `nn.switch`; one of three is taken."""

    def setup(self):
        self.stem = nn.Dense(8)
        self.experts = [
            nn.Dense(4),
            nn.Sequential([nn.Dense(16), nn.tanh, nn.Dense(4)]),
            nn.Sequential([nn.Dense(8), nn.LayerNorm(), nn.Dense(4)]),
        ]

    def __call__(self, x, index):
        x = self.stem(x)
        branches = [lambda m, x, i=i: m.experts[i](x) for i in range(3)]
        if self.is_initializing():
            for branch in branches:
                branch(self, x)
        return nn.switch(index, branches, self, x)


ROWS: tuple[Case, ...] = (
    Case(
        "scan_layers",
        lambda: make(Layers(), vectors),
        paths(f"layers/block/{BLOCK} head"),
    ),
    Case(
        "scan_remat",
        lambda: make(Layers(remat=True), vectors),
        paths(f"layers/block/{BLOCK} head"),
    ),
    Case(
        "scan_axis_1",
        lambda: make(Layers(axis=1), vectors),
        paths(f"layers/block/{BLOCK} head"),
    ),
    Case(
        "remat_scan",
        lambda: make(RematScan(), vectors),
        paths(f"stack/{BLOCK} head"),
    ),
    Case(
        "vmap_ensemble",
        lambda: make(Ensemble(), vectors),
        paths("members/Dense_{0,1,2}"),
    ),
    Case(
        "vmap_shared",
        lambda: make(SharedVmap(), vectors),
        paths(f"each/{BLOCK} head"),
        shared=paths(f"each/{BLOCK}"),
    ),
    Case(
        "nn_jit",
        lambda: make(Jitted(), vectors),
        paths(f"{{first,second}}/{BLOCK} head"),
    ),
    Case(
        "nn_jit_cached",
        lambda: make(Jitted(cached=True), vectors),
        paths(f"{{first,second}}/{BLOCK} head"),
    ),
    Case(
        "cond",
        lambda: make(Cond(), batches(vectors, constant(True))),
        paths("left right head"),
        idle=paths("right"),
    ),
    Case(
        "switch",
        lambda: make(Switch(), batches(vectors, constant(1))),
        paths("stem experts_0 experts_{1,2}/layers_{0,2} experts_2/layers_1"),
        idle=paths("experts_0 experts_2/layers_{0,1,2}"),
    ),
)
