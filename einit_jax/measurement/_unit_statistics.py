"""What is read off each call of a unit while the scaled model runs, factors fixed.

Outputs are read where they are, input gradients where `jax.grad` brings them by, and
the change by an update is a forward-mode derivative of the unit along its own gradient.
Statistics leave as the cotangents of sums that are carried to the unit.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..core import emit, multiply, per_call, rms, scale_gradient, shaped_like, widen
from ..units import FACTORS, Interception, Unit, UnitCall, UnitKey

OUTPUT_STATISTICS = (
    "calls", "rms", "power", "mean", "varying", "update", "update_power", "bad",
)  # fmt: skip
"""Sums over calls: their number, rms and mean square of outputs, their mean, the mean
square around the mean of the batch, rms and mean square of the change by an update, and
the number of elements that are not finite."""
INPUT_STATISTICS = ("rms", "power", "bad")
"""The same of the strongest input gradient."""


def empty_statistics(unit: Unit) -> dict[str, dict[str, Array]]:
    """Zeros, whose cotangents are the statistics summed over calls."""
    zero = jnp.zeros(unit.carried_shape, jnp.float32)
    return {
        "output": dict.fromkeys(OUTPUT_STATISTICS, zero),
        "input": dict.fromkeys(INPUT_STATISTICS, zero),
    }


def observing(entries: Mapping[UnitKey, Mapping[str, Any]]) -> Interception:
    """The interception of an observation.

    An entry has the `factors` in force, the `step` of the unit's parameters and a
    `shift` of it (zeros, whose gradient is that of the unit's parameters), the `sums`,
    and `opaque` where forward mode cannot go through the unit.
    """
    return Interception("observe", entries, _observe_call)


def _observe_call(call: UnitCall, entry: Mapping[str, Any]) -> Any:
    a, b, c = (jnp.reshape(entry["factors"][name], ()) for name in FACTORS)
    inputs = _watch(call.inputs, entry["sums"]["input"])
    inputs = [scale_gradient(x, b) for x in inputs]
    step = jax.tree.map(jnp.add, entry["step"], entry["shift"])
    outputs, moved = call.jvp(
        inputs, list(step.values()), by_transposing="opaque" in entry
    )
    outputs = [multiply(t, a) for t in _moving_along(outputs, moved)]
    change = rms([a * widen(jax.lax.stop_gradient(t)) for t in moved])
    statistics = output_statistics([jax.lax.stop_gradient(t) for t in outputs])
    statistics |= {"update": change, "update_power": jnp.square(change)}
    outputs = [scale_gradient(t, c) for t in outputs]
    return call.finish(emit(outputs, statistics, entry["sums"]["output"]))


def output_statistics(outputs: list[Array]) -> dict[str, Float[Array, ""]]:
    """What is read off one call's outputs."""
    wide = [widen(t) for t in outputs]
    varying = [t - jnp.mean(t, 0, keepdims=True) for t in wide if t.ndim]
    size = sum(t.size for t in wide)
    total = sum(jnp.sum(t) for t in wide) / max(size, 1)
    strength = rms(wide)
    return {
        "calls": per_call(1, strength),
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
def _watch(inputs, sums):
    """The inputs, with the statistics of their gradients as the cotangent of `sums`.

    A zero is added: where `vmap` shares an input among its members, each has a gradient
    of its own, which must not be summed before it is seen.
    """
    zero = sums["rms"].reshape(())
    return [x + zero.astype(x.dtype) for x in inputs]


def _watch_forward(inputs, sums):
    return _watch(inputs, sums), sums


def _watch_backward(sums, cotangents):
    each = [rms([t]) for t in cotangents]
    largest = jnp.max(jnp.stack([jnp.zeros((), jnp.float32), *each]))
    statistics = {
        "rms": largest,
        "power": jnp.square(largest),
        "bad": count_nonfinite(cotangents),
    }
    shaped = {n: shaped_like(statistics[n], sums[n]) for n in INPUT_STATISTICS}
    return cotangents, shaped


_watch.defvjp(_watch_forward, _watch_backward)
