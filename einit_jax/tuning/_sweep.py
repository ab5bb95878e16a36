"""The sweep: one forward and one backward pass that solve every unit's factors.

On the way forward each unit divides its output by its own rms, so that the next unit is
measured on input that is right already. On the way back each unit has its parameter
gradient, its input gradient and, by a linear transpose of the vjp it has in hand, the
change of its output by an update. Upstream it passes an input gradient of rms 1, or,
where branches must not be weighed against each other, one times a factor that it was
given. The statistics leave as the cotangent of the unit's `Sums`: `jax.grad` of the
loss with respect to them *is* the table of sums over calls.
"""

from collections.abc import Callable, Mapping
from functools import partial, reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..core import (
    FLOOR,
    as_summed,
    at_peak,
    inverse,
    inverse_rms,
    multiply,
    per_call,
    rms,
    shaped_like,
    squares,
    times,
)
from ..graph import transposed
from ..units import Interception, UnitCall, UnitKey
from ._potentials import output_factor
from ._state import Settings, Shared, Sums


def sweeping(
    settings: Mapping[UnitKey, Settings], sums: Mapping[UnitKey, Sums]
) -> Interception:
    """The interception of a sweep."""
    entries = {
        key: {"settings": _as_dict(own), "sums": _as_dict(sums[key])}
        for key, own in settings.items()
    }
    return Interception("sweep", entries, _sweep_call)


def _as_dict(values: Settings | Shared | Sums) -> dict[str, Any]:
    """The fields that are there: transforms of parameters know nested dicts alone."""
    fields = {name: v for name, v in values._asdict().items() if v is not None}
    return {n: _as_dict(v) if isinstance(v, Shared) else v for n, v in fields.items()}


def _scalars(carried: Mapping[str, Any]) -> Settings:
    """What was carried to one layer, as scalars."""

    def scalars(values: Mapping[str, Any]) -> dict[str, Any]:
        flat = {n: v for n, v in values.items() if n not in ("shared", "step")}
        return {name: v.reshape(()) for name, v in flat.items()}

    settings = Settings(**scalars(carried))
    if "shared" not in carried:
        return settings
    shared = carried["shared"]
    shared = Shared(**scalars(shared), step=dict(shared["step"]))
    return settings._replace(shared=shared)


class _Residual(NamedTuple):
    """What the backward pass of a call needs."""

    params: list[Array]
    transpose: Callable
    power: Float[Array, ""]
    """Squares of the raw output; in a wide pass its rms."""
    factor: Float[Array, ""]
    settings: Settings
    sums: Sums


def _sweep_call(call: UnitCall, entry: Mapping[str, Any]) -> Any:
    """A call whose output has the rms aimed at, with the backward pass of the sweep."""
    settings, sums = _scalars(entry["settings"]), Sums(**entry["sums"])
    raw, transpose = call.vjp([jax.lax.stop_gradient(x) for x in call.inputs])
    if sums.wide:
        power = mean = rms(raw)
    else:
        power, size = squares(raw, FLOOR)
        mean = power / size
    factor = output_factor(settings.target, mean, wide=sums.wide)
    if settings.shared is not None:
        shared = settings.shared
        factor = jnp.where(shared.found > 0, shared.output, factor)
    outputs = [multiply(t, factor) for t in raw]
    residual = _Residual(call.params, transpose, power, factor, settings, sums)
    return call.finish(_attach(outputs, call.inputs, residual))


@jax.custom_vjp
def _attach(outputs: list, inputs: list, residual: _Residual) -> list:
    """The scaled outputs, with the backward pass of the sweep behind them."""
    return outputs


def _attach_forward(outputs, inputs, residual):
    return outputs, residual


def _attach_backward(residual, cotangents):
    sums: Sums = residual.sums
    found = (_read_wide if sums.wide else _read)(residual, cotangents)
    assert len(found.gradient) == len(residual.params), (
        "parameters of a unit outside its path"
    )
    shape = lambda value, zero: shaped_like(jnp.asarray(value, jnp.float32), zero)
    zeros = {name: getattr(sums, name) for name in found.statistics}
    shaped: dict[str, Any] = jax.tree.map(shape, found.statistics, zeros)
    if sums.gradient is not None:
        pairs = zip(sums.gradient.items(), found.raw, strict=True)
        shaped["gradient"] = {name: shaped_like(g, s) for (name, s), g in pairs}
    none: Any = None  # a cotangent of zero
    rest = _Residual(found.gradient, none, none, none, none, Sums(**shaped))
    return None, found.back, rest


_attach.defvjp(_attach_forward, _attach_backward)


class _Found(NamedTuple):
    """What the backward pass of a call finds."""

    gradient: list[Array]
    """Of the parameters, as the factors carry it."""
    raw: list[Array]
    """The same without the c that was just found."""
    back: list[Array]
    """What is passed upstream."""
    statistics: dict[str, Any]


