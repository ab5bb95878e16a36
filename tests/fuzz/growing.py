"""How a model grows out of plain data: kinds of nodes, and the module that reads them.

A node is a tuple `(kind, *arguments)`, whose arguments are numbers, strings and further
nodes, so that it is hashable, prints as it is written, and makes one and the same model
each time. A kind's function takes the module that it runs in, an array (..., features)
and the arguments; all axes but the last one keep their sizes.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp

Node = tuple


class Chooser(Protocol):
    """Where random choices come from."""

    def pick(self, options: Sequence) -> Any:
        """One of the options; of two examples that fail, the earlier is simpler."""
        ...

    def node(self) -> Node:
        """A node to put inside of the one that is drawn."""
        ...


@dataclass(frozen=True)
class Kind:
    """How a kind of node runs, and how its arguments are drawn."""

    grow: Callable
    draw: Callable[[Chooser], tuple]
    tags: frozenset[str]
    bans: frozenset[str]
    """Tags of what may not be inside."""


KINDS: dict[str, Kind] = {}
NNX_KINDS: dict[str, Kind] = {}
"""Those that NNX has; where both have one, its arguments are drawn alike."""
LEAF, STATE, TIME = "leaf", "state", "time"
"""Tags: nothing is inside; variables besides parameters; shapes that hang on steps."""
WIDTHS = (4, 8, 1, 3)


def kind(
    draw: Callable[[Chooser], tuple] = lambda c: (), *, tags: str = "", bans: str = ""
) -> Callable:
    """Registers a function as the kind of its name."""

    def register(grow: Callable) -> Callable:
        name = grow.__name__.removesuffix("_")
        assert name not in KINDS, name
        words = lambda text: frozenset(text.split())
        KINDS[name] = Kind(grow, draw, words(tags), words(bans))
        return grow

    return register


def kinds_of(library: str) -> dict[str, Kind]:
    """The kinds of "linen" or of "nnx"."""
    return {"linen": KINDS, "nnx": NNX_KINDS}[library]


def is_node(value: Any) -> bool:
    """Whether an argument is a node."""
    known = isinstance(value, tuple) and bool(value) and isinstance(value[0], str)
    return known and (value[0] in KINDS or value[0] in NNX_KINDS)


def inside(node: Node) -> Iterator[Node]:
    """The node and all nodes inside of it."""
    yield node
    for value in node[1:]:
        if is_node(value):
            yield from inside(value)


class Net(nn.Module):
    """A module that builds itself from a node."""

    node: Node
    dtype: str = "float32"
    param_dtype: str = "float32"
    keeps: bool = False
    """Whether the output is to have the shape and dtype of the input."""

    @nn.compact
    def __call__(self, x):
        y = grown(self, self.node, x)
        return like(self, y, x) if self.keeps else y

    def encode(self, x):
        """Another way in."""
        return self(x)


def grown(m: Any, node: Node, x: jax.Array) -> jax.Array:
    """The array as it comes out of a node, whose layers are made in the module m."""
    name, *arguments = node
    return KINDS[name].grow(m, x, *arguments)


def dtypes(m: Any) -> dict[str, Any]:
    """The keywords of all layers that are made in a module."""
    dtype = None if m.dtype == "float32" else jnp.dtype(m.dtype)
    return {"dtype": dtype, "param_dtype": jnp.dtype(m.param_dtype)}


def narrowed(m: Any, x: jax.Array) -> jax.Array:
    """The array in the dtype of a module; where it is float32, in as many bits as it
    has, so that all of a model widens with its parameters."""
    return x if m.dtype == "float32" else x.astype(m.dtype)


def names(m: Any) -> dict[str, Any]:
    """The same, as modules of the grammar take them."""
    return {"dtype": m.dtype, "param_dtype": m.param_dtype}


def net(m: Any, node: Node, keeps: bool = False) -> Net:
    """A module inside of m that builds itself from a node."""
    return Net(node, keeps=keeps, **names(m))


def like(m: Any, y: jax.Array, x: jax.Array) -> jax.Array:
    """The array with as many features as another, and of its dtype."""
    if y.shape[-1] != x.shape[-1]:
        y = nn.Dense(x.shape[-1], **dtypes(m))(y)
    return y.astype(x.dtype)


def over_steps(function: Callable, x: jax.Array) -> jax.Array:
    """A function of (batch, steps, features), of whatever comes with fewer axes."""
    if x.ndim >= 3:
        return function(x)
    if x.ndim == 2:
        return function(x[:, None])[:, 0]
    return function(x[None, None])[0, 0]


def size(tree: Any) -> jax.Array:
    """The square root of the sum of squares of all leaves."""
    squares = [
        jnp.sum(jnp.square(jnp.abs(v.astype(jnp.float32)))) for v in leaves(tree)
    ]
    return jnp.sqrt(sum(squares, jnp.float32(0)))


def leaves(tree: Any) -> list[jax.Array]:
    """The floating leaves, real ones."""
    floats = [v for v in jax.tree.leaves(tree) if hasattr(v, "dtype")]
    return [v for v in floats if jnp.issubdtype(v.dtype, jnp.floating)]
