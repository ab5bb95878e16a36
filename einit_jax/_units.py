"""From a graph of units to trees of values, one per unit, and back."""

import itertools
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ._graph import Unit
from ._lift import fronted, spread
from ._math import is_float, multiply, rms
from ._paths import Path, flatten, insert, is_ride, nearest, plain, show, unboxed

FACTORS = ("output", "input_grad", "output_grad")
"""The names of a, b and c."""
UPDATE = "update"
"""The name of a fourth factor, which multiplies an optimizer's updates."""
Kind = tuple[Path, str]
"""A unit's key: its path and the method through which it is called."""


def kind_of(unit: Unit) -> Kind:
    """The key of a unit in dicts of values."""
    return unit.path, unit.method


def ones(units: Iterable[Unit]) -> dict[Kind, dict[str, Any]]:
    """Factors of 1 for every unit."""
    return {
        kind_of(u): {name: jnp.ones(u.ride_shape, jnp.float32) for name in FACTORS}
        for u in units
    }


def to_tree(values: Mapping[Kind, Mapping[str, Any]]) -> dict:
    """The values as the nested dict that users see, `__call__` left unsaid."""
    tree: dict = {}
    for (path, method), value in values.items():
        node = tree
        for name in path if method == "__call__" else (*path, method):
            node = node.setdefault(name, {})
        node.update(value)
    return tree


def from_tree(tree: Mapping, params: Mapping) -> dict[Kind, dict[str, Any]]:
    """The values of each unit in a nested dict, told from modules by `params`.

    Raises:
        ValueError: an entry is of no module of `params`, or has not the three factors
            (and `update`, where others have it).
    """
    values: dict[Kind, dict[str, Any]] = {}
    _collect(plain(tree), params, (), values)
    above = {path[:i] for path, _ in values for i in range(len(path))}
    nested = [show(*kind) for kind in values if kind[0] in above]
    if nested:
        raise ValueError(
            f"scales at {nested[0]!r} have units below them, so it is no unit; they "
            "belong to another model; tune this one"
        )
    with_update = {UPDATE in own for own in values.values()}
    if len(with_update) > 1:
        lacking = next(show(*k) for k, own in values.items() if UPDATE not in own)
        raise ValueError(
            f"scales at {lacking!r} lack {UPDATE}, which others have; pass what tune "
            "returned"
        )
    return values


def _collect(node: Mapping, params: Any, path: Path, values: dict) -> None:
    if _has_factors(node):
        values[(path, "__call__")] = _factors(node, show(path))
    for name, child in node.items():
        if not isinstance(child, Mapping):
            if name not in (*FACTORS, UPDATE):
                raise ValueError(
                    f"scales at {show(path)!r} have an entry {name!r}, expected only "
                    f"{', '.join((*FACTORS, UPDATE))}; pass what tune returned"
                )
            continue
        if isinstance(params.get(name), Mapping):
            _collect(child, params[name], (*path, name), values)
        elif _has_factors(child):
            values[(path, name)] = _factors(child, show(path, name))
        elif child:
            raise ValueError(
                f"scales have an entry {show((*path, name))!r}, which is no module of "
                "these params: they belong to another model; tune this one"
            )


def _has_factors(node: Mapping) -> bool:
    return any(not isinstance(node.get(name, {}), Mapping) for name in FACTORS)


def _factors(node: Mapping, where: str) -> dict[str, Any]:
    lacking = [name for name in FACTORS if name not in node]
    if lacking:
        raise ValueError(
            f"scales at {where!r} lack {', '.join(lacking)}; pass what tune returned"
        )
    return {name: node[name] for name in (*FACTORS, UPDATE) if name in node}


def riding(params: Any, name: str, values: Mapping[Kind, Any]) -> dict:
    """A copy of params with each unit's values in the entry `name` beside its own."""
    rides: dict[Path, dict] = {}
    for (path, method), value in values.items():
        rides.setdefault((*path, name), {})[method] = value
    return insert(params, rides)


def floats_below(params: Mapping, unit: Unit) -> list[Any]:
    """The floating parameters of a unit, arrays or shapes, in order of their paths."""
    node: Any = params
    for name in unit.path:
        node = node[name]
    return [v for v in flatten(unboxed(node)).values() if is_float(v)]


def own_floats(params: Mapping, unit: Unit) -> dict[str, Array]:
    """The floating parameters of a unit, numbered in the order of their paths."""
    return {f"{i:04d}": v for i, v in enumerate(floats_below(params, unit))}


def owners(params: Mapping, units: Iterable[Unit]) -> tuple[Unit | None, ...]:
    """The unit that owns each floating parameter, if any does, in order of paths."""
    known = {u.path: u for u in units}
    return tuple(
        nearest(path, known)
        for path, leaf in flatten(unboxed(params)).items()
        if is_float(leaf)
    )


