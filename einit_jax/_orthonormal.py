"""Orthonormal weights for the layers of a model, and biases of zero."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.nn import initializers
from jaxtyping import Array

from ._draws import drawn
from ._layers import Layer
from ._paths import Path, path_number, show
from ._rules import Rule
from ._sites import Site


def orthonormal(
    layers: tuple[Layer, ...],
    sites: Mapping[Path, Site],
    leaves: Mapping[Path, Any],
    key: jax.Array,
) -> dict[Path, Array]:
    """Weights with orthonormal rows or columns, each by the key of its path.

    Those that are alike are drawn by one program: factoring matrices takes long to
    compile.
    """
    found = {
        path: jnp.zeros_like(leaves[path]) for layer in layers for path in layer.biases
    }
    alike: dict[Any, list[Site]] = {}
    for layer in layers:
        for site in (sites[path] for path in layer.weights):
            _refuse(site)
            what = (site.shape, _axes(site), leaves[site.path].dtype)
            alike.setdefault(what, []).append(site)
    for (*_, dtype), group in alike.items():
        names = jnp.array([path_number(site.path) for site in group], "uint32")
        draw = partial(_drawn, group[0], dtype, key)
        made = jax.lax.map(draw, names) if len(group) > 1 else [draw(names[0])]
        found |= {site.path: x for site, x in zip(group, made, strict=True)}
    return found


def _axes(site: Site) -> Any:
    """What decides how an array is drawn."""
    return site.axes and site.axes._replace(residual=False, fan_out=0.0, fan_in=0.0)


def _drawn(site: Site, dtype: Any, key: jax.Array, name: Array) -> Array:
    """Each layer of a stack by itself; in 32 bits or more: 16 cannot be factored."""
    init, wide = initializers.orthogonal(), jnp.promote_types(dtype, jnp.float32)
    own = jax.random.fold_in(key, name)
    return drawn(site, Rule("*", init), init, own, wide).astype(dtype)


def _refuse(site: Site) -> None:
    """Raises where nothing orthonormal has this shape."""
    where = f"{site.name!r} has shape {site.shape}"
    unit = show(site.path[:-1])
    if site.looked_up and site.rank < 2:
        raise ValueError(
            f"{where}: one axis cannot be orthonormal; keep what is there: "
            f"orthogonal=False, or exclude={unit!r}"
        )
    if 0 in site.shape:
        raise ValueError(
            f"{where}: there is nothing to draw; leave it out: exclude={unit!r}"
        )
