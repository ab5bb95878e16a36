"""What the interpreter knows of a value of the model, whose arrays it never computes.

An `InterpretedValue` is one of these:

- `SampledArray`, for what depends on weights or inputs: samples of one typical element
  and, for each axis, of one neighbour, an element whose index differs in that axis
  alone. Each sample is one joint draw of all weights and inputs. Elementwise functions
  are therefore exact, sample by sample, and the correlation of an element with its
  neighbours tells what sums, maxima and shared weights make of an axis;
- `WeightValue`, for a parameter that is at most moved, joined or multiplied by a number
- `Constant`, for a constant of the model;
- None, for a random key and for what nobody asks about.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import Literal, Var
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from ...core import Path, inverse


class SampledArray(NamedTuple):
    """Samples of one element of an array, and of its neighbour along each axis.

    All samples have the same length and dtype. A SampledArray does not know the shape
    of its array; the equation that made it does.
    """

    base: Array
    """Samples of the element, (samples,)."""
    rows: tuple[Array | None, ...]
    """For each axis samples of the neighbour; None where that is the element itself:
    the axis is of size one, or the array is a broadcast along it."""
    profiles: tuple[Array | None, ...] = ()
    """For each axis the second moments by index, over their mean; None: all alike.
    Borders of convolutions make them. Empty: None for every axis."""
    steps: "Steps | None" = None
    """Parts that are known apart, such as the steps of a loop over time."""
    origin: "Origin | None" = None
    """What further elements are made of; None: they are sampled by a copula."""

    def row(self, axis: int) -> Array:
        """Samples of the neighbour along an axis."""
        row = self.rows[axis]
        return self.base if row is None else row

    def profile(self, axis: int) -> Array | None:
        """The profile along an axis; None: second moments are all alike."""
        return self.profiles[axis] if self.profiles else None

    def with_axes(self, axes: Sequence[int | None]) -> "SampledArray":
        """The same element of an array with other axes; None: a broadcast axis."""
        rows = tuple(None if a is None else self.rows[a] for a in axes)
        profiles = tuple(None if a is None else self.profile(a) for a in axes)
        steps = self.steps.with_axes(axes) if self.steps else None
        return SampledArray(self.base, rows, profiles, steps)

    def with_neighbour(self, axis: int, neighbour: Array | None) -> "SampledArray":
        """The same element with another neighbour along an axis."""
        rows = (*self.rows[:axis], neighbour, *self.rows[axis + 1 :])
        return self._replace(rows=rows, origin=None)

    def without_axis(self, axis: int) -> "SampledArray":
        """The same element of an array that lacks the axis."""
        return SampledArray(self.base, self.rows[:axis] + self.rows[axis + 1 :])

    def insert_axis(self, axis: int, neighbour: Array | None) -> "SampledArray":
        """The same element of an array with one axis more."""
        rows = (*self.rows[:axis], neighbour, *self.rows[axis:])
        return SampledArray(self.base, rows)

    def with_shape(self, shape: Sequence[int]) -> "SampledArray":
        """The same element of an array of this shape: axes of size one have no row."""
        rows = (r if n > 1 else None for r, n in zip(self.rows, shape, strict=True))
        return SampledArray(self.base, tuple(rows))

    def map(self, function: Callable[[Array], Array]) -> "SampledArray":
        """A function of every element, which leaves the profiles as they are."""
        rows = (None if r is None else function(r) for r in self.rows)
        return SampledArray(function(self.base), tuple(rows), self.profiles)

    def times_root(self, power: Array) -> "SampledArray":
        """Every element times the root of a power."""
        return self.map(lambda x: (x * jnp.sqrt(power)).astype(x.dtype))


class Origin(NamedTuple):
    """The elementwise function and the operands that a SampledArray was made of."""

    function: Callable[[Sequence[Array]], Array]
    operands: tuple[SampledArray, ...]


class Steps(NamedTuple):
    """Parts of an array along an axis, each a SampledArray, by their first index."""

    axis: int
    size: int
    """The number of indices that each part has."""
    known: Mapping[int, SampledArray]
    last: SampledArray
    """Stands for the parts that are not known."""

    def at(self, index: int) -> SampledArray:
        """The part that starts at an index."""
        return self.known.get(index, self.last)

    def with_axes(self, axes: Sequence[int | None]) -> "Steps | None":
        """The same parts with other axes, if the axis of the parts is among them."""
        if self.axis not in axes:
            return None
        axis = list(axes).index(self.axis)
        return self.map(lambda part: part.with_axes(axes))._replace(axis=axis)

    def map(self, function: Callable[[SampledArray], SampledArray]) -> "Steps":
        """A function of each part."""
        known = {i: function(part) for i, part in self.known.items()}
        return self._replace(known=known, last=function(self.last))


class AxisSamples(NamedTuple):
    """Samples of several elements along one axis, that axis left out of the rows."""

    base: Array
    """The elements along the axis, (count, samples)."""
    rows: tuple[Array | None, ...]
    """For each other axis the elements beside these, (count, samples)."""

    def reduced(self, function: Callable[[Array], Array]) -> SampledArray:
        """One element in the place of those along the axis."""
        rows = (None if row is None else function(row) for row in self.rows)
        return SampledArray(function(self.base), tuple(rows))

    def at(self, index: int) -> SampledArray:
        """One of the elements, in an array that lacks the axis."""
        return self.reduced(lambda elements: elements[index])


class Constant(NamedTuple):
    """A constant of the model: an array of numpy or jax, or a number."""

    value: Any


class WeightRef(NamedTuple):
    """A parameter, or one layer of it."""

    path: Path
    layers: tuple[tuple[int, int], ...] = ()
    """Axes of the parameter that loops take apart, each with an index."""


class WeightValue(NamedTuple):
    """A parameter whose entries are only moved, joined, or multiplied by one number."""

    value: Array
    refs: tuple[WeightRef, ...]
    """Where the entries are from: one parameter, or those that were joined."""
    axes: tuple[int, ...] | None
    """For each axis that of the parameter; None where axes were mixed."""
    factor: ArrayLike = 1.0
    """The number that the entries were multiplied by."""
    joined: "tuple[int, tuple[WeightValue, ...]] | None" = None
    """Of a concatenation its axis and its parts."""

    def with_value(
        self, value: Array, axes: tuple[int, ...] | None = None
    ) -> "WeightValue":
        """The same entries in another arrangement."""
        return self._replace(value=value, axes=axes, joined=None)

    def layer(self, index: int) -> "WeightValue":
        """One slice along the first axis."""
        value = self.value[index]
        if self.axes is None:
            return self.with_value(value)
        axis_index = (self.axes[0], index)
        refs = tuple(WeightRef(r.path, (*r.layers, axis_index)) for r in self.refs)
        return self.with_value(value, self.axes[1:])._replace(refs=refs)


InterpretedValue = Constant | WeightValue | SampledArray | None


def normalized(power: Array, profile: Array) -> tuple[Array, Array]:
    """The profile over its mean, which goes into the power of all elements."""
    centre = jnp.mean(profile)
    return power * centre, profile * inverse(centre)


def array_type(atom: Var | Literal) -> jax.ShapeDtypeStruct:
    """The shape and dtype of an operand or an output of an equation."""
    aval: Any = atom.aval
    return jax.ShapeDtypeStruct(aval.shape, aval.dtype)


class Moments(NamedTuple):
    """The first two moments of a unit's output."""

    mean: Array
    second: Array


Powers = Mapping[WeightRef, Mapping[int, list[Array]]]
"""For each weight, and each equation that uses it, the second moments of its products
at entries of variance 1, call by call."""


def settled_variances(
    powers: Powers, signal_variance: float
) -> dict[WeightRef, Float[Array, ""]]:
    """The variance of each weight's entries that brings products to `signal_variance`.

    Second moments are averaged over the calls of one equation, and their logarithms
    over equations (a table that is looked up and multiplied with).
    """
    variances = {}
    for ref, equations in powers.items():
        means = jnp.stack([jnp.mean(jnp.stack(calls)) for calls in equations.values()])
        logs = jnp.log(inverse(means))
        variances[ref] = signal_variance * jnp.exp(jnp.mean(logs))
    return variances
