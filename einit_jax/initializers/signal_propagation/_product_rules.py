"""The rules of products: a weight makes a fresh Gaussian of what it meets."""

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from ._interpreter import SampleInterpreter
from ._reduction_rules import reduce_axis, window_sums
from ._samples import SampledArray, Steps
from ._values import WeightValue

OWN = -1
"""In the place of an axis: one along which the entries of the weight are others."""


ALL: Mapping[int, float] = MappingProxyType({})


def dot_rule(walk: SampleInterpreter, eqn: Any, values: list) -> SampledArray:
    """A product with a weight, or of two signals."""
    ((left, right), (left_batch, right_batch)) = eqn.params["dimension_numbers"]
    sides = [(left, left_batch), (right, right_batch)]
    weights = [isinstance(v, WeightValue) for v in values]
    if sum(weights) == 1:
        return _of_weight(walk, eqn, values, sides, weights.index(True))
    return _of_signals(walk, eqn, values, sides)


def _of_weight(
    walk: SampleInterpreter, eqn: Any, values: list, sides: list, which: int
) -> SampledArray:
    leaf, signal = values[which], walk.signal(values[1 - which])
    contracted, batch = sides[1 - which]
    shape = eqn.invars[1 - which].aval.shape
    free = [a for a in range(len(shape)) if a not in (*contracted, *batch)]
    own = [a for a in range(leaf.value.ndim) if a not in sum(sides[which], ())]
    mine = [OWN] * len(own)
    place = [OWN] * len(batch) + ([*mine, *free] if which == 0 else [*free, *mine])
    fan = math.prod(shape[a] for a in contracted)
    inner = next(iter(contracted), None)
    make = lambda part: _weighted(walk, eqn, part, signal, place, fan, inner)
    if leaf.joined is None or leaf.joined[0] not in own:
        return make(leaf)
    before = len(batch) + (0 if which == 0 else len(free))
    return _product_of_joined(walk, eqn, leaf, make, before + own.index(leaf.joined[0]))


def _product_of_joined(
    walk: SampleInterpreter,
    eqn: Any,
    leaf: WeightValue,
    make: Callable[[WeightValue], SampledArray],
    axis: int,
) -> SampledArray:
    """What joined weights make: that of each, known apart where sizes are equal."""
    assert leaf.joined is not None
    along, leaves = leaf.joined
    sizes = [part.value.shape[along] for part in leaves]
    parts = [make(part) for part in leaves]
    which = walk.draws.integers(len(parts))
    found = walk.mixed(parts, which, eqn.outvars[0].aval)
    assert isinstance(found, SampledArray)
    other = jnp.roll(found.base, 1)
    found = found.beside(axis, other)
    if len(set(sizes)) > 1:
        return found
    known = {i * sizes[0]: part for i, part in enumerate(parts)}
    return found._replace(steps=Steps(axis, sizes[0], known, parts[-1]))


def _weighted(
    walk: SampleInterpreter, eqn: Any, leaf: WeightValue, signal: SampledArray,
    place: Sequence[int], fan: Any, inner: int | None,
    common: Mapping[int, float] = ALL,
) -> SampledArray:  # fmt: skip
    """What a weight makes of a signal.

    `place` has for each axis of the output the signal's axis, or OWN. `common`: for
    axes of the signal, which part of the entries two places have in common.
    """
    kept = [a for a in place if a != OWN and signal.rows[a] is not None]
    rows = [signal.base, *(signal.row(a) for a in kept)]
    within = _moments_within(signal, rows, inner) if walk.centred else None
    shared = np.array([1.0, *(common.get(a, 1.0) for a in kept)])
    shared = np.where(np.eye(len(rows)) > 0, 1.0, shared[:, None] * shared)
    made = walk.product(eqn, leaf, rows, fan, shared, within)
    found = dict(zip(kept, made[1:], strict=True))
    size = jnp.sqrt(jnp.mean(jnp.square(made[0])))
    sizes = zip(place, eqn.outvars[0].aval.shape, strict=True)
    out = [
        None if n == 1 else size * walk.draws.normal() if a == OWN else found.get(a)
        for a, n in sizes
    ]
    cast = lambda x: x.astype(eqn.outvars[0].aval.dtype)
    return SampledArray(made[0], tuple(out)).each(cast)


