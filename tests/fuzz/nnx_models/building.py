"""How a model of NNX is built from a node: its layers must know what they are given.

A kind's function takes what layers are made with, the shape (..., features) of what
they will be given, and the arguments of the node. It returns a callable module and how
many features come out; all axes but the last one keep their sizes.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax.numpy as jnp
from flax import nnx

from tests.fuzz.growing import (
    KINDS,
    NNX_KINDS,
    Chooser,
    Kind,
    Node,
    narrowed,
    over_steps,
)

Shape = tuple[int, ...]
Made = tuple[Any, int]
"""A callable module, and how many features come out."""


@dataclass(frozen=True)
class Builder:
    """What layers are made with."""

    rngs: nnx.Rngs
    dtype: str
    param_dtype: str

    @property
    def options(self) -> dict[str, Any]:
        """The keywords of all layers."""
        dtype = None if self.dtype == "float32" else jnp.dtype(self.dtype)
        kinds = {"dtype": dtype, "param_dtype": jnp.dtype(self.param_dtype)}
        return kinds | {"rngs": self.rngs}

    def draw(self, init: Callable, *shape: int) -> nnx.Param:
        """A parameter."""
        dtype = jnp.dtype(self.param_dtype)
        return nnx.Param(init(self.rngs.params(), shape, dtype))


def nnx_kind(
    draw: Callable[[Chooser], tuple] | None = None, *, tags: str = "", bans: str = ""
) -> Callable:
    """Registers a function as the kind of its name.

    Where nothing is said of it, it is drawn as Linen's kind of that name.
    """

    def register(make: Callable) -> Callable:
        name = make.__name__.removesuffix("_")
        assert name not in NNX_KINDS, name
        words = lambda text: frozenset(text.split())
        if name in KINDS:
            own = KINDS[name]
            own = replace(own, grow=make, draw=draw or own.draw)
        else:
            own = Kind(make, draw or (lambda c: ()), words(tags), words(bans))
        NNX_KINDS[name] = own
        return make

    return register


def made(b: Builder, node: Node, shape: Shape) -> Made:
    """The module of a node."""
    name, *arguments = node
    return NNX_KINDS[name].grow(b, shape, *arguments)


class Fit(nnx.Module):
    """Gives an array as many features as another, and its dtype."""

    def __init__(self, b: Builder, n_in: int, n_out: int):
        same = n_in == n_out
        self.linear = None if same else nnx.Linear(n_in, n_out, **b.options)

    def __call__(self, y, x):
        y = y if self.linear is None else self.linear(y)
        return y.astype(x.dtype)


class Net(nnx.Module):
    """A module that is built from a node."""

    inner: Any

    def __init__(self, b: Builder, node: Node, shape: Shape):
        self.inner, self.features = made(b, node, shape)

    def __call__(self, x):
        return self.inner(x)

    def encode(self, x):
        """Another way in."""
        return self(x)


class Kept(Net):
    """The same, with outputs of the shape and dtype of the inputs."""

    def __init__(self, b: Builder, node: Node, shape: Shape):
        super().__init__(b, node, shape)
        self.fit = Fit(b, self.features, shape[-1])
        self.features = shape[-1]

    def __call__(self, x):
        return self.fit(self.inner(x), x)


class Applied(nnx.Module):
    """A function without parameters."""

    def __init__(self, function: Callable):
        self.function = function

    def __call__(self, x):
        return self.function(x)


class OverSteps(nnx.Module):
    """A layer of (batch, steps, features), given what has fewer axes."""

    def __init__(self, layer: Any):
        self.layer = layer

    def __call__(self, x):
        return over_steps(self.layer, x)


class Narrowed(nnx.Module):
    """A layer whose inputs are in the dtype of the model."""

    def __init__(self, b: Builder, layer: Any):
        self.layer, self.dtype = layer, b.dtype

    def __call__(self, x):
        return self.layer(narrowed(self, x))


def with_steps(shape: Shape) -> Shape:
    """The shape (batch, steps, features) that `over_steps` hands on."""
    ones = {1: (1, 1), 2: (shape[0], 1)}.get(len(shape), shape[:-1])
    return (*ones, shape[-1])


def raw_value(leaf: Any) -> Any:
    """What a variable holds; an array that is in none as it is."""
    return leaf.get_value() if isinstance(leaf, nnx.Variable) else leaf


def by_names(params: Mapping, state: nnx.State) -> nnx.State:
    """A state with the values of nested dicts, whose keys are strings."""
    found = {}
    for keys, leaf in nnx.to_flat_state(state):
        value: Any = params
        for key in keys:
            value = value[str(key)]
        found[keys] = leaf.replace(value)
    return nnx.from_flat_state(found)


def named(state: nnx.State) -> dict[str, Any]:
    """A state as nested dicts of arrays, whose keys are strings."""

    def plain(tree: Any) -> Any:
        if isinstance(tree, Mapping):
            return {str(key): plain(value) for key, value in tree.items()}
        return tree

    return plain(nnx.to_pure_dict(state))
