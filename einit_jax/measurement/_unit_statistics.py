"""Observation of a scaled model as it stands, independent of the sweep.

The factors are fixed. Outputs are read where they are, input gradients where `jax.grad`
brings them by, and the change by an update is a forward-mode derivative of the unit
along its own gradient. Statistics of units inside lifted transforms, which drop all
collections but `params`, leave as cotangents of slots that ride in `params`.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float

from ..core import emit, is_float, multiply, per_call, rms, scale_gradient, widen
from ..linen import RIDE, Call, PureCall, intercept_units, is_carried, own_gradients
from ..units import FACTORS, Unit

OBSERVE = RIDE + "observe"


OUTPUT_STATISTICS = (
    "calls",
    "rms",
    "power",
    "mean",
    "varying",
    "update",
    "update_power",
    "bad",
)


INPUT_STATISTICS = ("rms", "power", "bad")


def empty_sums(unit: Unit) -> dict[str, dict[str, Array]]:
    """Zeros, whose cotangents are the statistics summed over calls."""
    zero = jnp.zeros(unit.ride_shape, jnp.float32)
    return {
        "output": dict.fromkeys(OUTPUT_STATISTICS, zero),
        "input": dict.fromkeys(INPUT_STATISTICS, zero),
    }


def unit_statistics_interceptor() -> Any:
    """The interceptor of an observation."""
    return intercept_units(OBSERVE, _observe_call)


def _observe_call(call: Call, entry: Mapping[str, Any]) -> Any:
    body = PureCall(call)
    a, b, c = (jnp.reshape(entry["factors"][name], ()) for name in FACTORS)
    seen = _watch(body.floats, entry["slots"]["input"])
    step = jax.tree.map(jnp.add, entry["step"], entry["shift"])
    derivative = _transposed_derivative if "opaque" in entry else _forward_derivative
    seen = [scale_gradient(x, b) for x in seen]
    outputs, arrays, moved = derivative(
        body.run, call.module, seen, list(step.values())
    )
    outputs = _moving_along(outputs, moved)
    outputs = [multiply(t, a) for t in outputs]
    changes = [a * widen(jax.lax.stop_gradient(t)) for t in moved]
    facts = output_statistics([jax.lax.stop_gradient(t) for t in outputs])
    change = rms(changes)
    facts |= {"update": change, "update_power": jnp.square(change)}
    outputs = [scale_gradient(t, c) for t in outputs]
    return body.build(emit(outputs, facts, entry["slots"]["output"]), arrays)


def output_statistics(outputs: list[Array]) -> dict[str, Float[Array, ""]]:
    """What is read off one call's outputs."""
    wide = [widen(t) for t in outputs]
    varying = [t - jnp.mean(t, 0, keepdims=True) for t in wide if t.ndim]
    size = sum(t.size for t in wide)
    total = sum(jnp.sum(t) for t in wide) / max(size, 1)
    strength = rms(wide)
    return {
        "calls": per_call(1, wide),
        "rms": strength,
        "power": jnp.square(strength),
        "mean": jnp.real(total).astype(jnp.float32),
        "varying": jnp.square(rms(varying)),
        "bad": count_nonfinite(wide),
    }


def count_nonfinite(values: list[Array]) -> Float[Array, ""]:
    """The number of elements that are not finite."""
    count = sum(jnp.sum(~jnp.isfinite(t)) for t in values)
    return jnp.asarray(count, jnp.float32)


def _forward_derivative(
    run: Any, module: nn.Module, inputs: list, step: list
) -> tuple[list, list, list]:
    """The unit's outputs, floating and others, and their derivative along a step."""
    numbered = iter(step)

    def tangent(path, value):
        if is_carried(path):
            return jnp.zeros_like(value)
        if is_float(value):
            return next(numbered).reshape(value.shape)
        return np.zeros(jnp.shape(value), jax.dtypes.float0)

    own = module.variables["params"]
    tangents = {"params": jax.tree.map_with_path(tangent, own)}
    bound = lambda module: run(module, *inputs)
    lifted: Any = nn.jvp(bound, module, (), (), tangents)
    (floats, arrays), (moved, _) = lifted
    return floats, arrays, moved


def _transposed_derivative(
    run: Any, module: nn.Module, inputs: list, step: list
) -> tuple[list, list, list]:
    """The same by transposing reverse mode, for units with a custom vjp."""
    held = [jax.lax.stop_gradient(x) for x in inputs]
    outputs, arrays = run(module, *inputs)
    fixed = nn.vjp(run, module, *held, has_aux=True)[1]

    def gradient(cotangents):
        own = own_gradients(fixed(cotangents)[0])
        return [g.reshape(s.shape) for g, s in zip(own, step, strict=True)]

    pullback = jax.linear_transpose(gradient, outputs)
    return outputs, arrays, pullback(step)[0]


@jax.custom_jvp
def _moving_along(outputs: list, moved: list) -> list:
    """The outputs; their tangent is joined by that of `moved`.

    With `moved = J (step + shift)`, the gradient with respect to the shift is that of
    this call's own parameters, whoever else uses them.
    """
    return outputs


@_moving_along.defjvp
def _moving_along_jvp(primals, tangents):
    return primals[0], jax.tree.map(jnp.add, *tangents)


@jax.custom_vjp
def _watch(inputs, slot):
    """The inputs, with the statistics of their gradients as the slot's cotangent.

    The slot, zero, is added: where `vmap` shares an input among its members, each has
    a gradient of its own, which must not be summed before it is seen.
    """
    zero = slot["rms"].reshape(())
    return [x + zero.astype(x.dtype) for x in inputs]


def _watch_forward(inputs, slot):
    return _watch(inputs, slot), slot


def _watch_backward(slot, cotangents):
    each = [rms([t]) for t in cotangents]
    largest = jnp.max(jnp.stack([jnp.zeros((), jnp.float32), *each]))
    facts = {
        "rms": largest,
        "power": jnp.square(largest),
        "bad": count_nonfinite(cotangents),
    }
    return cotangents, {n: facts[n].reshape(slot[n].shape) for n in INPUT_STATISTICS}


_watch.defvjp(_watch_forward, _watch_backward)
