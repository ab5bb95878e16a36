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

from ..core import (
    at_peak,
    emit,
    from_windows,
    multiply,
    per_call,
    rms,
    scale_gradient,
    shaped_like,
    times,
    widen,
    windows,
)
from ..units import FACTORS, Interception, Unit, UnitCall, UnitKey

COUNTS = ("calls", "mean", "bad")
"""Sums over calls: their number, the mean of outputs, and the number of elements that
are not finite."""
SIZES = ("rms", "varying", "update")
"""Root mean squares: of outputs, around the mean of the batch, and of the change by an
update. Of units that are called several times squares are summed, by `core.WINDOWS`."""


def empty_statistics(unit: Unit) -> dict[str, dict[str, Any]]:
    """Zeros, whose cotangents are the statistics summed over calls.

    Of input gradients there are the rms and the number of elements that are not finite,
    of the strongest one.
    """
    zero = jnp.zeros(unit.carried_shape, jnp.float32)
    size = windows(zero) if unit.calls > 1 else zero
    output: dict[str, Any] = dict.fromkeys(COUNTS, zero)
    output |= dict.fromkeys(SIZES, size)
    return {
        "output": output,
        "input": {"calls": zero, "bad": zero, "rms": size},
    }


def over_calls(sums: Mapping[str, Any]) -> dict[str, Array]:
    """From sums over calls: the number of these, and what holds of all together."""
    calls = jnp.maximum(sums["calls"], 1)

    def joint(name: str) -> Array:
        if isinstance(sums[name], Mapping):
            return from_windows(sums[name], calls)
        return sums[name] if name in ("calls", "bad") else sums[name] / calls

    return {name: joint(name) for name in sums}


def _as_summed(statistics: Mapping[str, Array], sums: Mapping[str, Any]) -> dict:
    """Of one call, as they are summed: sizes are squared where there are several."""
    squared = {n: windows(statistics[n]) for n in sums if isinstance(sums[n], Mapping)}
    every = {n: {**statistics, **squared}[n] for n in sums}
    return jax.tree.map(shaped_like, every, dict(sums))


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
    statistics = output_statistics([jax.lax.stop_gradient(t) for t in outputs])
    change = rms([jax.lax.stop_gradient(t) for t in moved])
    statistics["update"] = times(a, change)
    sums = entry["sums"]["output"]
    outputs = [scale_gradient(t, c) for t in outputs]
    return call.finish(emit(outputs, _as_summed(statistics, sums), sums))


def output_statistics(outputs: list[Array]) -> dict[str, Float[Array, ""]]:
    """What is read off one call's outputs."""
    wide, peak = at_peak([widen(t) for t in outputs])
    varying = [t - jnp.mean(t, 0, keepdims=True) for t in wide if t.ndim]
    size = sum(t.size for t in wide)
    strength = rms(wide)
    mean = jnp.real(sum(jnp.sum(t) for t in wide) / max(size, 1))
    return {
        "calls": per_call(1, strength),
        "rms": peak * strength,
        "mean": (peak * mean).astype(jnp.float32),
        "varying": peak * rms(varying),
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
    zero = sums["bad"].reshape(())
    return [x + zero.astype(x.dtype) for x in inputs]


def _watch_forward(inputs, sums):
    return _watch(inputs, sums), sums


def _watch_backward(sums, cotangents):
    each = [rms([t]) for t in cotangents]
    largest = jnp.max(jnp.stack([jnp.zeros((), jnp.float32), *each]))
    statistics = {
        "calls": per_call(1, largest),
        "rms": largest,
        "bad": count_nonfinite(cotangents),
    }
    return cotangents, _as_summed(statistics, sums)


_watch.defvjp(_watch_forward, _watch_backward)
