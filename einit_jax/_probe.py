"""Probe draws: what stands in for arrays of zeros while the network is measured."""

import zlib
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from ._graph import Graph
from ._lift import inner_axes
from ._math import is_float
from ._paths import Path, below, flatten, insert, is_boxed, show


def probe(
    params: Mapping, graph: Graph, key: jax.Array
) -> tuple[dict, dict[Path, Bool[Array, ""]]]:
    """Replaces arrays of zeros that stop every gradient above them.

    An array that the model multiplies with and that is zero throughout (a ViT's head,
    the last normalization gain of a residual block, adaLN-zero) gives way to weights
    from N(0, 1/fan-in), or to gains of 1 where it has one axis at most. That it
    multiplies is read off the jaxpr, so a bias, which adds, is never replaced, nor is
    a gain written `1 + scale`. Under `nn.scan` and `nn.vmap` each layer is judged
    apart.

    Returns:
        The parameters to measure with, and per candidate path whether it was zero.
    """
    entries, replaced = {}, {}
    leaves = flatten(params)
    for path, weighs in graph.factors.items():
        leaf = leaves[path]
        value = leaf.unbox() if is_boxed(leaf) else leaf
        owner = _lift(graph, path)
        axes = inner_axes(value.shape, owner or ())
        sizes = [value.shape[i] for i in axes]
        gain = sum(n > 1 for n in sizes) <= 1 and not weighs
        if not is_float(value) or not value.size or (owner is None and not gain):
            continue
        zero = jnp.all(value == 0, axis=axes, keepdims=True)
        drawn = jnp.ones_like(value) if gain else _weights(key, path, value, sizes)
        value = jnp.where(zero, drawn, value)
        entries[path] = leaf.replace_boxed(value) if is_boxed(leaf) else value
        replaced[path] = jnp.any(zero)
    return insert(params, entries), replaced


def _weights(
    key: jax.Array, path: Path, like: Array, sizes: list[int]
) -> Float[Array, "..."]:
    key = jax.random.fold_in(key, zlib.crc32(show(path).encode()))
    fan_in = max(int(np.prod(sizes[:-1])), 1)
    return jax.random.normal(key, like.shape, like.dtype) / np.sqrt(fan_in).astype(
        np.finfo(like.dtype).dtype
    )


def _lift(graph: Graph, path: Path) -> tuple[int, ...] | None:
    """The lifted axes of the unit that owns a parameter, None where none does."""
    return next((u.lift for u in graph.units if below(path, u.path)), None)
