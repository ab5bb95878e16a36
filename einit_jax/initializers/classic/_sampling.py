"""How one array is drawn: in the shape in which Flax would ask for it, by layers."""

import inspect
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from ...core import Path, is_concrete, unboxed
from ._parameters import Parameter
from ._presets import Keyed, RuleValue
from ._rules import Rule, rule_str

INITIALIZER_EXTRAS = ("fan_in", "fan_out", "path")
"""Arguments that an initializer receives if its signature names them."""


def sample(
    parameter: Parameter,
    rule: Rule,
    value: RuleValue,
    key: jax.Array,
    *,
    dtype: DTypeLike,
) -> jax.Array:
    """The array, each layer and each batched matrix drawn by itself.

    `value` is what the rule says for the parameter; the rule is named in errors.

    Raises:
        ValueError: the initializer cannot draw such a shape, or returned another.
    """
    if not callable(value):
        constant: Any = value
        return jnp.full(parameter.shape, constant, dtype)
    layers, inner = _axis_order(parameter)
    outer = tuple(parameter.shape[i] for i in layers)
    sizes = tuple(parameter.shape[i] for i in inner)
    shape = _flax_shape(parameter, sizes)
    draw = _bound_initializer(parameter, rule, value, shape=shape, dtype=dtype)
    if outer:
        keys = jax.random.split(key, outer)
        for _ in outer:
            draw = jax.vmap(draw)
        array = draw(keys)
    else:
        array = draw(key)
    order = sorted(range(len(parameter.shape)), key=(*layers, *inner).__getitem__)
    return array.reshape(*outer, *sizes).transpose(order)


def _axis_order(parameter: Parameter) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The axes that stack arrays, and those of one of them, as Flax orders them."""
    axes = parameter.axes
    assert axes is not None
    inner = tuple(i for i in range(len(parameter.shape)) if i not in axes.layers)
    if axes.role != "weight" or axes.looked_up:
        return axes.layers, inner
    return (*axes.layers, *axes.batch), (*axes.contracted, *axes.features)


def _flax_shape(parameter: Parameter, sizes: tuple[int, ...]) -> tuple[int, ...]:
    """The shape in which Flax's own layers would ask for the array."""
    axes = parameter.axes
    if axes is None or axes.layer_type != "dense" or axes.looked_up:
        return sizes
    split = len(axes.contracted)
    return math.prod(sizes[:split]), math.prod(sizes[split:])


def _bound_initializer(
    parameter: Parameter,
    rule: Rule,
    initializer: Callable,
    *,
    shape: tuple[int, ...],
    dtype: DTypeLike,
) -> Callable[[jax.Array], jax.Array]:
    """The initializer as a function of the key alone; its errors say where."""
    extras = {"fan_in": 1.0, "fan_out": 1.0, "path": parameter.name}
    axes = (parameter.beside or parameter).axes
    extras |= {"fan_in": axes.fan_in, "fan_out": axes.fan_out} if axes else {}
    named = {name: extras[name] for name in _extras_named(initializer)}
    failure = f"rule {rule_str(rule)} cannot draw {parameter.name!r} of shape {shape}"

    def draw(key: jax.Array) -> jax.Array:
        try:
            array = unboxed(initializer(key, shape, dtype, **named))
        except Exception as error:
            hint = "give arrays like it a rule of their own, before this one"
            if len(shape) < 2:
                hint += f": ({len(shape)}, 0.0)"
            raise ValueError(f"{failure}: {error}; {hint}") from error
        if jnp.shape(array) != shape:
            raise ValueError(
                f"{failure}: it returned shape {jnp.shape(array)}; return an array of "
                "the shape that it is given, as jax.nn.initializers do"
            )
        return jnp.asarray(array).astype(dtype)

    return draw


def _extras_named(function: Callable) -> list[str]:
    """Which of `INITIALIZER_EXTRAS` a function's signature names."""
    try:
        parameters = inspect.signature(function).parameters
    except (ValueError, TypeError):
        return []
    return [name for name in INITIALIZER_EXTRAS if name in parameters]


def sampling_key(parameter: Parameter, value: RuleValue) -> tuple[Path, RuleValue]:
    """The path whose key draws the array, and the initializer."""
    return value if isinstance(value, Keyed) else (parameter.path, value)


def place_like(value: jax.Array, template: Any) -> jax.Array:
    """The array on the devices of the one that it replaces, where these are several."""
    concrete = isinstance(template, jax.Array) and is_concrete(template)
    if not concrete or not is_concrete(value):
        return value
    several = len(template.sharding.device_set) > 1
    return jax.device_put(value, template.sharding) if several else value
