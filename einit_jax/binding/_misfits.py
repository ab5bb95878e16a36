"""Where scales are not those of a model: each place, as a clause of an error."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from ..core import Path, fits_layers, flatten, is_under, lifted_axes_of, path_str
from ..units import FACTORS, ModelGraph, from_tree, may_be_method, raw_from_tree


def foreign_entries(tree: Mapping, params: Mapping) -> list[str]:
    """Entries of no module, parameter or method of the model."""
    return list(_foreign(tree, params, ()))


def _misfit(path: Path, in_file: str, in_model: str) -> str:
    return f"at {path_str(path)!r} the file has {in_file}, the model has {in_model}"


def _foreign(node: Mapping, params: Any, path: Path) -> Iterator[str]:
    """Entries of no module, parameter or method of the model."""
    own = [name for name, child in node.items() if not isinstance(child, Mapping)]
    for name, child in node.items():
        if name in own:
            continue
        below = params.get(name) if isinstance(params, Mapping) else None
        if isinstance(below, Mapping):
            yield from _foreign(child, below, (*path, name))
        elif below is None and child:
            is_method = set(FACTORS) <= child.keys()
            if not (is_method and may_be_method(name, params, bool(own))):
                known = ", ".join(sorted(params)) if params else "nothing"
                yield _misfit((*path, name), _names_in(child), f"only {known} there")


def misfits_of_params(tree: Mapping, params: Mapping) -> list[str]:
    """Factors for other layers than parameters have, and modules without factors."""
    factors, raw = from_tree(tree, params), raw_from_tree(tree, params)
    leaves, misfits = flatten(params), []
    for (path, _), own in factors.items():
        shapes = [np.shape(x) for at, x in leaves.items() if is_under(at, path)]
        for name, factor in own.items():
            lifted = lifted_axes_of(np.shape(factor))
            if not any(fits_layers(shape, lifted) for shape in shapes):
                there = _arrays_below(leaves, path)
                misfits.append(_misfit(path, f"{name} {np.shape(factor)}", there))
    tuned = {path for path, _ in factors}
    around = {path[:i] for path in tuned | raw.keys() for i in range(len(path) + 1)}
    for owner in dict.fromkeys(path[:-1] for path in leaves):
        if owner not in around and not any(is_under(owner, path) for path in tuned):
            there = _arrays_below(leaves, owner)
            misfits.append(
                _misfit(
                    owner,
                    "nothing",
                    f"{there} (pass input_fn, if the call leaves it out)",
                )
            )
    return misfits


def misfits_of_units(tree: Mapping, params: Mapping, graph: ModelGraph) -> list[str]:
    """Where factors are not those of the units of a call."""
    factors, misfits = from_tree(tree, params), []
    shapes = {unit.key: unit.carried_shape for unit in graph.units}
    for path, method in dict.fromkeys((*shapes, *factors)):
        at = path if method == "__call__" else (*path, method)
        own, shape = factors.get((path, method)), shapes.get((path, method))
        if own is None:
            there = f"a unit with factors of the shape {shape}"
            misfits.append(_misfit(at, "nothing", there))
        elif shape is None:
            misfits.append(_misfit(at, _names_in(own), "no unit in this call"))
        else:
            for name, factor in own.items():
                if np.shape(factor) != shape:
                    here = f"{name} {np.shape(factor)}"
                    misfits.append(_misfit(at, here, f"{name} {shape}"))
    return misfits


def _names_in(own: Mapping[str, Any]) -> str:
    """The names of factors or modules."""
    return ", ".join(own)


def _arrays_below(leaves: Mapping[Path, Any], path: Path) -> str:
    """The parameters of a module, with their shapes."""
    below = [(at, x) for at, x in leaves.items() if is_under(at, path)]
    shown = [f"{path_str(at[len(path) :])} {np.shape(x)}" for at, x in below[:4]]
    return ", ".join(shown) + (", ..." if len(below) > 4 else "")
