"""Paths into parameter trees, trees with other leaves, and patterns over paths."""

import zlib
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import jax
from flax import linen as nn

Path = tuple[str, ...]


def plain(tree: Any) -> Any:
    """Nested mappings (`FrozenDict` too) as nested dicts; leaves stay as they are."""
    if isinstance(tree, Mapping):
        return {name: plain(child) for name, child in tree.items()}
    return tree


def is_boxed(leaf: Any) -> bool:
    """Whether a leaf is an `AxisMetadata` box such as `nn.Partitioned`."""
    return isinstance(leaf, nn.meta.AxisMetadata)


def unboxed(tree: Any) -> Any:
    """The tree with arrays in the place of boxes, in plain dicts."""
    return plain(nn.meta.unbox(plain(tree)))


def flatten(tree: Any) -> dict[Path, Any]:
    """Leaves by path, in the order in which jax flattens dicts (sorted names).

    Parameters that are themselves pytrees (a tuple of arrays) extend the path by the
    jax key.
    """
    leaves, _ = jax.tree.flatten_with_path(plain(tree), is_leaf=is_boxed)
    return {key_path(path): leaf for path, leaf in leaves}


def key_path(path: tuple) -> Path:
    """A path of jax keys as names."""
    return tuple(key_name(key) for key in path)


def key_name(key: Any) -> str:
    return str(getattr(key, "key", getattr(key, "idx", getattr(key, "name", key))))


def path_str(path: Path, method: str = "__call__") -> str:
    """A path as users read and write it: "a/b", "wte/attend", "." for the model."""
    parts = path if method == "__call__" else (*path, method)
    return "/".join(parts) or "."


def path_number(path: Path) -> int:
    """The number of a path, to draw by."""
    return zlib.crc32(path_str(path).encode())


def path_key(key: jax.Array, path: Path) -> jax.Array:
    """The key that an array of this path draws by."""
    return jax.random.fold_in(key, path_number(path))


def owner_of(path: Path, known: Mapping[Path, Any], default: Any = None) -> Any:
    """What is known of the outermost module that a leaf lies in."""
    above = (path[:i] for i in range(len(path)))
    return next((known[p] for p in above if p in known), default)


def is_under(path: Path, root: Path) -> bool:
    """Whether `path` is `root` or lies under it."""
    return path[: len(root)] == root


def with_leaves(tree: Any, entries: Mapping[Path, Any]) -> Any:
    """The tree with other arrays at some paths, of the same structure and boxes."""

    def pick(path: tuple, leaf: Any) -> Any:
        value = entries.get(key_path(path))
        if value is None:
            return leaf
        return leaf.replace_boxed(value) if is_boxed(leaf) else value

    return jax.tree.map_with_path(pick, tree, is_leaf=is_boxed)


def insert(tree: Mapping, entries: Mapping[Path, Any]) -> dict:
    """A copy of a nested mapping with `entries` put at their paths."""
    out = plain(tree)
    for path, value in entries.items():
        node = out
        for name in path[:-1]:
            node = node.setdefault(name, {})
        node[path[-1]] = value
    return out


def as_patterns(given: str | Sequence[str]) -> tuple[str, ...]:
    """One pattern or several, as a tuple."""
    return (given,) if isinstance(given, str) else tuple(given)


def select_names(
    names: Mapping[str, Any],
    include: tuple[str, ...] | None,
    exclude: tuple[str, ...],
) -> set[str]:
    """The names that patterns leave in; `include=None` takes all.

    Raises:
        ValueError: a pattern matches no name.
    """
    kept = set(names)
    if include is not None:
        kept = set(match_patterns(dict.fromkeys(include), names))
    return kept - set(match_patterns(dict.fromkeys(exclude), names))


def match_patterns(
    patterns: Mapping[str, Any], names: Mapping[str, Any], what: str = "unit"
) -> dict[str, Any]:
    """The value of the first pattern that matches each name, where one does.

    Patterns are globs over the whole path (`"blocks_*/Dense_0"`; `*` crosses `/`).

    Raises:
        ValueError: a pattern matches no name.
    """
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            listing = ", ".join(list(names)[:12]) + (", ..." if len(names) > 12 else "")
            raise ValueError(
                f"pattern {pattern!r} matches no {what}; the {what}s are: {listing}. "
                "Patterns are globs over the whole path, such as '*/Dense_0'."
            )
    first: Callable = lambda name: next(
        (p for p in patterns if fnmatchcase(name, p)), None
    )
    found = {name: first(name) for name in names}
    return {name: patterns[p] for name, p in found.items() if p is not None}
