"""The `scales` that users see: a factor tree, and what does not fit a model."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import jax.numpy as jnp

from ..core import (
    Path,
    as_number,
    describe,
    fits_layers,
    flatten,
    is_under,
    lifted_axes_of,
    path_str,
    plain,
)
from ._unit import ModelGraph, Unit, UnitKey

FACTORS = ("output", "input_grad", "output_grad")
"""The names of a, b and c."""


UPDATE = "update"
"""The name of a fourth factor, which multiplies an optimizer's updates."""


NUMBERED_CLASS = re.compile(r"[A-Z]\w*_\d+")
"""How Flax names modules that were given no name; no method is called like this."""


def ones(units: Iterable[Unit]) -> dict[UnitKey, dict[str, Any]]:
    """Factors of 1 for every unit."""
    return {
        u.key: {name: jnp.ones(u.carried_shape, jnp.float32) for name in FACTORS}
        for u in units
    }


def outputs_alone(
    factors: Mapping[UnitKey, Mapping[str, Any]],
) -> dict[UnitKey, dict[str, Any]]:
    """The factors a as they are, and b = c = 1: gradients of the plain model."""
    gradients = lambda own: dict.fromkeys(FACTORS, jnp.ones_like(own["output"]))
    return {
        key: gradients(own) | {"output": own["output"]} for key, own in factors.items()
    }


def to_tree(values: Mapping[UnitKey, Mapping[str, Any]]) -> dict:
    """The values as the nested dict that users see, `__call__` left unsaid."""
    tree: dict = {}
    for (path, method), value in values.items():
        node = tree
        for name in path if method == "__call__" else (*path, method):
            node = node.setdefault(name, {})
        node.update(value)
    return tree


def from_tree(tree: Any, params: Mapping) -> dict[UnitKey, dict[str, Any]]:
    """The values of each unit in a nested dict, told from modules by `params`.

    Those of raw parameters are left out; `raw_from_tree` reads them.

    Raises:
        TypeError: it is no mapping, or a factor no number.
        ValueError: an entry is of no module of `params`, or has not the three factors
            (and `update`, where others have it).
    """
    if not isinstance(tree, Mapping):
        raise TypeError(
            f"scales are {describe(tree)}, a {type(tree).__name__}, expected the dict "
            "that tune returned"
        )
    values: dict[UnitKey, dict[str, Any]] = {}
    _collect(plain(tree), params, (), values)
    above = {path[:i] for path, _ in values for i in range(len(path))}
    nested = [path_str(*kind) for kind in values if kind[0] in above]
    if nested:
        raise ValueError(
            f"scales at {nested[0]!r} have units below them, so it is no unit; they "
            "belong to another model; tune this one"
        )
    with_update = {UPDATE in own for own in values.values()}
    if len(with_update) > 1:
        lacking = next(path_str(*k) for k, own in values.items() if UPDATE not in own)
        raise ValueError(
            f"scales at {lacking!r} lack {UPDATE}, which others have; pass what tune "
            "returned"
        )
    return values


RAW_FACTORS = ("output_grad", UPDATE)
"""The names of the factors that a raw parameter can have."""


def raw_from_tree(tree: Any, params: Mapping) -> dict[Path, dict[str, Any]]:
    """The factors of raw parameters in the scales, by path.

    Raises:
        ValueError: one is for other layers than the parameter has.
    """
    found: dict[Path, dict[str, Any]] = {}
    for path, leaf in flatten(params).items():
        node = tree
        for name in path:
            node = node.get(name) if isinstance(node, Mapping) else None
        if not isinstance(node, Mapping):
            continue
        found[path] = dict(node)
        for factor in node.values():
            if not fits_layers(jnp.shape(leaf), lifted_axes_of(jnp.shape(factor))):
                raise ValueError(
                    f"scales at {path_str(path)!r} have the factor {describe(factor)} "
                    f"for layers that the parameter, of shape {jnp.shape(leaf)}, has "
                    "not; tune this model"
                )
    return found


