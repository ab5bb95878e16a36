"""`RULE_TABLE`: for each primitive of jax the rule by which it is interpreted.

A rule is a function

    rule(interpreter, eqn, values) -> value, or a list of values

from the `InterpretedValue`s of the operands of an equation to that of its output, or to
a list where the primitive has several outputs.

- `interpreter.signal(value)` turns any value into a `SampledArray`; `array_type(atom)`
  has the shape and dtype of an operand or output; `interpreter.source` draws samples.
- A rule makes `base`, the samples of one element of the output, and for each axis a
  row: samples of its neighbour, or None where that is the element itself.
- A weight stays a `WeightValue` as long as its entries are only moved, joined or
  multiplied by one number.

To add an elementwise primitive, add its name to `ELEMENTWISE_RULES`. To add any other,
write its rule in the file of its kind (`_shape_rules`, `_reduction_rules`,
`_product_rules`, `_control_flow_rules`) and name it in `RULE_TABLE`. `sample_axis` has
more elements along an axis, `reduce_axis` their sum, maximum or minimum.

A primitive without a rule lets its first floating operand pass, and `autoinit` warns.
"""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ...core import JaxprEqn
from ._control_flow_rules import cond_rule, scan_rule, while_rule
from ._interpreter import PrimitiveRule, SampleInterpreter, Values
from ._product_rules import convolution_rule, dot_rule
from ._reduction_rules import (
    cumulative_rule,
    index_rule,
    reduction_rule,
    running_max,
    running_product,
    running_sum,
    scatter_rule,
    sort_rule,
    top_k_rule,
    window_rule,
)
from ._samples import power
from ._shape_rules import (
    axes_rule,
    broadcast_rule,
    concatenate_rule,
    gather_rule,
    overwrite_rule,
    pad_rule,
    reshape_rule,
    same_axes,
    slice_rule,
    split_rule,
    squeezed_axes,
    stack_rule,
    transposed_axes,
)
from ._values import (
    Constant,
    InterpretedValue,
    Origin,
    SampledArray,
    WeightValue,
    array_type,
)

ELEMENTWISE_RULES = """
    add add_any sub mul div rem max min neg sign abs square sqrt rsqrt cbrt pow
    integer_pow exp exp2 log expm1 log1p tanh logistic sin cos tan asin acos atan atan2
    sinh cosh asinh acosh atanh erf erfc erf_inv lgamma digamma floor ceil round
    is_finite nextafter clamp select_n eq ne lt le gt ge and or xor not
    shift_left shift_right_logical shift_right_arithmetic population_count
    convert_element_type reduce_precision bitcast_convert_type real imag conj complex
    stop_gradient igamma igammac regularized_incomplete_beta bessel_i0e bessel_i1e
    """


IDENTITY_RULES = "copy copy_p optimization_barrier sharding_constraint pvary reshard"


CASTS = ("convert_element_type", "stop_gradient", "neg", "reduce_precision")
"""Elementwise primitives that keep a weight a weight."""


def apply_elementwise(
    interpreter: SampleInterpreter, eqn: JaxprEqn, values: Values
) -> SampledArray | WeightValue:
    """The primitive itself, on samples of its operands, and on parts of them."""
    weight = _still_weight(eqn, values)
    if weight is not None:
        return weight
    signals = [interpreter.signal(v) for v in values]
    whole = _apply_to_samples(eqn, signals)
    steps = [s.steps for s in signals if s.steps and s.steps.size > 1]
    if not steps or any(s.known.keys() != steps[0].known.keys() for s in steps):
        return whole
    known = {
        i: _apply_to_samples(eqn, [s.steps.at(i) if s.steps else s for s in signals])
        for i in steps[0].known
    }
    return whole._replace(steps=steps[0]._replace(known=known, last=known[max(known)]))


