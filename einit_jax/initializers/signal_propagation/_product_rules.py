"""Rules of products: of a weight with a signal, and of two signals.

A weight is random with mean zero, so its products with a signal are fresh Gaussians.
Their second moments, within an output and between neighbours, are those of the signal,
summed over the fan.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float

from ...core import JaxprEqn
from ._interpreter import SampleInterpreter, Values
from ._reduction_rules import Window, reduce_axis, window_sums
from ._samples import correlate_with_last, gaussian_rows, second_moments
from ._values import SampledArray, Steps, WeightValue, array_type

OWN = -1
"""In the place of a signal's axis: along this one the weight has other entries."""


ALL: Mapping[int, float] = MappingProxyType({})
"""Two places have all entries of the weight in common, along every axis."""


Side = tuple[Sequence[int], Sequence[int]]
"""The axes of an operand that are contracted, and its batch axes."""


def dot_rule(
    interpreter: SampleInterpreter, eqn: JaxprEqn, values: Values
) -> SampledArray:
    """A product with a weight, or of two signals."""
    ((left, right), (left_batch, right_batch)) = eqn.params["dimension_numbers"]
    sides = [(left, left_batch), (right, right_batch)]
    weights = [isinstance(v, WeightValue) for v in values]
    if sum(weights) == 1:
        which = weights.index(True)
        return _dot_with_weight(interpreter, eqn, values, sides=sides, which=which)
    return _dot_of_signals(interpreter, eqn, values, sides)


def _dot_with_weight(
    interpreter: SampleInterpreter,
    eqn: JaxprEqn,
    values: Values,
    *,
    sides: Sequence[Side],
    which: int,
) -> SampledArray:
    """A product with a weight, which is the operand `which`."""
    weight, signal = values[which], interpreter.signal(values[1 - which])
    assert isinstance(weight, WeightValue)
    contracted, batch = sides[1 - which]
    shape = array_type(eqn.invars[1 - which]).shape
    free = [a for a in range(len(shape)) if a not in (*contracted, *batch)]
    bound = (*sides[which][0], *sides[which][1])
    own = [a for a in range(weight.value.ndim) if a not in bound]
    features = [OWN] * len(own)
    free_axes = [*features, *free] if which == 0 else [*free, *features]
    make = lambda part: _weight_output(
        interpreter, eqn, part, signal,
        place=[OWN] * len(batch) + free_axes,
        fan=math.prod(shape[a] for a in contracted),
        inner=next(iter(contracted), None),
    )  # fmt: skip
    if weight.joined is None or weight.joined[0] not in own:
        return make(weight)
    before = len(batch) + (0 if which == 0 else len(free))
    axis = before + own.index(weight.joined[0])
    return _product_of_joined(interpreter, eqn, weight, make=make, axis=axis)


def _product_of_joined(
    interpreter: SampleInterpreter,
    eqn: JaxprEqn,
    weight: WeightValue,
    *,
    make: Callable[[WeightValue], SampledArray],
    axis: int,
) -> SampledArray:
    """What joined weights make along `axis`; parts of equal sizes are known apart."""
    assert weight.joined is not None
    along, weights = weight.joined
    sizes = [part.value.shape[along] for part in weights]
    parts = [make(part) for part in weights]
    choice = interpreter.source.integers(len(parts))
    mixture = interpreter.mixed(parts, choice, array_type(eqn.outvars[0]))
    assert isinstance(mixture, SampledArray)
    mixture = mixture.with_neighbour(axis, jnp.roll(mixture.base, 1))
    if len(set(sizes)) > 1:
        return mixture
    known = {i * sizes[0]: part for i, part in enumerate(parts)}
    return mixture._replace(steps=Steps(axis, sizes[0], known, parts[-1]))


def _weight_output(
    interpreter: SampleInterpreter,
    eqn: JaxprEqn,
    weight: WeightValue,
    signal: SampledArray,
    *,
    place: Sequence[int],
    fan: ArrayLike,
    inner: int | None,
    common: Mapping[int, float] = ALL,
) -> SampledArray:
    """What a weight makes of a signal.

    `place` has for each axis of the output the signal's axis, or OWN. `inner` is an
    axis that is summed over. `common` says, for axes of the signal, which part of the
    weight's entries two places have in common.
    """
    kept = [a for a in place if a != OWN and signal.rows[a] is not None]
    rows = [signal.base, *(signal.row(a) for a in kept)]
    within = _moments_within(signal, rows, inner) if interpreter.centred else None
    shared = np.array([1.0, *(common.get(a, 1.0) for a in kept)])
    shared = np.where(np.eye(len(rows)) > 0, 1.0, shared[:, None] * shared)
    base, *others = _weight_rows(
        interpreter, eqn, weight, rows, fan=fan, common=shared, within=within
    )
    neighbours = dict(zip(kept, others, strict=True))
    size, array = jnp.sqrt(jnp.mean(jnp.square(base))), array_type(eqn.outvars[0])
    out = [
        None if n == 1
        else size * interpreter.source.normal() if a == OWN
        else neighbours.get(a)
        for a, n in zip(place, array.shape, strict=True)
    ]  # fmt: skip
    return SampledArray(base, tuple(out)).map(lambda x: x.astype(array.dtype))