def _is_raw_entry(child: Mapping, value: Any) -> bool:
    """Whether an entry of scales is of a raw parameter, or of a pytree of them."""
    if value is None or isinstance(value, Mapping):
        return False
    leaves = flatten(child)
    numbers = (as_number(x) is not None or hasattr(x, "dtype") for x in leaves.values())
    return all(path[-1] in RAW_FACTORS for path in leaves) and all(numbers)


def _collect(node: Mapping, params: Any, path: Path, values: dict) -> None:
    if _has_factors(node):
        values[(path, "__call__")] = _read_factors(node, path_str(path))
    for name, child in node.items():
        if not isinstance(child, Mapping):
            if name not in (*FACTORS, UPDATE):
                raise ValueError(
                    f"scales at {path_str(path)!r} have an entry {name!r}, expected "
                    f"only {', '.join((*FACTORS, UPDATE))}; pass what tune returned"
                )
            continue
        if isinstance(params.get(name), Mapping):
            _collect(child, params[name], (*path, name), values)
        elif _is_raw_entry(child, params.get(name)):
            continue  # see `raw_from_tree`
        elif _has_factors(child) and may_be_method(name, params, _has_factors(node)):
            values[(path, name)] = _read_factors(child, path_str(path, name))
        elif child:
            raise ValueError(
                f"scales have an entry {path_str((*path, name))!r}, which is no module "
                "of these params: they belong to another model; tune this one"
            )


def may_be_method(name: str, module: Any, is_called: bool) -> bool:
    """Whether an entry that is no module of the params can be a method of one.

    Args:
        name: of the entry.
        module: what the params have where the entry lies.
        is_called: whether that module has an entry for `__call__`, too.
    """
    children = module.values() if isinstance(module, Mapping) else ()
    owns_arrays = any(not isinstance(child, Mapping) for child in children)
    return (owns_arrays or is_called) and not NUMBERED_CLASS.fullmatch(name)


def _has_factors(node: Mapping) -> bool:
    return any(not isinstance(node.get(name, {}), Mapping) for name in FACTORS)


def _read_factors(node: Mapping, where: str) -> dict[str, Any]:
    lacking = [name for name in FACTORS if name not in node]
    if lacking:
        raise ValueError(
            f"scales at {where!r} lack {', '.join(lacking)}; pass what tune returned"
        )
    own = {name: node[name] for name in (*FACTORS, UPDATE) if name in node}
    for name, factor in own.items():
        if as_number(factor) is None and not hasattr(factor, "dtype"):
            raise TypeError(
                f"scales at {where!r}: {name} is {describe(factor)}, expected a number "
                "or an array of one for each layer; pass what tune returned"
            )
    return own


def check_missing(graph: ModelGraph, factors: Mapping[UnitKey, Any]) -> None:
    """Raises where a unit of this call has no factors."""
    lacking = [u.name for u in graph.units if u.key not in factors]
    if lacking:
        raise ValueError(
            f"scales are missing for {', '.join(lacking[:8])}: they were tuned for "
            "another model or another method; tune with the method that is applied"
        )


def check_foreign(graph: ModelGraph, factors: Mapping[UnitKey, Any]) -> None:
    """Raises where factors are of no unit of this call, or of other layers."""
    shapes = {u.key: u.carried_shape for u in graph.units}
    foreign = [path_str(*key) for key in factors if key not in shapes]
    if foreign:
        raise ValueError(
            f"scales have entries of no unit of this model: {', '.join(foreign[:8])}; "
            "they were tuned for another model or method; tune this one"
        )
    for key, own in factors.items():
        for name, factor in own.items():
            if jnp.shape(factor) != shapes[key]:
                raise ValueError(
                    f"scales at {path_str(*key)!r}: {name} has the shape "
                    f"{jnp.shape(factor)}, expected {shapes[key]}; tune this model"
                )


def may_lack(params: Mapping, factors: Mapping[UnitKey, Any]) -> bool:
    """Whether some module owns parameters and no unit with factors is near it."""
    tuned = {path for path, _ in factors}
    around = tuned | {path[:i] for path in tuned for i in range(len(path))}
    owners = {path[:-1] for path in flatten(params)}
    return any(
        owner not in around and not any(is_under(owner, path) for path in tuned)
        for owner in owners
    )
