"""Layers and members whose parameters are stacked: scan and vmap."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from tests.support.nnx_models.cases import NnxCase, row, series, vectors
from tests.support.nnx_models.dense import Block, Mlp
from tests.support.nnx_models.parameters import Buffer


def stacked(rngs, block: Callable = Block):
    """Three blocks, stacked along axis 0."""

    @nnx.split_rngs(splits=3)
    @nnx.vmap(in_axes=0, out_axes=0)
    def stack(rngs):
        return block(rngs)

    return stack(rngs)


def through(layers, x, axes=0):
    """What becomes of x in one layer after the other, under `nnx.scan`."""

    @nnx.scan(in_axes=(axes, nnx.Carry), out_axes=nnx.Carry)
    def one(layer, x):
        return layer(x)

    return one(layers, x)


class Layers(nnx.Module):
    """Layers under `nnx.scan`."""

    def __init__(self, rngs, block=Block):
        self.layers = stacked(rngs, block)
        self.head = nnx.Linear(8, 4, rngs=rngs)

    def __call__(self, x):
        return self.head(through(self.layers, x))


class Kept(nnx.Module):
    """The carry comes first, and what each layer gives is stacked."""

    def __init__(self, rngs):
        self.layers = stacked(rngs)
        self.head = nnx.Linear(8, 4, rngs=rngs)

    def __call__(self, x):
        @nnx.scan
        def through(x, layer):
            x = layer(x)
            return x, x

        x, each = through(x, self.layers)
        return self.head(x), each


class Step(nnx.Module):
    """A norm, a layer, and the length of its step, which all layers share."""

    def __init__(self, rngs):
        self.norm = nnx.LayerNorm(8, rngs=rngs)
        self.linear = nnx.Linear(8, 8, rngs=rngs)
        self.length = Buffer(jnp.array(0.5))

    def __call__(self, x):
        return x + self.length * nnx.tanh(self.linear(self.norm(x)))


class Steps(nnx.Module):
    """Parameters are stacked along an axis; what else there is, is not."""

    def __init__(self, rngs, axis):
        self.axes = nnx.StateAxes({nnx.Param: axis, ...: None})

        @nnx.split_rngs(splits=3)
        @nnx.vmap(in_axes=0, out_axes=self.axes)
        def stack(rngs):
            return Step(rngs)

        self.layers = stack(rngs)
        self.head = nnx.Linear(8, 4, rngs=rngs)

    def __call__(self, x):
        return self.head(through(self.layers, x, self.axes))


class LaxScan(nnx.Module):
    """Layers that are split and merged again under `jax.lax.scan`."""

    def __init__(self, rngs):
        self.layers = stacked(rngs)
        self.head = nnx.Linear(8, 4, rngs=rngs)

    def __call__(self, x):
        graphdef, state = nnx.split(self.layers)
        step = lambda x, one: (nnx.merge(graphdef, one)(x), None)
        return self.head(jax.lax.scan(step, x, state)[0])


class RematScan(nnx.Module):
    """`nnx.remat` inside of `nnx.scan`."""

    def __init__(self, rngs):
        self.layers = stacked(rngs)
        self.head = nnx.Linear(8, 4, rngs=rngs)

    def __call__(self, x):
        @nnx.scan(in_axes=(0, nnx.Carry), out_axes=nnx.Carry)
        @nnx.remat
        def through(layer, x):
            return layer(x)

        return self.head(through(self.layers, x))


class DroppedBlock(Block):
    """A block with dropout, whose stream is stacked as the parameters are."""

    def __init__(self, rngs):
        super().__init__(rngs)
        self.dropout = nnx.Dropout(0.3, rngs=rngs)

    def __call__(self, x):
        return self.dropout(super().__call__(x))


class Ensemble(nnx.Module):
    """Members under `nnx.vmap`, each with its own parameters."""

    def __init__(self, rngs):
        self.members = stacked(rngs, Mlp)

    def __call__(self, x):
        each = nnx.vmap(lambda member, x: member(x), in_axes=(0, None))
        return each(self.members, x)


class SharedVmap(nnx.Module):
    """A block under `nnx.vmap` over the inputs, with one set of parameters."""

    def __init__(self, rngs):
        self.block = Block(rngs)
        self.head = nnx.Linear(8, 4, rngs=rngs)

    def __call__(self, x):
        each = nnx.vmap(lambda block, x: block(x), in_axes=(None, 0))
        return self.head(each(self.block, x))


CASES: dict[str, NnxCase] = {
    "scan_layers": row(Layers, vectors, "scan"),
    "scan_outputs": row(Kept, vectors, "scan outputs"),
    "scan_state_axes": row(lambda rngs: Steps(rngs, 0), vectors, "scan buffer"),
    "scan_axis_1": row(lambda rngs: Steps(rngs, 1), vectors, "scan buffer"),
    "lax_scan": row(LaxScan, vectors, "scan"),
    "scan_remat": row(RematScan, vectors, "scan remat"),
    "scan_dropout": row(
        lambda rngs: Layers(rngs, DroppedBlock), vectors, "scan rng state"
    ),
    "vmap_ensemble": row(Ensemble, vectors, "vmap"),
    "vmap_shared": row(SharedVmap, series, "vmap"),
}
