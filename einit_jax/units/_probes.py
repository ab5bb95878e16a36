"""Probe draws: what stands in for arrays of zeros while the network is measured."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool

from ..core import (
    Path,
    flatten,
    inner_axes,
    insert,
    is_boxed,
    is_concrete,
    is_float,
    is_under,
    on_host,
    path_key,
)
from ._unit import ModelGraph


def zero_candidates(params: Mapping) -> frozenset[Path] | None:
    """The paths of arrays that may hold a slice of zeros; None where they are traced.

    Looking at concrete parameters first keeps probe draws out of the compiled function
    for all arrays that cannot need one: only flags come to the host.
    """
    leaves = {path: _unboxed_leaf(leaf) for path, leaf in flatten(params).items()}
    floats = {path: v for path, v in leaves.items() if is_float(v) and v.size}
    if not all(map(is_concrete, floats.values())):
        return None
    with jax.ensure_compile_time_eval():
        flags = jax.device_get([_may_hold_zeros(v) for v in floats.values()])
    return frozenset(p for p, flag in zip(floats, flags, strict=True) if flag)


def _may_hold_zeros(value: Array) -> Any:
    """Whether a slice along some axis, or the whole, can be zero.

    A look along each axis at the first index of the others: what holds no zero there
    holds no slice of zeros. On the host this takes no compilation.
    """
    if isinstance(value, np.ndarray) or on_host(value):
        return _cross(np, np.asarray(value))
    return jax.jit(_cross, static_argnums=0)(jnp, value)


def _cross(numpy: Any, value: Any) -> Any:
    """Whether a line through the corner, along any axis, holds a zero."""
    if not value.ndim:
        return value == 0
    lines = [(0,) * i + (slice(None),) for i in range(value.ndim)]
    lines = [value[line + (0,) * (value.ndim - len(line))] for line in lines]
    return numpy.any(numpy.concatenate(lines) == 0)


def put_probes(
    params: Mapping,
    graph: ModelGraph,
    key: jax.Array,
    among: frozenset[Path] | None = None,
) -> tuple[dict, dict[Path, Bool[Array, ""]]]:
    """Replaces arrays of zeros that stop every gradient above them.

    An array that the model multiplies with and that is zero throughout (a ViT's head,
    the last normalization gain of a residual block, adaLN-zero) gives way to weights
    from N(0, 1/fan-in), or to gains of 1 where it has one axis at most. That it
    multiplies is read off the jaxpr, so a bias, which adds, is never replaced, nor is
    a gain written `1 + scale`. Under `nn.scan` and `nn.vmap` each layer is judged
    apart.

    Args:
        among: the only paths to look at, from `zero_candidates`; None: all.

    Returns:
        The parameters to measure with, and per candidate path whether it was zero.
    """
    entries, replaced = {}, {}
    leaves = flatten(params)
    for path, in_sums in graph.multiplied.items():
        leaf = leaves[path]
        value = _unboxed_leaf(leaf)
        owner = _owner_lifted_axes(graph, path)
        axes = inner_axes(value.shape, owner or ())
        sizes = [value.shape[i] for i in axes]
        gain = sum(n > 1 for n in sizes) <= 1 and not in_sums
        if not is_float(value) or not value.size or (owner is None and not gain):
            continue
        if among is not None and path not in among:
            continue
        zero = jnp.all(value == 0, axis=axes, keepdims=True)
        draw = jnp.ones_like if gain else partial(_probe_weights, key, path, sizes)
        replaced[path] = jnp.any(zero)
        value = jax.lax.cond(
            replaced[path],
            lambda old, zero=zero, draw=draw: jnp.where(zero, draw(old), old),
            lambda old: old,
            value,
        )
        entries[path] = leaf.replace_boxed(value) if is_boxed(leaf) else value
    return insert(params, entries), replaced


def _probe_weights(key: jax.Array, path: Path, sizes: list[int], like: Array) -> Array:
    key = path_key(key, path)
    fan_in = max(int(np.prod(sizes[:-1])), 1)
    drawn = jax.random.normal(key, like.shape, like.dtype)
    return (drawn / fan_in**0.5).astype(like.dtype)


def _unboxed_leaf(leaf: Any) -> Any:
    return leaf.unbox() if is_boxed(leaf) else leaf


def _owner_lifted_axes(graph: ModelGraph, path: Path) -> tuple[int, ...] | None:
    """The lifted axes of the unit that owns a parameter, None where none does."""
    return next((u.lifted_axes for u in graph.units if is_under(path, u.path)), None)
