"""Modules and variables of NNX's graph, by path."""

from collections.abc import Mapping
from typing import Any

import jax
from flax import nnx

from ..core import Path, flatten

NnxModule = nnx.Module
Keys = tuple[Any, ...]
"""A path as NNX writes it: attributes, and numbers in lists."""
USER_TYPE = "_einit_user_type"
"""The attribute of a hooked class that holds the one it was made of."""


def rngs_of(key: jax.Array) -> nnx.Rngs:
    """Random streams that begin with a key, raw or typed."""
    return nnx.Rngs(key)


def raw_value(leaf: Any) -> Any:
    """What a variable holds; anything else as it is."""
    return leaf.get_raw_value() if isinstance(leaf, nnx.Variable) else leaf


def is_node(value: Any) -> bool:
    """Whether a value is a module or another object of NNX's graph, no variable."""
    return isinstance(value, nnx.Pytree)


def at_keys(node: Any, keys: Keys) -> Any:
    """What lies at a path below a node, or in a nested dict."""
    for key in keys:
        by_name = isinstance(key, str) and is_node(node)
        node = getattr(node, key) if by_name else node[key]
    return node


def path_of_keys(keys: Keys) -> Path:
    """A path by its names, as everything above knows it."""
    return tuple(map(str, keys))


def leaves_of(value: Any) -> list[tuple[Path, Any]]:
    """The arrays of what a variable holds, by the path below it."""
    return [(path[1:], leaf) for path, leaf in flatten({"": value}).items()]


def with_value(leaf: Any, value: Any) -> Any:
    """A new variable like another one; a value that is in none as it is."""
    if not isinstance(leaf, nnx.Variable):
        return value
    return type(leaf).from_metadata(value, leaf.get_metadata())


def as_nested(tree: Any) -> Any:
    """A state or nested mapping as nested dicts of arrays, its keys as strings."""
    tree = raw_value(tree)
    if isinstance(tree, Mapping):
        return {str(key): as_nested(child) for key, child in tree.items()}
    return tree


def nodes_of(module: Any) -> list[tuple[Keys, Any]]:
    """The modules and other objects of a graph, each at its first path."""
    return [(keys, node) for keys, node in nnx.iter_graph(module) if is_node(node)]


def user_type(node: Any) -> type:
    """The user's own class of a module, whatever hooks it has."""
    return getattr(type(node), USER_TYPE, type(node))
