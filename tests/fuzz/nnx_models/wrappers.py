"""Kinds in NNX that have others inside: nestings, repeated calls, parameters around."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from tests.fuzz.growing import narrowed, size
from tests.fuzz.nnx_models.building import (
    Kept,
    Net,
    OverSteps,
    made,
    nnx_kind,
    with_steps,
)

normal = nnx.initializers.normal(1.0)


class Chain(nnx.Module):
    """Modules in a list, or in a dict, called one after the other."""

    def __init__(self, b, shape, nodes, hold):
        parts = []
        for node in nodes:
            part, features = made(b, node, shape)
            parts.append(part)
            shape = (*shape[:-1], features)
        self.features = shape[-1]
        names = map(str, range(len(parts)))
        self.parts = hold(dict(zip(names, parts, strict=True)))

    def __call__(self, x):
        parts: Any = self.parts
        for part in parts.values() if isinstance(parts, nnx.Dict) else parts:
            x = part(x)
        return x


def chain(b, shape, nodes, hold=lambda parts: nnx.List(parts.values())):
    """The nodes in a row, and how many features come out."""
    parts = Chain(b, shape, nodes, hold)
    return parts, parts.features


@nnx_kind()
def seq(b, shape, *nodes):
    return chain(b, shape, nodes)


@nnx_kind()
def listed(b, shape, *nodes):
    return chain(b, shape, nodes, nnx.Dict)


@nnx_kind()
def sequential(b, shape, *nodes):
    parts, features = chain(b, shape, nodes)
    return nnx.Sequential(*parts.parts), features


@nnx_kind()
def block(b, shape, node):
    net = Net(b, node, shape)
    return net, net.features


class Around(nnx.Module):
    """Something done with the outputs of a module that keeps shapes."""

    def __init__(self, b, shape, node):
        self.net = Kept(b, node, shape)


class Encoding(Around):
    """Calls another method of a module."""

    def __init__(self, b, shape, node):
        self.net = Net(b, node, shape)

    def __call__(self, x):
        return self.net.encode(x)


@nnx_kind()
def encode(b, shape, node):
    part = Encoding(b, shape, node)
    return part, part.net.features


class Residual(Around):
    """A branch beside a skip connection."""

    def __call__(self, x):
        return x + self.net(x)


@nnx_kind()
def residual(b, shape, node):
    return Residual(b, shape, node), shape[-1]


class Gate(Around):
    """A branch that gates its input."""

    def __call__(self, x):
        return x * nnx.sigmoid(self.net(x))


@nnx_kind()
def gate(b, shape, node):
    return Gate(b, shape, node), shape[-1]


class Two(nnx.Module):
    """Two branches, multiplied or side by side."""

    def __init__(self, b, shape, nodes, keep):
        self.left, self.right = ((Kept if keep else Net)(b, n, shape) for n in nodes)
        self.keep = keep

    def __call__(self, x):
        y, z = self.left(x), self.right(x)
        return y * z if self.keep else jnp.concatenate([y, z.astype(y.dtype)], -1)


@nnx_kind()
def concat(b, shape, *nodes):
    two = Two(b, shape, nodes, False)
    return two, two.left.features + two.right.features


@nnx_kind()
def product(b, shape, *nodes):
    return Two(b, shape, nodes, True), shape[-1]


# A layer called several times.


class Repeated(Around):
    """One module, called several times."""

    def __init__(self, b, shape, node, times):
        super().__init__(b, shape, node)
        self.times = times

    def __call__(self, x):
        for _ in range(self.times):
            x = self.net(x)
        return x


@nnx_kind()
def shared(b, shape, times, node):
    return Repeated(b, shape, node, times), shape[-1]


class Sizes(nnx.Module):
    """One module, on inputs of two sizes."""

    def __init__(self, b, shape, node):
        self.net = Net(b, node, shape)

    def __call__(self, x):
        if x.ndim < 2:
            return self.net(x)
        return self.net(x) + self.net(2 * x.mean(-2, keepdims=True))


@nnx_kind()
def sizes(b, shape, node):
    part = Sizes(b, shape, node)
    return part, part.net.features


class Passed(nnx.Module):
    """Runs a module that was made outside of it."""

    def __init__(self, b, inner, n):
        self.inner, self.head = inner, nnx.Linear(n, n, **b.options)

    def __call__(self, x):
        return self.head(self.inner(x))


class PassedTwice(nnx.Module):
    """A module in the hands of two others: it has two names."""

    def __init__(self, b, shape, node):
        inner = Kept(b, node, shape)
        self.first = Passed(b, inner, shape[-1])
        self.second = Passed(b, inner, shape[-1])

    def __call__(self, x):
        return self.first(x) + self.second(0.5 * x)


@nnx_kind()
def passed(b, shape, node):
    return PassedTwice(b, shape, node), shape[-1]


# Parameters of a module around those of others.


class Gated(Around):
    """A parameter of its own around a module."""

    def __init__(self, b, shape, node, start, form):
        super().__init__(b, shape, node)
        own = () if form == "scalar" else shape[-1:]
        self.g = nnx.Param(jnp.full(own, start))

    def __call__(self, x):
        return x + (self.g[...] * self.net(x)).astype(x.dtype)


@nnx_kind()
def gated(b, shape, init, form, node):
    return Gated(b, shape, node, init, form), shape[-1]


@nnx_kind()
def lora(b, shape, rank, node):
    net = Net(b, node, shape)
    sizes = shape[-1], rank, net.features
    return nnx.LoRA(*sizes, base_module=net, **b.options), net.features


class Raw(nnx.Module):
    """Parameters of no unit, before a module or beside its inputs."""

    def __init__(self, b, shape, node, how):
        self.how = how
        steps, n = with_steps(shape)[-2:]
        given = with_steps(shape)
        if how == "positions":
            self.positions = nnx.Param(normal(b.rngs.params(), (steps, n)))
        elif how == "gain":
            self.gain = nnx.Param(jnp.ones(()))
        else:
            self.token = nnx.Param(normal(b.rngs.params(), (n,)))
            given = (*given[:-2], steps + 1, n)
        self.net = Kept(b, node, given)

    def __call__(self, x):
        if self.how == "positions":
            return self.net(x + self.positions[...].astype(x.dtype))
        if self.how == "gain":
            y = self.net(x)
            return y * self.gain[...].astype(y.dtype)
        token = self.token[...].astype(x.dtype)
        token = jnp.broadcast_to(token, (*x.shape[:-2], 1, x.shape[-1]))
        return self.net(jnp.concatenate([token, x], -2))[..., 1:, :]


@nnx_kind()
def raw(b, shape, how, node):
    return OverSteps(Raw(b, shape, node, how)), shape[-1]


class Looking(nnx.Module):
    """Looks at all parameters below it, among which is what is carried: refused."""

    def __init__(self, b, shape, node):
        self.net = Net(b, node, shape)

    def __call__(self, x):
        y = self.net(x)
        norm = size(nnx.state(self, nnx.Param))
        return y / (1 + norm).astype(y.dtype)


@nnx_kind(lambda c: (c.node(),))
def look(b, shape, node):
    part = Looking(b, shape, node)
    return part, part.net.features


class Raws(nnx.Module):
    """A kernel is read beside its layer's calls."""

    def __init__(self, b, n, features):
        self.up, self.dtype = nnx.Linear(n, features, **b.options), b.dtype

    def __call__(self, x):
        h = jnp.tanh(self.up(narrowed(self, x)))
        return h @ self.up.kernel[...].T.astype(h.dtype)


@nnx_kind()
def hand_tied(b, shape, features):
    return Raws(b, shape[-1], features), shape[-1]


class Forces(nnx.Module):
    """A derivative taken inside of the model."""

    def __init__(self, b, shape, node):
        self.net = Net(b, node, shape)

    def __call__(self, x):
        return jax.grad(lambda x: self.net(x).astype(jnp.float32).sum())(x)


@nnx_kind()
def forces(b, shape, node):
    return Forces(b, shape, node), shape[-1]