def only(
    gradient: Iterable[Array], owned: Iterable[Unit | None], units: bool = True
) -> list[Array]:
    """The gradient of parameters that units own, or of the others; the rest is zero."""
    pairs = zip(gradient, owned, strict=True)
    return [g if (u is not None) == units else jnp.zeros_like(g) for g, u in pairs]


def weighed(
    leaves: Iterable[Array],
    owned: Iterable[Unit | None],
    weights: Mapping[Path, Array],
) -> list[Array]:
    """Each parameter's array times the weight of the unit that owns it, if any does."""
    return [
        multiply(x, spread(weights[u.path], x.shape, u.lift)) if u else x
        for x, u in zip(leaves, owned, strict=True)
    ]


def strength(leaves: Iterable[Array], unit: Unit) -> Float[Array, "..."]:
    """The joint rms of arrays shaped like the unit's parameters, for each layer."""
    by_layer = [fronted(leaf, unit.lift) for leaf in leaves]
    return rms(by_layer, keep=len(unit.layers)).reshape(unit.ride_shape)


def own_gradients(of_variables: Any) -> list[Array]:
    """The gradients of a unit's own floating parameters, rides left out."""
    leaves, _ = jax.tree.flatten_with_path(of_variables)
    return [g for path, g in leaves if not is_ride(path) and is_float(g)]


def flat_floats(params: Mapping, unit: Unit) -> dict[str, Array]:
    """A copy of the unit's floating parameters, to ride with it.

    They are flat where no axis is lifted: a transform of the variables, such as
    `nn.SpectralNorm`, would take a matrix for one of the weights.
    """
    own = own_floats(params, unit)
    return {n: v if unit.lift else v.ravel() for n, v in own.items()}


def blank(params: Mapping, unit: Unit) -> dict[str, Array]:
    """Zeros that ride like the unit's floating parameters."""
    return jax.tree.map(jnp.zeros_like, flat_floats(params, unit))


class Row(NamedTuple):
    """One line of a table of units: a unit, or one layer of a lifted one."""

    path: str
    kind: str
    shape: tuple[tuple[int, ...], ...]
    calls: int
    floats: bool
    region: int
    """Of the input, or of the output where no input is floating."""
    inside: int
    """Rows of one number share their parameters."""


def vector(units: Iterable[Unit], values: Mapping[Kind, jax.Array]) -> jax.Array:
    """The values of all units and their layers, one after the other."""
    return jnp.concatenate([values[kind_of(u)].ravel() for u in units])


def unpack(
    units: Iterable[Unit], columns: Mapping[str, jax.Array]
) -> dict[Kind, dict[str, jax.Array]]:
    """Columns over all units and layers, as values per unit in the shapes they ride.

    Where a unit's values start is kept from the compiler: slices at places that it does
    not know are all alike, and are compiled once.
    """
    found, start = {}, 0
    for u in units:
        at = jax.lax.optimization_barrier(jnp.int32(start))
        cut = lambda c, at=at, u=u: jax.lax.dynamic_slice_in_dim(c, at, u.size)
        found[kind_of(u)] = {
            n: cut(c).reshape(u.ride_shape) for n, c in columns.items()
        }
        start += u.size
    return found


def call_order(units: Iterable[Unit]) -> tuple[tuple[str, ...], np.ndarray]:
    """The paths of all units and layers in call order, and their places in `vector`."""
    units = tuple(units)
    nowhere = np.zeros(sum(u.size for u in units), int)
    table, order = rows(units, nowhere, nowhere, nowhere)
    return tuple(row.path for row in table), order


def rows(
    units: tuple[Unit, ...], into: np.ndarray, out: np.ndarray, own: np.ndarray
) -> tuple[list[Row], np.ndarray]:
    """The lines of a table in call order, and where in `vector` each has its values.

    Units of one lifted stack take turns, layer by layer. `into`, `out` and `own` number
    the regions of inputs and outputs, and the insides, in the order of `vector`.
    """
    starts = np.cumsum([0, *(u.size for u in units)])
    places = dict(zip(units, starts, strict=False))
    stack = lambda u: (u.layers, u.path[:1] if u.layers else u.name)
    table, order = [], []
    for _, group in itertools.groupby(units, stack):
        members = list(group)
        for i, layer in enumerate(np.ndindex(*members[0].layers)):
            for u in members:
                at = places[u] + i
                name = u.name + (f"[{','.join(map(str, layer))}]" if layer else "")
                region = int(into[at] if u.floats else out[at])
                row = (name, u.kind, u.shape, u.calls, u.floats, region, int(own[at]))
                table.append(Row(*row))
                order.append(at)
    return table, np.array(order, int)
