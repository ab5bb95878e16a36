"""Paths into parameter trees, trees with other leaves, and patterns over paths."""

import zlib
from collections.abc import Container, Mapping, Sequence, Set
from fnmatch import fnmatchcase
from typing import Any

import jax
from flax import linen as nn
from jaxtyping import PyTree

Path = tuple[str, ...]
"""Where a leaf or a module lies: names from the outermost module on."""


def plain(tree: PyTree) -> PyTree:
    """Nested mappings (`FrozenDict` too) as nested dicts; leaves stay as they are."""
    if isinstance(tree, Mapping):
        return {name: plain(child) for name, child in tree.items()}
    return tree


def is_boxed(leaf: object) -> bool:
    """Whether a leaf is an `AxisMetadata` box such as `nn.Partitioned`."""
    return isinstance(leaf, nn.meta.AxisMetadata)


def unboxed(tree: PyTree) -> PyTree:
    """The tree as plain dicts, with arrays in the place of boxes."""
    return plain(nn.meta.unbox(plain(tree)))


def flatten(tree: PyTree) -> dict[Path, Any]:
    """Leaves by path, in the order in which jax flattens dicts (sorted names).

    Where a parameter is itself a pytree (a tuple of arrays), the keys of its leaves
    extend the path.
    """
    leaves, _ = jax.tree.flatten_with_path(plain(tree), is_leaf=is_boxed)
    return {key_path(path): leaf for path, leaf in leaves}


def check_arrays(params: PyTree, *, shapes: bool = False) -> None:
    """Raises where leaves of params are no arrays; `shapes` will do where asked for.

    Raises:
        TypeError: one is something else.
    """
    for path, leaf in jax.tree.flatten_with_path(plain(params))[0]:
        name = path_str(key_path(path))
        if isinstance(leaf, jax.ShapeDtypeStruct) and not shapes:
            raise TypeError(
                f"params at {name!r} hold a shape and no array, as jax.eval_shape "
                "returns them; pass model.init(key, inputs)['params']"
            )
        if not (hasattr(leaf, "dtype") and hasattr(leaf, "shape")):
            raise TypeError(
                f"params at {name!r} hold {leaf!r}, a {type(leaf).__name__}, expected "
                "an array: jnp.asarray(...)"
            )


def key_path(path: tuple[Any, ...]) -> Path:
    """The names of a path of jax keys."""
    return tuple(key_name(key) for key in path)


def key_name(key: Any) -> str:
    """The name of a jax key: that of a dict or a field, or an index."""
    return str(getattr(key, "key", getattr(key, "idx", getattr(key, "name", key))))


def path_str(path: Path, method: str = "__call__") -> str:
    """A path as users read and write it: "a/b", "wte/attend", "." for the model."""
    parts = path if method == "__call__" else (*path, method)
    return "/".join(parts) or "."


def path_number(path: Path) -> int:
    """A hash of a path, the same in every process, to fold into random keys."""
    return zlib.crc32(path_str(path).encode())


def path_key(key: jax.Array, path: Path) -> jax.Array:
    """The key by which the array of a path is drawn."""
    return jax.random.fold_in(key, path_number(path))


def owner_of(path: Path, values: Mapping[Path, Any], default: Any = None) -> Any:
    """The value of the outermost module with one that a leaf lies in, or the leaf's."""
    modules = (path[:i] for i in range(len(path) + 1))
    return next((values[module] for module in modules if module in values), default)


def is_under(path: Path, root: Path) -> bool:
    """Whether `path` is `root` or lies under it."""
    return path[: len(root)] == root


def with_leaves(tree: PyTree, entries: Mapping[Path, Any]) -> PyTree:
    """The tree with other arrays at some paths, of the same structure and boxes."""

    def pick(path: tuple[Any, ...], leaf: Any) -> Any:
        value = entries.get(key_path(path))
        if value is None:
            return leaf
        return leaf.replace_boxed(value) if is_boxed(leaf) else value

    return jax.tree.map_with_path(pick, tree, is_leaf=is_boxed)


def insert(tree: Mapping[str, Any], entries: Mapping[Path, Any]) -> dict[str, Any]:
    """A copy of a nested mapping with `entries` put at their paths."""
    copy = plain(tree)
    put_in_place(copy, entries)
    return copy


def put_in_place(tree: dict[str, Any], entries: Mapping[Path, Any]) -> None:
    """Puts `entries` at their paths into a nested dict itself."""
    for path, value in entries.items():
        node = tree
        for name in path[:-1]:
            node = node.setdefault(name, {})
        node[path[-1]] = value


def as_patterns(patterns: Any, name: str) -> tuple[str, ...]:
    """One pattern or several, as a tuple.

    Raises:
        TypeError: they are no strings; `name` is that of the argument.
    """
    if isinstance(patterns, str):
        return (patterns,)
    several = isinstance(patterns, Sequence | Set)
    if not several or not all(isinstance(p, str) for p in patterns):
        raise TypeError(
            f"{name} is {patterns!r}, expected a glob pattern of paths or several: "
            "'blocks_*/Dense_0'"
        )
    return tuple(patterns)


def select_names(
    names: Mapping[str, Any],
    include: tuple[str, ...] | None,
    exclude: tuple[str, ...],
) -> set[str]:
    """The names that `include` matches and `exclude` does not; None includes all.

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
    """For each name that a pattern matches, the value of the first such pattern.

    Patterns are globs over the whole path (`"blocks_*/Dense_0"`; `*` crosses `/`); one
    that is itself a name (`"b[1]"`) matches that alone.

    Raises:
        ValueError: a pattern matches no name.
    """
    for pattern in patterns:
        if not any(name_matches(name, pattern, names) for name in names):
            listing = ", ".join(list(names)[:12]) + (", ..." if len(names) > 12 else "")
            raise ValueError(
                f"pattern {pattern!r} matches no {what}; the {what}s are: {listing}. "
                "Patterns are globs over the whole path, such as '*/Dense_0'."
            )
    values = {}
    for name in names:
        matching = [p for p in patterns if name_matches(name, p, names)]
        if matching:
            values[name] = patterns[matching[0]]
    return values


def name_matches(name: str, pattern: str, names: Container[str]) -> bool:
    """Whether a pattern matches a name: it is the name, or a glob and none of `names`.

    A unit may be called `b[1]`, which as a glob is `b1`.
    """
    return name == pattern if pattern in names else fnmatchcase(name, pattern)
