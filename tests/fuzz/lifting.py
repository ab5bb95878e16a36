"""Kinds that are lifted transforms: loops, branches, mapped axes, rules."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from tests.fuzz.growing import Net, Node, kind, names, net, over_steps, size

one = lambda c: (c.node(),)
EACH: Any = {"params": True, "dropout": True}
STATES = {"batch_stats": 0, "intermediates": 0}
BOXES = {nn.PARTITION_NAME: "layers"}
"""The name of the new axis, for parameters in boxes."""


class Step(nn.Module):
    """A layer of a scan over layers, or a step of one over time."""

    node: Node
    dtype: str
    param_dtype: str

    @nn.compact
    def __call__(self, x, given):
        y = net(self, self.node, keeps=True)(x if given is None else x + given)
        return y, y


@kind(
    lambda c: (c.pick((2, 3)), c.pick((0, 1)), c.pick((False, True)), c.node()),
)
def scan(m, x, length, axis, remat, node):
    layers = nn.scan(
        nn.remat(Step) if remat else Step,
        variable_axes={"params": axis, **STATES},
        split_rngs=EACH,
        length=length,
        metadata_params=BOXES,
    )
    return layers(node, **names(m))(x, None)[0]


@kind(one, bans="state time")
def time(m, x, node):
    def run(x):
        steps = nn.scan(
            Step,
            variable_broadcast="params",
            split_rngs={"params": False, "dropout": True},
            in_axes=x.ndim - 2,
            out_axes=x.ndim - 2,
        )
        return steps(node, **names(m))(jnp.zeros_like(x[..., 0, :]), x)[1]

    return over_steps(run, x)


@kind(one)
def remat(m, x, node):
    return nn.remat(Net)(node, **names(m))(x)


@kind(one)
def jit(m, x, node):
    return nn.jit(Net)(node, **names(m))(x)


CachedNet = nn.jit(Net)


@kind(one)
def cached(m, x, node):
    for _ in range(2):
        x = CachedNet(node, keeps=True, **names(m))(x)
    return x


@kind(lambda c: (c.pick((2, 3)), c.pick((None, 0)), c.node()))
def members(m, x, count, in_axes, node):
    ensemble = nn.vmap(
        Net,
        variable_axes={"params": 0, **STATES},
        split_rngs=EACH,
        in_axes=in_axes,
        axis_size=count,
        metadata_params=BOXES,
    )
    given = x if in_axes is None else jnp.stack([x] * count)
    return ensemble(node, **names(m))(given).mean(0)


@kind(one, bans="state")
def each(m, x, node):
    rows = nn.vmap(
        Net,
        variable_axes={"params": None},
        split_rngs={"params": False, "dropout": True},
    )
    return rows(node, **names(m))(x) if x.ndim > 1 else net(m, node)(x)


class Branches(nn.Module):
    """One of several modules is run, by `nn.cond` or `nn.switch`."""

    nodes: tuple[Node, ...]
    dtype: str
    param_dtype: str

    def setup(self):
        self.parts = [net(self, node, keeps=True) for node in self.nodes]

    def __call__(self, x, index):
        if self.is_initializing():
            first, *_ = [part(x) for part in self.parts]
            return first
        runs: Any = [lambda s, x, i=i: s.parts[i](x) for i in range(len(self.nodes))]
        if len(runs) == 2:
            return nn.cond(index == 0, *runs, self, x)
        return nn.switch(index, runs, self, x)


@kind(lambda c: (c.pick((True, False)), c.node(), c.node()), bans="state")
def cond(m, x, known, *nodes):
    index = jnp.array(0) if known else (x.sum() > 0).astype(jnp.int32)
    return Branches(nodes, **names(m))(x, index)


@kind(lambda c: (c.pick((0, 1, 2)), c.node(), c.node(), c.node()), bans="state")
def switch(m, x, index, *nodes):
    return Branches(nodes, **names(m))(x, jnp.array(index))


CHANGES: dict[str, Callable] = {
    "same": lambda t: t,
    "double": lambda t: jax.tree.map(lambda g: 2 * g, t),
    "sign": lambda t: jax.tree.map(jnp.sign, t),
    "clip": lambda t: jax.tree.map(lambda g: jnp.clip(g, -0.01, 0.01), t),
}


@kind(lambda c: (c.pick(("same", "double")), c.node()), bans="state random")
def lifted_vjp(m, x, change, node):
    """A reverse rule around a module, which changes gradients of its parameters."""
    run = lambda module, x: module(x)

    def backward(transpose, g):
        of_params, *of_inputs = transpose(g)
        return (CHANGES[change](of_params), *of_inputs)

    forward = lambda module, x: nn.vjp(run, module, x)
    lifted = nn.custom_vjp(run, forward_fn=forward, backward_fn=backward)
    return lifted(net(m, node), x)


@kind(lambda c: (c.pick(("sign", "clip")), c.node()), bans="state random")
def bent_vjp(m, x, change, node):
    """The same, with a change that is not linear."""
    return lifted_vjp(m, x, change, node)


MAPS: dict[str, Callable] = {
    "double": lambda t: jax.tree.map(lambda w: 2 * w, t),
    "clip": lambda t: jax.tree.map(lambda w: jnp.clip(w, -0.5, 0.5), t),
    "tanh": lambda t: jax.tree.map(jnp.tanh, t),
    "global": lambda t: jax.tree.map(lambda w: w / (1e-3 + size(t)), t),
    "round": lambda t: jax.tree.map(
        lambda w: w + jax.lax.stop_gradient(jnp.round(8 * w) / 8 - w), t
    ),
}


@kind(lambda c: (c.pick(tuple(MAPS)), c.pick(("params", True)), c.node()))
def mapped(m, x, how, collections, node):
    """Parameters, or all variables, that are transformed on their way to a module."""
    first = m.is_initializing()
    lifted = nn.map_variables(Net, collections, MAPS[how], init=first, mutable=first)
    return lifted(node, **names(m))(x)
