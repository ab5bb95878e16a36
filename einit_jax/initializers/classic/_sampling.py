"""How one array is drawn: in the shape that Flax would ask for, layer by layer."""

import inspect
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ...core import Path, is_concrete, unboxed
from ._parameters import Parameter
from ._presets import Keyed
from ._rules import Rule, rule_str

INITIALIZER_EXTRAS = ("fan_in", "fan_out", "path")
"""What an initializer receives if its signature names it."""


def sample(
    site: Parameter, rule: Rule, value: Any, key: jax.Array, dtype: Any
) -> jax.Array:
    """The array, each layer and each batched matrix drawn by itself.

    Raises:
        ValueError: the initializer cannot draw such a shape, or returned another.
    """
    if not callable(value):
        return jnp.full(site.shape, value, dtype)
    layers, inner = _axis_order(site)
    outer = tuple(site.shape[i] for i in layers)
    sizes = tuple(site.shape[i] for i in inner)
    shape = _as_flax(site, sizes)
    one = _initializer(site, rule, value, shape, dtype)
    if outer:
        keys = jax.random.split(key, outer)
        for _ in outer:
            one = jax.vmap(one)
        found = one(keys)
    else:
        found = one(key)
    back = sorted(range(len(site.shape)), key=(*layers, *inner).__getitem__)
    return found.reshape(*outer, *sizes).transpose(back)


def _axis_order(site: Parameter) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The axes that stack arrays, and those of one of them, as Flax orders them."""
    axes = site.axes
    assert axes is not None
    every = tuple(i for i in range(len(site.shape)) if i not in axes.layers)
    if axes.role != "weight" or axes.looked_up:
        return axes.layers, every
    return (*axes.layers, *axes.batch), (*axes.contracted, *axes.features)


def _as_flax(site: Parameter, sizes: tuple[int, ...]) -> tuple[int, ...]:
    """The shape in which Flax's own layers would ask for the array."""
    axes = site.axes
    if axes is None or axes.layer_type != "dense" or axes.looked_up:
        return sizes
    split = len(axes.contracted)
    return math.prod(sizes[:split]), math.prod(sizes[split:])


def _initializer(
    site: Parameter, rule: Rule, value: Callable, shape: tuple[int, ...], dtype: Any
) -> Callable:
    """The initializer as a function of the key alone; its errors say where."""
    known = {"fan_in": 1.0, "fan_out": 1.0, "path": site.name}
    of = (site.beside or site).axes
    known |= {"fan_in": of.fan_in, "fan_out": of.fan_out} if of else {}
    named = {n: known[n] for n in _extras_named(value)}
    where = f"rule {rule_str(rule)} cannot draw {site.name!r} of shape {shape}"

    def draw(key: jax.Array) -> jax.Array:
        try:
            found = unboxed(value(key, shape, dtype, **named))
        except Exception as error:
            hint = "give arrays like it a rule of their own, before this one"
            if len(shape) < 2:
                hint += f": ({len(shape)}, 0.0)"
            raise ValueError(f"{where}: {error}; {hint}") from error
        if jnp.shape(found) != shape:
            raise ValueError(
                f"{where}: it returned shape {jnp.shape(found)}; return an array of "
                "the shape that it is given, as jax.nn.initializers do"
            )
        return jnp.asarray(found).astype(dtype)

    return draw


def _extras_named(function: Callable) -> list[str]:
    try:
        parameters = inspect.signature(function).parameters
    except (ValueError, TypeError):
        return []
    return [name for name in INITIALIZER_EXTRAS if name in parameters]


def sampling_key(site: Parameter, value: Any) -> tuple[Path, Any]:
    """The path whose key draws the array, and the initializer."""
    return value if isinstance(value, Keyed) else (site.path, value)


def place_like(value: jax.Array, like: Any) -> jax.Array:
    """The array on the devices of the one that it replaces, where these are several."""
    concrete = isinstance(like, jax.Array) and is_concrete(like)
    if not concrete or not is_concrete(value):
        return value
    several = len(like.sharding.device_set) > 1
    return jax.device_put(value, like.sharding) if several else value