def _weight_rows(
    interpreter: SampleInterpreter,
    eqn: JaxprEqn,
    weight: WeightValue,
    rows: list[Array],
    *,
    fan: ArrayLike,
    common: Float[np.ndarray, "rows rows"],
    within: Array | None,
) -> list[Array]:
    """Rows of what a weight makes of rows of inputs: `sum over fan of w x`.

    `common` is the part of the weight's entries that two rows have in common. `within`
    are second moments over different inputs of one sum, which entries that sum to zero
    take away. A weight that is used again makes of similar inputs something similar to
    the last time.
    """
    moments = second_moments(rows)
    moments = (moments if within is None else moments - within) * common
    size = jnp.maximum(moments[0, 0], 0) * jnp.square(weight.factor) * fan
    variance = interpreter.product_variance(eqn, weight, size)
    products = gaussian_rows(interpreter.source, moments, variance)
    last = interpreter.last_products.get(weight.refs)
    if last is not None and len(last[1]) == len(products):
        products = correlate_with_last(
            products, variance,
            operand=rows[0], last_operand=last[0], last_rows=last[1],
        )  # fmt: skip
    interpreter.last_products[weight.refs] = rows[0], products
    return products


def _moments_within(
    signal: SampledArray, rows: list[Array], inner: int | None
) -> Array:
    """Second moments between different inputs of one sum."""
    other = signal.base if inner is None else signal.row(inner)
    cross = jnp.stack([jnp.mean(row * other) for row in rows])
    return (cross[:, None] + cross[None, :]) / 2


def _dot_of_signals(
    interpreter: SampleInterpreter,
    eqn: JaxprEqn,
    values: Values,
    sides: Sequence[Side],
) -> SampledArray:
    """Element by element, then summed over the axes that are contracted."""
    left, right = (interpreter.signal(v) for v in values)
    shapes = [array_type(v).shape for v in eqn.invars]
    free = [
        [a for a in range(len(shape)) if a not in (*contracted, *batch)]
        for shape, (contracted, batch) in zip(shapes, sides, strict=True)
    ]
    if values[0] is values[1] and free[1]:  # another row of the same array
        axis = free[1][0]
        right = interpreter.part(interpreter.part(right, axis, "own"), axis, "other")
    (inner, batch), (right_inner, right_batch) = sides
    left = left.with_axes([*batch, *free[0], *[None] * len(free[1]), *inner])
    right = right.with_axes(
        [*right_batch, *[None] * len(free[0]), *free[1], *right_inner]
    )
    rows = [
        None if x is None and y is None else left.row(a) * right.row(a)
        for a, (x, y) in enumerate(zip(left.rows, right.rows, strict=True))
    ]
    product = SampledArray(left.base * right.base, tuple(rows))
    for a in reversed(inner):
        last, size = len(product.rows) - 1, shapes[0][a]
        product = reduce_axis(interpreter, product, last, reduction="sum", size=size)
    return product.map(lambda x: x.astype(array_type(eqn.outvars[0]).dtype))


def convolution_rule(
    interpreter: SampleInterpreter, eqn: JaxprEqn, values: Values
) -> SampledArray:
    """A convolution with a weight; at borders it has fewer summands."""
    numbers, params, weight = eqn.params["dimension_numbers"], eqn.params, values[1]
    signal, shape = interpreter.signal(values[0]), array_type(eqn.invars[0]).shape
    if not isinstance(weight, WeightValue):
        interpreter.note(eqn)
        return interpreter.fitted(signal, array_type(eqn.outvars[0]))
    sizes = weight.value.shape
    axes = zip(
        numbers.out_spec[2:], numbers.lhs_spec[2:], numbers.rhs_spec[2:],
        params["window_strides"], params["padding"],
        params["lhs_dilation"], params["rhs_dilation"], strict=True,
    )  # fmt: skip
    place = [OWN] * len(shape)
    place[numbers.out_spec[0]] = numbers.lhs_spec[0]
    common, profiles = {}, [None] * len(shape)
    fan = jnp.float32(sizes[numbers.rhs_spec[1]])
    for out, source, window_axis, *geometry in axes:
        window = Window(sizes[window_axis], *geometry)
        meets, sums = window_sums(signal.profile(source), shape[source], window)
        place[out], common[source] = source, _common_share(meets)
        profiles[out], fan = sums / jnp.mean(sums), fan * jnp.mean(sums)
    output = _weight_output(
        interpreter, eqn, weight, signal,
        place=place, fan=fan, inner=numbers.lhs_spec[1], common=common,
    )  # fmt: skip
    return output._replace(profiles=tuple(profiles))


def _common_share(meets: Bool[np.ndarray, "places window"]) -> float:
    """Which part of the entries that one place meets another one meets too."""
    shared: Float[np.ndarray, "places places"] = meets.astype(float) @ meets.T
    own, others = np.trace(shared), len(meets) * (len(meets) - 1)
    if not others or not own:
        return 1.0
    return float((shared.sum() - own) / others / (own / len(meets)))
