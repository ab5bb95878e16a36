"""What is read off each call of a unit while the scaled model runs, factors fixed.

Outputs are read where they are, input gradients where `jax.grad` brings them by, and
the change by an update is a forward-mode derivative of the unit along its own gradient.
Statistics leave as the cotangents of sums that are carried to the unit.
"""

from collections.abc import Mapping, Sequence
from functools import partial, reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..core import (
    WINDOWS,
    as_summed,
    at_peak,
    emit,
    from_windows,
    multiply,
    per_call,
    rms,
    scale_gradient,
    squares,
    summed_like,
    widen,
)
from ..units import FACTORS, Interception, Unit, UnitCall, UnitKey, concat_units

READINGS = ("calls", "mean", "bad", "rms", "varying")
"""What is read off outputs and summed over calls: their number, the mean, the number of
elements that are not finite, the rms, and that around the mean of the batch."""
SIZES = ("rms", "varying", "update")
"""Root mean squares; `update` is that of the change by an update, at a = 1. Of units
that are called several times squares are summed, by `core.WINDOWS`."""

UnitSums = Mapping[UnitKey, Mapping[str, Any]]


def empty_statistics(unit: Unit, *, captured: bool) -> dict[str, dict[str, Any]]:
    """Zeros, whose cotangents are the statistics summed over calls.

    Of input gradients there are the rms and the number of elements that are not finite,
    of the strongest one. What is captured of outputs is read there.
    """
    zero = jnp.zeros(unit.carried_shape, jnp.float32)
    zeros = lambda names: {name: _zeros_like(zero, name, unit) for name in names}
    return {
        "output": zeros(("update",) if captured else (*READINGS, "update")),
        "input": zeros(("calls", "bad", "rms")),
    }


def _zeros_like(zero: Array, name: str, unit: Unit) -> Any:
    return as_summed(zero, several=unit.calls > 1 and name in SIZES)


def sums_of_captured(unit: Unit, calls: Sequence[list[Array]]) -> dict[str, Any]:
    """The same sums over calls, of outputs that were captured."""
    zero = jnp.zeros((), jnp.float32)
    zeros = {name: _zeros_like(zero, name, unit) for name in READINGS}
    outputs = [[jax.lax.stop_gradient(t) for t in call] for call in calls]
    each = [summed_like(output_statistics(call), zeros) for call in outputs]
    return reduce(partial(jax.tree.map, jnp.add), each)


def over_calls(
    units: Sequence[Unit], sums: UnitSums
) -> dict[str, Float[Array, " rows"]]:
    """From sums over calls to what holds of all calls together, a column each.

    Whole columns at once: scalars of each unit would be as many small kernels.
    """
    shared = [unit for unit in units if unit.calls > 1]
    many = np.repeat([u.calls > 1 for u in units], [u.size for u in units])
    column = lambda name: concat_units(units, {k: s[name] for k, s in sums.items()})
    calls = jnp.maximum(column("calls"), 1)

    def joint(name: str) -> Array:
        if name in ("calls", "bad"):
            return column(name)
        if name not in SIZES or not shared:
            return column(name) / calls
        once = [unit for unit in units if unit.calls == 1]
        summed = {
            w: concat_units(shared, {u.key: sums[u.key][name][w] for u in shared})
            for w in WINDOWS
        }
        sizes = [from_windows(summed, calls[many])]
        if once:
            values = concat_units(once, {u.key: sums[u.key][name] for u in once})
            sizes.append(values / calls[~many])
        places = np.concatenate([np.flatnonzero(many), np.flatnonzero(~many)])
        return jnp.concatenate(sizes)[np.argsort(places)]

    return {name: joint(name) for name in sums[units[0].key]}


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
    sums = entry["sums"]["output"]
    statistics = {"update": rms([jax.lax.stop_gradient(t) for t in moved])}
    if "rms" in sums:
        still = [jax.lax.stop_gradient(t) for t in outputs]
        statistics |= output_statistics(still)
    outputs = [scale_gradient(t, c) for t in outputs]
    return call.finish(emit(outputs, summed_like(statistics, sums), sums))


@jax.jit
def output_statistics(outputs: list[Array]) -> dict[str, Float[Array, ""]]:
    """What is read off one call's outputs."""
    wide, peak = at_peak([widen(t) for t in outputs])
    varying = [t - jnp.mean(t, 0, keepdims=True) for t in wide if t.ndim]
    size = max(sum(t.size for t in wide), 1)
    mean = jnp.real(sum(jnp.sum(t) for t in wide) / size)
    # squares of what is at most 1: those that underflow are too small to be seen
    strength, spread = (
        peak * jnp.sqrt(squares(leaves)[0] / size) for leaves in (wide, varying)
    )
    return {
        "calls": per_call(1, strength),
        "rms": strength,
        "mean": (peak * mean).astype(jnp.float32),
        "varying": spread,
        "bad": count_nonfinite(wide),
    }


@jax.jit
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
    return cotangents, summed_like(statistics, sums)


_watch.defvjp(_watch_forward, _watch_backward)