def _read(residual: Any, cotangents: list[Array]) -> _Found:
    """The backward pass of a call, for sizes whose squares are in float32."""
    _, transpose, power, factor, settings, _ = residual
    fixed, shared = settings.input_grad is not None, settings.shared
    start = factor * settings.output_grad if fixed else factor
    cotangents = [multiply(t, start) for t in cotangents]
    gradient, back = transpose(cotangents)
    strength, count = _strongest(back)
    size = sum(t.size for t in cotangents)
    change = _squared_change(transpose, cotangents, _step(gradient, shared))
    if fixed:
        passed, weight = settings.input_grad, None
    else:
        passed = inverse_rms(strength / count)
        weight = _weight(factor, change, size)
        if shared is not None:
            passed = jnp.where(shared.found > 0, shared.input_scale, passed)
            weight = settings.output_grad
    if shared is not None:  # each call counts the same, whatever its size
        power, change, size = power / size, change / size, 1
        strength, count = strength / count, 1
    statistics = {
        "output": power,
        "output_size": per_call(size, power),
        "input_grad": jnp.square(passed) * strength if fixed else strength,
        "input_size": per_call(count, strength),
        "change": change,
    }
    carried = gradient if weight is None else [multiply(g, weight) for g in gradient]
    return _Found(carried, gradient, [multiply(t, passed) for t in back], statistics)


def _read_wide(residual: Any, cotangents: list[Array]) -> _Found:
    """The backward pass of a call, for all sizes in float32.

    The unit transposes cotangents near 1; what they were divided by waits in `aside`.
    """
    _, transpose, size, factor, settings, _ = residual
    fixed, shared = settings.input_grad is not None, settings.shared
    cotangents, aside = at_peak(cotangents)
    start = times(factor, settings.output_grad) if fixed else factor
    gradient, back = transpose([multiply(t, start) for t in cotangents])
    strength = reduce(jnp.maximum, [rms([t]) for t in back], jnp.zeros(()))
    step = _step(gradient, shared)
    length, ahead = rms(step), aside
    if shared is not None:
        ahead = jnp.where(shared.found > 0, 1.0, aside)
    moved = _moved(transpose, cotangents, [multiply(t, inverse(length)) for t in step])
    change = times(factor, rms(moved), length)
    if fixed:
        passed, weight = times(settings.input_grad, aside), aside
    else:
        passed = inverse(strength)
        weight = jnp.where(change > 0, inverse(change), aside)
        if shared is not None:
            given = times(shared.input_scale, aside)
            passed = jnp.where(shared.found > 0, given, passed)
            weight = times(settings.output_grad, aside)
    by = settings.input_grad if fixed else 1.0
    summed = lambda size: {"size": as_summed(size, several=shared is not None)}
    statistics = {
        "output": summed(size),
        "output_size": per_call(1, size),
        "input_grad": summed(times(strength, aside, by)),
        "input_size": per_call(1, strength),
        "change": summed(times(factor, rms(moved), length, ahead)),
    }
    carried = [multiply(g, weight) for g in gradient]
    raw = [multiply(g, aside) for g in gradient] if shared is not None else []
    return _Found(carried, raw, [multiply(t, passed) for t in back], statistics)


@partial(jax.jit, static_argnums=2)
def _weight(factor: Array, change: Array, size: int) -> Array:
    """c, of a change of so many elements at a = 1."""
    return inverse_rms(jnp.square(factor) * change / size)


def _step(gradient: list[Array], shared: Shared | None) -> list[Array]:
    """Along what the change is taken: the joint gradient of all calls, once known."""
    if shared is None:
        return gradient
    pairs = zip(gradient, shared.step.values(), strict=True)
    return [jnp.where(shared.found > 0, shaped_like(s, g), g) for g, s in pairs]


def _squared_change(
    transpose: Callable, cotangents: list, step: list
) -> Float[Array, ""]:
    """The squares of the change of the output along a step.

    With 16 bits the step is brought to rms 1 first: raw gradients of wide layers add
    up beyond 65504.
    """
    size = jnp.ones((), jnp.float32)
    narrow = any(jnp.finfo(t.dtype).bits == 16 for t in cotangents)
    if narrow:
        size = rms(step)
        size = jnp.where(size > 0, size, 1)
        step = [multiply(t, 1 / size) for t in step]
    power, _ = squares(_moved(transpose, cotangents, step), FLOOR)
    return jnp.square(size) * power if narrow else power


def _moved(transpose: Callable, cotangents: list, step: list) -> list[Array]:
    """`J_theta conj(step)`, by transposing the vjp once more."""
    if not step:
        return []
    pullback = transposed(lambda ct: transpose(ct)[0], cotangents)
    return pullback([jnp.conj(t) for t in step])


def _strongest(gradients: list) -> tuple[Float[Array, ""], Any]:
    """The squares and the size of the gradient with the largest rms."""
    if not gradients:
        return jnp.zeros((), jnp.float32), 1
    if len(gradients) == 1:
        return squares(gradients, FLOOR)
    means = [power / size for power, size in (squares([t], FLOOR) for t in gradients)]
    return reduce(jnp.maximum, means), 1
