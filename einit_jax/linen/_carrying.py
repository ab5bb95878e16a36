"""Entries that are carried to units inside of `params`.

Lifted transforms of Flax carry the collections that they list, nearly always `params`
alone. Whatever must reach a unit therefore travels inside `params`, in one reserved
entry beside the unit's own arrays, and is split along the same axes as they are.
"""

from collections.abc import Mapping
from typing import Any

import jax
from flax.core import FrozenDict
from jaxtyping import Array

from ..core import Params, Path, insert, is_float, key_name
from ..units import UnitKey

CARRIED = "einit:"
"""Prefix of every reserved entry; no Flax module can be named so."""


def carry_entries(params: Params, name: str, entries: Mapping[UnitKey, Any]) -> dict:
    """A copy of params with each unit's entry beside its parameters, by its method."""
    carried: dict[Path, dict] = {}
    for (path, method), entry in entries.items():
        carried.setdefault((*path, CARRIED + name), {})[method] = entry
    return insert(params, carried)


def is_carried(path: tuple) -> bool:
    """Whether a path of jax keys leads into a reserved entry."""
    return any(key_name(key).startswith(CARRIED) for key in path)


def without_carried(tree: Any) -> Any:
    """The tree without its reserved entries."""
    if isinstance(tree, Mapping):
        kept = {k: v for k, v in tree.items() if not str(k).startswith(CARRIED)}
        inner = {k: without_carried(v) for k, v in kept.items()}
        return FrozenDict(inner) if isinstance(tree, FrozenDict) else inner
    return tree


def uncarried_floats(variables: Any) -> list[Array]:
    """A module's own floating parameters (or their gradients), in order of paths."""
    leaves, _ = jax.tree.flatten_with_path(variables)
    return [leaf for path, leaf in leaves if not is_carried(path) and is_float(leaf)]