def _apply_to_samples(eqn: JaxprEqn, signals: Sequence[SampledArray]) -> SampledArray:
    """The primitive's values for elements, and for their neighbours along each axis."""
    ndim = len(array_type(eqn.outvars[0]).shape)
    bind = lambda operands: eqn.primitive.bind(*operands, **eqn.params)
    rows: list[Array | None] = []
    for axis in range(ndim):
        own = [s.rows[axis] if s.rows else None for s in signals]
        full = [s.base if r is None else r for r, s in zip(own, signals, strict=True)]
        rows.append(None if all(r is None for r in own) else bind(full))
    profiles = tuple(_blend_profiles(signals, axis) for axis in range(ndim))
    base, origin = bind([s.base for s in signals]), Origin(bind, tuple(signals))
    return SampledArray(base, tuple(rows), profiles, None, origin)


def _still_weight(eqn: JaxprEqn, values: Values) -> WeightValue | None:
    """A weight that is cast, negated or multiplied by one number stays one."""
    name, bind = eqn.primitive.name, eqn.primitive.bind
    if name in CASTS and isinstance(values[0], WeightValue):
        return values[0]._replace(value=bind(values[0].value, **eqn.params))
    if name not in ("mul", "div"):
        return None
    weight, number = values
    if name == "mul" and isinstance(weight, Constant):
        weight, number = number, weight
    if not isinstance(weight, WeightValue) or not isinstance(number, Constant):
        return None
    if np.ndim(number.value) > 0:
        return None
    factor = jnp.asarray(number.value, jnp.float32)
    value = bind(weight.value, number.value, **eqn.params)
    factor = factor if name == "mul" else 1 / factor
    return weight._replace(value=value, factor=weight.factor * factor)


def _blend_profiles(signals: Sequence[SampledArray], axis: int) -> Array | None:
    """The profile of what is made of several signals: each counts by its power."""
    arrays = [s for s in signals if s.rows and s.base.dtype != bool]
    profiles = [s.profile(axis) for s in arrays]
    known = [p for p in profiles if p is not None]
    if not known:
        return None
    ones = jnp.ones_like(known[0])
    powers = [power(s.base) for s in arrays]
    filled_in = (ones if p is None else p for p in profiles)
    blend = sum(w * p for w, p in zip(powers, filled_in, strict=True))
    total = sum(powers)
    return jnp.where(total > 0, blend / jnp.where(total > 0, total, 1), ones)


def identity_rule(
    interpreter: SampleInterpreter, eqn: JaxprEqn, values: Values
) -> list[InterpretedValue]:
    """Each operand as it is."""
    return list(values)


def tile_rule(
    interpreter: SampleInterpreter, eqn: JaxprEqn, values: Values
) -> SampledArray:
    """The same elements, several times."""
    signal = interpreter.signal(values[0])
    return interpreter.fitted(signal, array_type(eqn.outvars[0]))


RULE_TABLE: dict[str, PrimitiveRule] = {
    **dict.fromkeys(ELEMENTWISE_RULES.split(), apply_elementwise),
    **dict.fromkeys(IDENTITY_RULES.split(), identity_rule),
    "broadcast_in_dim": broadcast_rule,
    "reshape": reshape_rule,
    "transpose": axes_rule(transposed_axes),
    "squeeze": axes_rule(squeezed_axes),
    "rev": axes_rule(same_axes),
    **dict.fromkeys(("slice", "dynamic_slice"), slice_rule),
    "split": split_rule,
    "concatenate": concatenate_rule,
    "stack": stack_rule,
    "pad": pad_rule,
    **dict.fromkeys(("dynamic_update_slice", "scatter"), overwrite_rule),
    "gather": gather_rule,
    "tile": tile_rule,
    "scatter-add": scatter_rule,
    "reduce_sum": reduction_rule("sum"),
    "reduce_max": reduction_rule("max"),
    "reduce_min": reduction_rule("min"),
    "reduce_and": reduction_rule("min"),
    "reduce_or": reduction_rule("max"),
    "reduce_window_sum": window_rule("sum"),
    "reduce_window_max": window_rule("max"),
    "reduce_window_min": window_rule("min"),
    "cumsum": cumulative_rule(running_sum),
    "cumprod": cumulative_rule(running_product),
    "cummax": cumulative_rule(running_max),
    **dict.fromkeys(("argmax", "argmin"), index_rule),
    "top_k": top_k_rule,
    "sort": sort_rule,
    "dot_general": dot_rule,
    "conv_general_dilated": convolution_rule,
    "scan": scan_rule,
    "while": while_rule,
    "cond": cond_rule,
}
