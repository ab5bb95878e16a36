"""What each primitive makes of typical elements: the table of rules."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ._control_flow_rules import cond_rule, scan_rule, while_rule
from ._interpreter import SampleInterpreter
from ._product_rules import convolution_rule, dot_rule
from ._reduction_rules import (
    cumulative_rule,
    reduction_rule,
    running_max,
    running_product,
    running_sum,
    scatter_rule,
    top_k_rule,
    window_rule,
)
from ._samples import Origin, SampledArray, power
from ._shape_rules import (
    axes_rule,
    broadcast_rule,
    concatenate_rule,
    gather_rule,
    identity_rule,
    index_rule,
    overwrite_rule,
    pad_rule,
    reshape_rule,
    same_axes,
    slice_rule,
    sort_rule,
    split_rule,
    squeezed_axes,
    stack_rule,
    tile_rule,
    transposed_axes,
)
from ._values import Constant, WeightValue

ELEMENTWISE_RULES = """
    add add_any sub mul div rem max min neg sign abs square sqrt rsqrt cbrt pow
    integer_pow exp exp2 log expm1 log1p tanh logistic sin cos tan asin acos atan atan2
    sinh cosh asinh acosh atanh erf erfc erf_inv lgamma digamma floor ceil round
    is_finite nextafter clamp select_n eq ne lt le gt ge and or xor not
    shift_left shift_right_logical shift_right_arithmetic population_count
    convert_element_type reduce_precision bitcast_convert_type real imag conj complex
    stop_gradient igamma igammac regularized_incomplete_beta bessel_i0e bessel_i1e
    """


IDENTITY_RULES = "copy copy_p optimization_barrier sharding_constraint pvary"


CASTS = ("convert_element_type", "stop_gradient", "neg", "reduce_precision")
"""What leaves a parameter a parameter."""


def apply_elementwise(
    walk: SampleInterpreter, eqn: Any, values: list
) -> SampledArray | WeightValue:
    """The primitive itself, on samples of its operands, and on parts of them."""
    leaf = _still_leaf(eqn, values)
    if leaf is not None:
        return leaf
    signals = [walk.signal(v) for v in values]
    found = _on_samples(eqn, signals)
    parts = [s.steps for s in signals if s.steps and s.steps.size > 1]
    if not parts or any(p.known.keys() != parts[0].known.keys() for p in parts):
        return found
    part = lambda i: _on_samples(
        eqn, [s.steps.at(i) if s.steps else s for s in signals]
    )
    known = {i: part(i) for i in parts[0].known}
    return found._replace(steps=parts[0]._replace(known=known, last=known[max(known)]))


def _on_samples(eqn: Any, signals: list[SampledArray]) -> SampledArray:
    """The primitive's values for elements, and for their neighbours along each axis."""
    ndim = len(eqn.outvars[0].aval.shape)
    bind = lambda xs: eqn.primitive.bind(*xs, **eqn.params)
    rows: list = []
    for axis in range(ndim):
        own = [s.rows[axis] if s.rows else None for s in signals]
        full = [s.base if r is None else r for r, s in zip(own, signals, strict=True)]
        rows.append(None if all(r is None for r in own) else bind(full))
    profiles = tuple(_blend(signals, axis) for axis in range(ndim))
    base, origin = bind([s.base for s in signals]), Origin(bind, tuple(signals))
    return SampledArray(base, tuple(rows), profiles, None, origin)


def _still_leaf(eqn: Any, values: list) -> WeightValue | None:
    """A parameter that is cast, negated or multiplied by one number stays one."""
    name, bind = eqn.primitive.name, eqn.primitive.bind
    if name in CASTS and isinstance(values[0], WeightValue):
        return values[0]._replace(value=bind(values[0].value, **eqn.params))
    if name not in ("mul", "div"):
        return None
    leaf, number = values
    if name == "mul" and isinstance(leaf, Constant):
        leaf, number = number, leaf
    alone = isinstance(number, Constant) and np.ndim(number.value) == 0
    if not (isinstance(leaf, WeightValue) and alone):
        return None
    by = jnp.asarray(number.value, jnp.float32)
    value = bind(leaf.value, number.value, **eqn.params)
    return leaf._replace(
        value=value, factor=leaf.factor * (by if name == "mul" else 1 / by)
    )


def _blend(signals: list[SampledArray], axis: int) -> Array | None:
    """The profile of what is made of several signals: each counts by its power."""
    shaped = [s for s in signals if s.rows and s.base.dtype != bool]
    given = [s.profile(axis) for s in shaped]
    known = [p for p in given if p is not None]
    if not known:
        return None
    ones = jnp.ones_like(known[0])
    weights = [power(s.base) for s in shaped]
    each = (ones if p is None else p for p in given)
    mixed = sum(w * p for w, p in zip(weights, each, strict=True))
    whole = sum(weights)
    return jnp.where(whole > 0, mixed / jnp.where(whole > 0, whole, 1), ones)


RULE_TABLE: dict[str, Callable] = {
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
    **{f"reduce_{kind}": reduction_rule(kind) for kind in ("sum", "max", "min")},
    "reduce_and": reduction_rule("min"),
    "reduce_or": reduction_rule("max"),
    **{f"reduce_window_{kind}": window_rule(kind) for kind in ("sum", "max", "min")},
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
