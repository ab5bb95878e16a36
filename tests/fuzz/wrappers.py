"""Kinds that have others inside: nestings, repeated calls, parameters around."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from tests.fuzz.growing import (
    WIDTHS,
    Net,
    Node,
    dtypes,
    grown,
    kind,
    like,
    names,
    net,
    over_steps,
    size,
)

lecun = nn.initializers.lecun_normal()
one = lambda c: (c.node(),)


# Nesting.


@kind(lambda c: tuple(c.node() for _ in range(c.pick((2, 3)))))
def seq(m, x, *nodes):
    for node in nodes:
        x = grown(m, node, x)
    return x


@kind(one)
def block(m, x, node):
    return net(m, node)(x)


@kind(lambda c: (c.node(), c.node()))
def sequential(m, x, *nodes):
    return nn.Sequential([net(m, node) for node in nodes])(x)


@kind(one)
def encode(m, x, node):
    return net(m, node).encode(x)


@kind(one)
def residual(m, x, node):
    return x + net(m, node, keeps=True)(x)


@kind(one)
def gate(m, x, node):
    return x * nn.sigmoid(net(m, node, keeps=True)(x))


@kind(lambda c: (c.node(), c.node()))
def concat(m, x, left, right):
    return jnp.concatenate([net(m, left)(x), net(m, right)(x).astype(x.dtype)], -1)


@kind(lambda c: (c.node(), c.node()))
def product(m, x, left, right):
    return net(m, left, keeps=True)(x) * net(m, right, keeps=True)(x)


class Listed(nn.Module):
    """Modules that `setup` makes, called one after the other."""

    nodes: tuple[Node, ...]
    dtype: str
    param_dtype: str

    def setup(self):
        self.parts = [net(self, node) for node in self.nodes]

    def __call__(self, x):
        for part in self.parts:
            x = part(x)
        return x


@kind(lambda c: (c.node(), c.node()))
def listed(m, x, *nodes):
    return Listed(nodes, **names(m))(x)


# A layer called several times.


@kind(lambda c: (c.pick((2, 3)), c.node()))
def shared(m, x, times, node):
    layer = net(m, node, keeps=True)
    for _ in range(times):
        x = layer(x)
    return x


@kind(one, bans="time")
def sizes(m, x, node):
    """The same, on inputs of two sizes."""
    layer = net(m, node)
    if x.ndim < 2:
        return layer(x)
    return layer(x) + layer(2 * x.mean(-2, keepdims=True))


class Passed(nn.Module):
    """Runs a module that was made outside of it."""

    inner: nn.Module

    @nn.compact
    def __call__(self, x):
        return nn.Dense(x.shape[-1])(self.inner(x))


@kind(one)
def passed(m, x, node):
    inner = net(m, node, keeps=True)
    return Passed(inner)(x) + Passed(inner)(0.5 * x)


# Parameters of a module around those of others.


class Gated(nn.Module):
    """A parameter of its own around a module made outside."""

    inner: nn.Module
    start: float
    form: str

    @nn.compact
    def __call__(self, x):
        shape = () if self.form == "scalar" else x.shape[-1:]
        g = self.param("g", nn.initializers.constant(self.start), shape)
        return x + (g * self.inner(x)).astype(x.dtype)


@kind(lambda c: (c.pick((1.0, 0.0, 0.1)), c.pick(("scalar", "vector")), c.node()))
def gated(m, x, init, shape, node):
    return Gated(net(m, node, keeps=True), init, shape)(x)


class Lora(nn.Module):
    """A product of two narrow matrices beside a layer."""

    inner: nn.Module
    rank: int
    shares: bool

    def setup(self):
        if self.shares:
            nn.share_scope(self, self.inner)

    @nn.compact
    def __call__(self, x):
        y = self.inner(x)
        a = self.param("lora_a", lecun, (x.shape[-1], self.rank))
        b = self.param("lora_b", lecun, (self.rank, y.shape[-1]))
        return y + (x @ a @ b).astype(y.dtype)


@kind(lambda c: (c.pick((1, 2)), c.node()))
def lora(m, x, rank, node):
    return Lora(net(m, node), rank, False)(x)


@kind(lambda c: (c.pick((1, 2)), c.pick(WIDTHS)), tags="leaf")
def shared_scope(m, x, rank, features):
    return Lora(nn.Dense(features, **dtypes(m)), rank, True)(x)


class Raw(nn.Module):
    """Parameters of no unit, before a module or beside its inputs."""

    how: str
    node: Node
    dtype: str
    param_dtype: str

    @nn.compact
    def __call__(self, x):
        inner = net(self, self.node, keeps=True)
        normal = nn.initializers.normal(1.0)
        if self.how == "positions":
            return inner(
                x + self.param("positions", normal, x.shape[-2:]).astype(x.dtype)
            )
        if self.how == "gain":
            y = inner(x)
            return y * self.param("gain", nn.initializers.ones, ()).astype(y.dtype)
        token = self.param("token", normal, x.shape[-1:]).astype(x.dtype)
        token = jnp.broadcast_to(token, (*x.shape[:-2], 1, x.shape[-1]))
        return inner(jnp.concatenate([token, x], -2))[..., 1:, :]


@kind(lambda c: (c.pick(("positions", "gain", "token")), c.node()), tags="time")
def raw(m, x, how, node):
    return over_steps(Raw(how, node, **names(m)), x)


class Looking(nn.Module):
    """Looks at all of its own parameters."""

    how: str
    node: Node
    dtype: str
    param_dtype: str

    @nn.compact
    def __call__(self, x):
        y = net(self, self.node)(x)
        own = self.variables.get("params", {})
        count, norm = len(jax.tree.leaves(own)), size(own)
        if self.how == "sow":
            self.sow("intermediates", "look", {"count": jnp.array(count), "norm": norm})
            return y
        if self.how == "count":
            return y + jnp.asarray(0.01 * count, y.dtype)
        keep = 1 if self.how == "penalty" else 0
        norm = keep * norm + (1 - keep) * jax.lax.stop_gradient(norm)
        return y / (1 + norm).astype(y.dtype)


@kind(lambda c: (c.pick(("sow", "count", "norm")), c.node()), tags="state")
def look(m, x, how, node):
    return Looking(how, node, **names(m))(x)


@kind(one)
def penalty(m, x, node):
    """A norm of parameters has a part in the outputs, with its gradient."""
    return Looking("penalty", node, **names(m))(x)


class Raws(nn.Module):
    """A kernel is read beside its layer's calls."""

    features: int
    dtype: str
    param_dtype: str

    def setup(self):
        self.up = nn.Dense(self.features, **dtypes(self))

    def __call__(self, x):
        h = jnp.tanh(self.up(x))
        return h @ self.up.variables["params"]["kernel"].T.astype(h.dtype)


@kind(lambda c: (c.pick(WIDTHS),), tags="leaf")
def hand_tied(m, x, features):
    return Raws(features, **names(m))(x)


@kind(one, bans="state")
def forces(m, x, node):
    """A derivative taken inside of the model."""
    inner = net(m, node)
    if m.is_initializing():
        return like(m, inner(x), x)
    return jax.grad(lambda x: inner(x).astype(jnp.float32).sum())(x)


class Hyper(nn.Module):
    """The parameters of another model as its own."""

    node: Node
    dtype: str
    param_dtype: str

    @nn.compact
    def __call__(self, x):
        inner = Net(self.node, parent=None, **names(self))
        keys = lambda key: {"params": key, "dropout": key}
        start = lambda key: inner.init(keys(key), x).get("params", {})
        own: Any = self.param("own", start)
        return inner.apply({"params": own}, x, rngs={"dropout": jax.random.key(0)})


@kind(one, bans="state")
def hyper(m, x, node):
    return Hyper(node, **names(m))(x)
