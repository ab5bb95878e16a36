"""Kinds in NNX that are transforms: loops, branches, mapped axes."""

from typing import Any

import jax.numpy as jnp
from flax import nnx

from tests.fuzz.growing import over_steps
from tests.fuzz.nnx_models.building import Kept, Net, nnx_kind, with_steps

STREAMS = nnx.StateAxes({nnx.RngState: 0, ...: None})
"""Of a module that rows share, each with a random key of its own."""


def call(module, x):
    """What transforms take: a function of a module and its inputs."""
    return module(x)


def stacked(b, count, axis, make):
    """Modules whose parameters are stacked along an axis, and all else along 0."""
    axes = nnx.StateAxes({nnx.Param: axis, ...: 0})

    @nnx.split_rngs(splits=count)
    @nnx.vmap(in_axes=0, out_axes=axes)
    def stack(rngs):
        return make(type(b)(rngs, b.dtype, b.param_dtype))

    with nnx.use_eager_sharding(False):
        return stack(b.rngs)


class Layers(nnx.Module):
    """Layers under `nnx.scan`, which may be computed anew for the backward pass."""

    def __init__(self, b, shape, node, how):
        length, self.axis, self.remat = how
        make = lambda b: Kept(b, node, shape)
        self.layers = stacked(b, length, self.axis, make)

    def __call__(self, x):
        axes = nnx.StateAxes({nnx.Param: self.axis, ...: 0})
        run = nnx.remat(call) if self.remat else call
        return nnx.scan(run, in_axes=(axes, nnx.Carry), out_axes=nnx.Carry)(
            self.layers, x
        )


@nnx_kind()
def scan(b, shape, length, axis, remat, node):
    return Layers(b, shape, node, (length, axis, remat)), shape[-1]


class OverTime(nnx.Module):
    """A module at each step, which adds what it gave at the step before."""

    def __init__(self, b, shape, node):
        *outer, _, n = with_steps(shape)
        self.step = Kept(b, node, (*outer, n))

    def __call__(self, x):
        return over_steps(self.run, x)

    def run(self, x):
        """The outputs of all steps."""

        def step(module, h, x):
            y = module(h + x)
            return y, y

        axes = nnx.StateAxes({nnx.RngState: nnx.Carry, ...: None})
        axis = x.ndim - 2
        over = nnx.scan(
            step, in_axes=(axes, nnx.Carry, axis), out_axes=(nnx.Carry, axis)
        )
        return over(self.step, jnp.zeros_like(x[..., 0, :]), x)[1]


@nnx_kind()
def time(b, shape, node):
    return OverTime(b, shape, node), shape[-1]


class Transformed(nnx.Module):
    """A transform of a function that calls a module."""

    def __init__(self, b, shape, node, transform):
        self.net, self.transform = Net(b, node, shape), transform

    def __call__(self, x):
        return self.transform(call)(self.net, x)


@nnx_kind()
def remat(b, shape, node):
    part = Transformed(b, shape, node, nnx.remat)
    return part, part.net.features


@nnx_kind()
def jit(b, shape, node):
    part = Transformed(b, shape, node, nnx.jit)
    return part, part.net.features


class JitNet(Kept):
    """A module whose own method is compiled, once for all that are alike."""

    @nnx.jit
    def __call__(self, x):  # pyright: ignore[reportIncompatibleMethodOverride]
        return super().__call__(x)


class Cached(nnx.Module):
    """Two modules that one trace may serve."""

    def __init__(self, b, shape, node):
        alike: Any = JitNet
        self.parts = nnx.List([alike(b, node, shape) for _ in range(2)])

    def __call__(self, x):
        for part in self.parts:
            x = part(x)
        return x


@nnx_kind()
def cached(b, shape, node):
    return Cached(b, shape, node), shape[-1]


class Members(nnx.Module):
    """Modules under `nnx.vmap`, each with parameters of its own."""

    def __init__(self, b, shape, node, how):
        self.count, self.in_axes = how
        self.members = stacked(b, self.count, 0, lambda b: Net(b, node, shape))

    def __call__(self, x):
        given = x if self.in_axes is None else jnp.stack([x] * self.count)
        return nnx.vmap(call, in_axes=(0, self.in_axes))(self.members, given).mean(0)


@nnx_kind()
def members(b, shape, count, in_axes, node):
    part = Members(b, shape, node, (count, in_axes))
    return part, part.members.features


class Each(nnx.Module):
    """A module under `nnx.vmap` over rows, with one set of parameters."""

    def __init__(self, b, shape, node):
        self.net = Net(b, node, shape[1:] if len(shape) > 1 else shape)

    def __call__(self, x):
        if x.ndim == 1:
            return self.net(x)
        rows = nnx.vmap(call, in_axes=(STREAMS, 0))
        split: Any = nnx.split_rngs(splits=x.shape[0])(rows)
        return split(self.net, x)


@nnx_kind()
def each(b, shape, node):
    part = Each(b, shape, node)
    return part, part.net.features


class Branches(nnx.Module):
    """One of several modules is run, by `nnx.cond` or `nnx.switch`."""

    def __init__(self, b, shape, nodes, index):
        self.parts = nnx.List([Kept(b, node, shape) for node in nodes])
        self.index = index

    def __call__(self, x):
        if self.index is None:
            index = (x.sum() > 0).astype(jnp.int32)
        else:
            index = jnp.array(self.index)
        runs = [lambda m, x, i=i: m.parts[i](x) for i in range(len(self.parts))]
        if len(runs) == 2:
            return nnx.cond(index == 0, *runs, self, x)
        return nnx.switch(index, runs, self, x)


@nnx_kind()
def cond(b, shape, known, *nodes):
    return Branches(b, shape, nodes, 0 if known else None), shape[-1]


@nnx_kind()
def switch(b, shape, index, *nodes):
    return Branches(b, shape, nodes, index), shape[-1]


class Loop(nnx.Module):
    """One module, called in an `nnx.fori_loop`."""

    def __init__(self, b, shape, node, times):
        self.net, self.times = Kept(b, node, shape), times

    def __call__(self, x):
        step = lambda i, carry: (carry[0], carry[0](carry[1]))
        return nnx.fori_loop(0, self.times, step, (self.net, x))[1]


@nnx_kind(lambda c: (c.pick((2, 3)), c.node()))
def loop(b, shape, times, node):
    return Loop(b, shape, node, times), shape[-1]