def _moments_within(
    signal: SampledArray, rows: list[Array], inner: int | None
) -> Array:
    """Second moments between different inputs of one sum."""
    other = signal.base if inner is None else signal.row(inner)
    cross = jnp.stack([jnp.mean(row * other) for row in rows])
    return (cross[:, None] + cross[None, :]) / 2


def _of_signals(
    walk: SampleInterpreter, eqn: Any, values: list, sides: list
) -> SampledArray:
    """Element by element, then summed over the axes that are contracted."""
    left, right = (walk.signal(v) for v in values)
    shapes = [v.aval.shape for v in eqn.invars]
    free = [
        [a for a in range(len(shape)) if a not in (*contracted, *batch)]
        for shape, (contracted, batch) in zip(shapes, sides, strict=True)
    ]
    if values[0] is values[1] and free[1]:
        right = walk.part(walk.part(right, free[1][0], "own"), free[1][0], "other")
    (inner, batch), (inner_too, batch_too) = sides
    left = left.over([*batch, *free[0], *[None] * len(free[1]), *inner])
    right = right.over([*batch_too, *[None] * len(free[0]), *free[1], *inner_too])
    rows = [
        None if x is None and y is None else left.row(a) * right.row(a)
        for a, (x, y) in enumerate(zip(left.rows, right.rows, strict=True))
    ]
    made = SampledArray(left.base * right.base, tuple(rows))
    for a in reversed(inner):
        made = reduce_axis(walk, "sum", made, len(made.rows) - 1, shapes[0][a])
    return made.each(lambda x: x.astype(eqn.outvars[0].aval.dtype))


def convolution_rule(walk: SampleInterpreter, eqn: Any, values: list) -> SampledArray:
    """A convolution with a weight; at borders it has fewer summands."""
    how, params, leaf = eqn.params["dimension_numbers"], eqn.params, values[1]
    signal, shape = walk.signal(values[0]), eqn.invars[0].aval.shape
    if not isinstance(leaf, WeightValue):
        walk.note(eqn)
        return walk.fitted(signal, eqn.outvars[0].aval)
    window = leaf.value.shape
    steps = zip(
        how.out_spec[2:], how.lhs_spec[2:], how.rhs_spec[2:],
        params["window_strides"], params["padding"],
        params["lhs_dilation"], params["rhs_dilation"], strict=True,
    )  # fmt: skip
    place = [OWN] * len(shape)
    place[how.out_spec[0]] = how.lhs_spec[0]
    common, profiles = {}, [None] * len(shape)
    fan = jnp.float32(window[how.rhs_spec[1]])
    for out, source, inner, *geometry in steps:
        size = shape[source], window[inner]
        meets, sums = window_sums(signal.profile(source), *size, *geometry)
        place[out], common[source] = source, _common_share(meets)
        profiles[out], fan = sums / jnp.mean(sums), fan * jnp.mean(sums)
    inner = how.lhs_spec[1]
    made = _weighted(walk, eqn, leaf, signal, place, fan, inner, common)
    return made._replace(profiles=tuple(profiles))


def _common_share(meets: Bool[np.ndarray, "places window"]) -> float:
    """Which part of the entries that one place meets another one meets too."""
    shared: Float[np.ndarray, "places places"] = meets.astype(float) @ meets.T
    own, others = np.trace(shared), len(meets) * (len(meets) - 1)
    if not others or not own:
        return 1.0
    return float((shared.sum() - own) / others / (own / len(meets)))
