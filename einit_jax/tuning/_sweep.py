"""The sweep: one forward and one backward pass that solve every unit's factors.

On the way forward each unit divides its output by its own rms, so that the next unit is
measured on input that is right already. On the way back each unit holds its parameter
gradient, its input gradient and, by a linear transpose of the vjp it has in hand, the
change of its output by an update. Upstream it passes an input gradient of rms 1, or,
where branches must not be weighed against each other, one times a factor that was given
to it. The statistics leave as the cotangent of the unit's ride: `jax.grad` of the loss
with respect to the rides *is* the table of sums over calls.
"""

from collections.abc import Mapping
from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from ..core import inverse_rms, multiply, per_call, rms, squares
from ..linen import RIDE, Call, PureCall, intercept_units, own_gradients
from ..units import Unit, zeros_like_params

SWEEP = RIDE + "sweep"


def sweep_entry(
    unit: Unit, target: float, params: Mapping, exact: bool
) -> dict[str, Any]:
    """The entry that rides with a unit into its first pass, and what comes back in it.

    | name | into the pass | out of it: sum over calls of |
    |---|---|---|
    | `output` | `-target` while free, then the factor | squares of the raw output |
    | `output_size` | - | number of elements of the output |
    | `input_grad` | 0 while free, then the factor b c | squares of the strongest raw input gradient |
    | `input_size` | - | number of elements of that gradient |
    | `output_grad` | c, at which parameter gradients are wanted | squares of the change by an update, at a = c = 1 |
    | `exact` | the factor b, in the place of b c | - |
    | `slot` | parameter gradient of the pass before | the parameter gradient |

    With `exact` the factors b and c are fixed, and act on every cotangent. Else each
    unit brings its input gradient to rms 1 where it stands, and c weighs parameter
    gradients alone.

    Only a unit that is called several times has a slot: its gradients add up before
    they change it, which no call can know by itself.
    """  # noqa: E501
    one = jnp.ones(unit.ride_shape, jnp.float32)
    entry: dict[str, Any] = {
        "output": -target * one,
        "output_size": 0 * one,
        "input_grad": 0 * one,
        "input_size": 0 * one,
        "output_grad": one,
    }
    if exact:
        entry["exact"] = one
    if unit.calls > 1:
        entry["slot"] = zeros_like_params(params, unit)
    return entry


def sweep_interceptor() -> Any:
    """The interceptor of a sweep."""
    return intercept_units(SWEEP, _sweep_call)


def _sweep_call(call: Call, entry: Mapping[str, Any]) -> Any:
    body = PureCall(call)
    held = [jax.lax.stop_gradient(x) for x in body.floats]
    own = own_gradients(call.module.variables["params"])
    floats, transpose, arrays = nn.vjp(  # pyright: ignore[reportAssignmentType]
        body.run, call.module, *held, has_aux=True, multi_scope=True
    )
    power, size = squares(floats)
    goal = entry["output"].reshape(())
    factor = jnp.where(goal > 0, goal, jnp.abs(goal) * inverse_rms(power / size))
    scaled = [multiply(t, factor) for t in floats]
    tuned = _attach(scaled, body.floats, own, transpose, power, factor, entry)
    return body.build(tuned, arrays)


@jax.custom_vjp
def _attach(outputs, inputs, own, transpose, power, factor, entry):
    """The scaled outputs, with the backward pass of the sweep behind them."""
    return outputs


def _attach_forward(outputs, inputs, own, transpose, power, factor, entry):
    return outputs, (own, transpose, power, factor, entry)


def _attach_backward(residual, cotangents):
    own, transpose, power, factor, entry = residual
    given = {name: v.reshape(()) for name, v in entry.items() if name != "slot"}
    start = factor * given["output_grad"] if "exact" in given else factor
    cotangents = [multiply(t, start) for t in cotangents]
    gradient, back = _split_gradients(transpose, cotangents)
    assert len(gradient) == len(own), "parameters of a unit outside its path"
    step = gradient
    if "slot" in entry:
        pairs = zip(gradient, entry["slot"].values(), strict=True)
        step = [jnp.where(given["output"] < 0, g, s.reshape(g.shape)) for g, s in pairs]
    strength, count = _strongest(back)
    size = sum(t.size for t in cotangents)
    change = _squared_change(transpose, cotangents, step)
    sums: dict[str, Any] = {
        "output": power,
        "output_size": per_call(size, [power]),
        "input_grad": strength,
        "input_size": per_call(count, [strength]),
        "output_grad": change,
    }
    if "exact" in given:
        passed, weight = given["exact"], None
        sums |= {"exact": 0.0, "input_grad": jnp.square(passed) * strength}
    else:
        fixed = given["input_grad"]
        passed = jnp.where(fixed > 0, fixed, inverse_rms(strength / count))
        found = inverse_rms(jnp.square(factor) * change / size)
        weight = given["output_grad"] if "slot" in entry else found
    for name, value in sums.items():
        sums[name] = jnp.asarray(value, jnp.float32).reshape(entry[name].shape)
    if "slot" in entry:
        pairs = zip(entry["slot"].items(), gradient, strict=True)
        sums["slot"] = {name: g.reshape(s.shape) for (name, s), g in pairs}
    if weight is not None:
        gradient = [multiply(g, weight) for g in gradient]
    back = [multiply(t, passed) for t in back]
    return None, back, gradient, None, None, None, sums


_attach.defvjp(_attach_forward, _attach_backward)


def _split_gradients(transpose: Any, cotangents: list) -> tuple[list, list]:
    """The gradients of a unit's own floating parameters, and of its floating inputs."""
    of_variables, *of_inputs = transpose(cotangents)
    return own_gradients(of_variables), list(of_inputs)


def _squared_change(transpose: Any, cotangents: list, step: list) -> Float[Array, ""]:
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
    pullback = jax.linear_transpose(
        lambda ct: _split_gradients(transpose, ct)[0], cotangents
    )
    (moved,) = pullback([jnp.conj(t) for t in step])
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
