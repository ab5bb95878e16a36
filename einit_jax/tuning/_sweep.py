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
from functools import reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..core import Params, inverse_rms, multiply, per_call, rms, shaped_like, squares
from ..graph import transposed
from ..units import Interception, Unit, UnitCall, UnitKey, zeros_like_params

PerLayer = Float[Array, "..."]
"""A number for each layer, in the shape in which it is carried to the unit."""


class Shared(NamedTuple):
    """What only a unit is told that is called several times.

    Its calls share their factors, so that no call knows them: after a first pass they
    are given, and `found` is 1.
    """

    found: PerLayer
    """1 where the factors below are in force, 0 in a first pass."""
    output: PerLayer
    """a."""
    step: dict[str, Array]
    """The parameter gradient of the pass before, along which the change is taken."""
    input_scale: PerLayer | None = None
    """b c; None where b is given apart."""


class Settings(NamedTuple):
    """What a unit is told before a pass; None where it is told nothing.

    A unit that is called once finds a by itself, where it stands, and without
    `input_grad` also b and c.
    """

    target: PerLayer
    """The output rms to aim at."""
    output_grad: PerLayer | None = None
    """c: it acts on every cotangent with `input_grad`, else on parameter gradients."""
    input_grad: PerLayer | None = None
    """b, where b and c are fixed and act on every cotangent."""
    shared: Shared | None = None


class Sums(NamedTuple):
    """What comes out of a pass: sums over the calls of a unit.

    Of a unit that is called several times mean squares are summed, sizes being 1: calls
    may differ in size.
    """

    output: PerLayer
    """Squares of the raw output."""
    output_size: PerLayer
    """Elements of the output."""
    input_grad: PerLayer
    """Squares of the strongest raw input gradient."""
    input_size: PerLayer
    """Elements of that gradient."""
    change: PerLayer
    """Squares of the change of the output by an update, at a = c = 1."""
    gradient: dict[str, Array] | None = None
    """The parameter gradient, of units called several times: their calls' gradients add
    up before they change the unit, which no call can know by itself."""


def first_settings(
    unit: Unit, target: float, params: Params, fixed_gradients: bool
) -> Settings:
    """Before a first pass; with `fixed_gradients` b and c are given, and 1."""
    one = jnp.ones(unit.carried_shape, jnp.float32)
    settings = Settings(target * one)
    if fixed_gradients:
        settings = settings._replace(output_grad=one, input_grad=one)
    if unit.calls > 1:
        shared = Shared(
            found=0 * one,
            output=one,
            step=zeros_like_params(params, unit),
            input_scale=None if fixed_gradients else one,
        )
        settings = settings._replace(output_grad=one, shared=shared)
    return settings


def empty_sums(unit: Unit, params: Params) -> Sums:
    """Zeros, whose cotangents are the sums."""
    zero = jnp.zeros(unit.carried_shape, jnp.float32)
    gradient = zeros_like_params(params, unit) if unit.calls > 1 else None
    return Sums(zero, zero, zero, zero, zero, gradient)


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
    factor: Float[Array, ""]
    settings: Settings
    sums: Sums


def _sweep_call(call: UnitCall, entry: Mapping[str, Any]) -> Any:
    """A call whose output has the rms aimed at, with the backward pass of the sweep."""
    settings, sums = _scalars(entry["settings"]), Sums(**entry["sums"])
    raw, transpose = call.vjp([jax.lax.stop_gradient(x) for x in call.inputs])
    power, size = squares(raw)
    factor = settings.target * inverse_rms(power / size)
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
    params, transpose, power, factor, settings, sums = residual
    fixed, shared = settings.input_grad is not None, settings.shared
    start = factor * settings.output_grad if fixed else factor
    cotangents = [multiply(t, start) for t in cotangents]
    gradient, back = transpose(cotangents)
    assert len(gradient) == len(params), "parameters of a unit outside its path"
    strength, count = _strongest(back)
    size = sum(t.size for t in cotangents)
    change = _squared_change(transpose, cotangents, _step(gradient, shared))
    if fixed:
        passed, weight = settings.input_grad, None
    else:
        passed = inverse_rms(strength / count)
        weight = inverse_rms(jnp.square(factor) * change / size)
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
    shaped: dict[str, Any] = {
        name: shaped_like(jnp.asarray(value, jnp.float32), getattr(sums, name))
        for name, value in statistics.items()
    }
    if sums.gradient is not None:
        pairs = zip(sums.gradient.items(), gradient, strict=True)
        shaped["gradient"] = {name: shaped_like(g, s) for (name, s), g in pairs}
    if weight is not None:
        gradient = [multiply(g, weight) for g in gradient]
    back = [multiply(t, passed) for t in back]
    none: Any = None  # a cotangent of zero
    return None, back, _Residual(gradient, none, none, none, none, Sums(**shaped))


_attach.defvjp(_attach_forward, _attach_backward)


def _step(gradient: list[Array], shared: Shared | None) -> list[Array]:
    """Along what the change is taken: the joint gradient of all calls, once known."""
    if shared is None:
        return gradient
    pairs = zip(gradient, shared.step.values(), strict=True)
    return [jnp.where(shared.found > 0, shaped_like(s, g), g) for g, s in pairs]


def _squared_change(
    transpose: Callable, cotangents: list, step: list
) -> Float[Array, ""]:
    """The squares of `J_theta conj(step)`, by transposing the vjp once more.

    With 16 bits the step is brought to rms 1 first: raw gradients of wide layers add
    up beyond 65504.
    """
    if not step:
        return jnp.zeros((), jnp.float32)
    size = jnp.ones((), jnp.float32)
    narrow = any(jnp.finfo(t.dtype).bits == 16 for t in cotangents)
    if narrow:
        size = rms(step)
        size = jnp.where(size > 0, size, 1)
        step = [multiply(t, 1 / size) for t in step]
    pullback = transposed(lambda ct: transpose(ct)[0], cotangents)
    moved = pullback([jnp.conj(t) for t in step])
    power, _ = squares(moved)
    return jnp.square(size) * power if narrow else power


def _strongest(gradients: list) -> tuple[Float[Array, ""], Any]:
    """The squares and the size of the gradient with the largest rms."""
    if not gradients:
        return jnp.zeros((), jnp.float32), 1
    if len(gradients) == 1:
        return squares(gradients)
    means = [power / size for power, size in (squares([t]) for t in gradients)]
    return reduce(jnp.maximum, means), 1
