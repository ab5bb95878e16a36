"""Arithmetic of the method: root mean squares, and inverses that are safe at zero.

Sizes are float32. What is squared has half of the range of that: `rms` and `times` are
for all of it, `squares` for the middle.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial, reduce
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Inexact, Int

from ._placement import gathered

SMALLEST, LARGEST = 2.0**-126, 2.0**127
"""Powers of two that are normal float32: what is smaller is flushed to zero."""
FLOOR = 2.0**-104
"""What squares of numbers that are not zero may count at least: see `squares`."""
LEAST_RMS, MOST_RMS = 2.0**-40, 2.0**50
"""Between these root mean squares `squares` is right."""
WINDOWS = {"low": 128, "middle": 0, "high": -128}
"""By what power of two squares of sizes are multiplied, by name."""


@contextmanager
def usual_rules() -> Iterator[None]:
    """JAX's default rules for what verbs compute, in whatever mode the user runs.

    They mix ranks and dtypes, as do optimizers of optax, and `nan` is what a table says
    of a quantity that there is none of: no mode is to take that for an error.
    """
    with (
        jax.numpy_rank_promotion("allow"),
        jax.numpy_dtype_promotion("standard"),
        jax.debug_nans(False),
        jax.transfer_guard("allow"),
    ):
        yield


def widen(t: Inexact[Array, "..."]) -> Inexact[Array, "..."]:
    """The array in at least 32 bits.

    Squares of float16 overflow from 256 on, and sums of bfloat16 stop growing.
    """
    with jax.numpy_dtype_promotion("standard"):
        return t.astype(jnp.promote_types(t.dtype, jnp.float32))


def unfused(t: Inexact[Array, "..."]) -> Array:
    """The array itself, which XLA does not fuse with what sums it up.

    On a CPU, XLA hands a sum to a library together with the product that nothing else
    reads, and jaxlib 0.10.2 then takes memory that nothing wrote for a right factor
    which is one number throughout, such as a step of zeros. A choice stays outside of
    such a fusion; an `optimization_barrier` is gone by then.
    """
    return jnp.where(jnp.isnan(t), -t, t)


def unforeseen(t: Inexact[Array, "..."], beside: Inexact[Array, "..."]) -> Array:
    """The array itself, of which XLA cannot tell that it is one number throughout.

    For what meets a model's own sums, where `unfused` does not reach: tangents of
    parameters that rest, cotangents of outputs that no loss reads. `beside` is any
    array of that shape which is known at run time alone; NaNs in it turn signs.
    """
    return jnp.where(jnp.isnan(beside), -t, t)


def squares(
    leaves: Sequence[Array], floor: float = 0.0
) -> tuple[Float[Array, ""], int]:
    """The sum of `|t|^2` over all elements of some arrays, and their number (or 1).

    The two are returned apart, because the compiler then needs no kernel for the
    quotient of each layer. With a floor, what is not zero counts that at least: a sum
    of zero is one of zeros, and small where squares underflowed.
    """
    filled = [leaf for leaf in leaves if leaf.size]
    return _sum_of_squares(filled, floor), max(sum(leaf.size for leaf in leaves), 1)


@partial(jax.jit, static_argnums=1)
def _sum_of_squares(leaves: Sequence[Array], floor: float) -> Float[Array, ""]:
    parts = [_square(unfused(widen(leaf)), floor).sum() for leaf in leaves]
    return jnp.asarray(sum(parts), jnp.float32)


def _square(t: Array, floor: float) -> Array:
    """`|t|^2`, elementwise, and the floor where that is less and t is not zero."""
    if jnp.iscomplexobj(t):
        square = jnp.square(t.real) + jnp.square(t.imag)
    else:
        square = jnp.square(t)
    return jnp.where((square < floor) & (t != 0), floor, square) if floor else square


@partial(jax.jit, static_argnums=1)
def rms(leaves: Sequence[Array], keep: int = 0) -> Float[Array, "..."]:
    """The joint root mean square, for each index of the first `keep` axes.

    Safe where squares under- or overflow float32: the largest magnitude is divided out.
    """
    wide = [widen(t) for t in leaves if t.size]
    if not wide:
        return jnp.zeros(leaves[0].shape[:keep] if leaves else (), jnp.float32)
    # not reshaped first: axes that are split over devices cannot always be merged
    rest = lambda t: tuple(range(keep, t.ndim))
    peaks = [gathered(jnp.max(jnp.abs(t), rest(t))) for t in wide]
    peak = _largest_of(peaks)
    divisor = jnp.where((peak > 0) & jnp.isfinite(peak), peak, 1)
    shares = [t / jnp.expand_dims(divisor, rest(t)) for t in wide]
    sums = [gathered(jnp.square(jnp.abs(t)).sum(rest(t))) for t in shares]
    size = sum(t.size for t in wide) // max(peak.size, 1)
    return (divisor * jnp.sqrt(sum(sums) / size)).astype(jnp.float32)


def _largest_of(sizes: list[Array]) -> Array:
    """The largest of some sizes, infinite where one is not a number.

    XLA makes a chain of maxima of what is merely stacked and reduced, and finds it anew
    in each kernel that needs the result.
    """
    if len(sizes) == 1:
        return sizes[0]
    every = jnp.stack(sizes)
    return jnp.max(jnp.where(every == every, every, jnp.inf), 0)


@jax.jit
def multiply(t: Inexact[Array, "..."], factor: Float[Array, "..."]) -> Array:
    """`factor * t`, computed in at least float32 and returned in the dtype of t."""
    with jax.numpy_dtype_promotion("standard"):
        return (widen(t) * factor).astype(t.dtype)


def usable(size: Float[Array, "..."]) -> Array:
    """Whether an rms or a mean square can be divided by: finite, and not zero."""
    return jnp.isfinite(size) & (size > 0)


@jax.jit
def inverse(value: Float[Array, "..."]) -> Float[Array, "..."]:
    """`1 / value`, a normal number, and 1 where the value is no positive finite one."""
    return jnp.maximum(1 / jnp.where(usable(value), value, 1.0), SMALLEST)


@jax.jit
def inverse_rms(mean_sq: Float[Array, "..."]) -> Float[Array, "..."]:
    """`1 / sqrt(mean_sq)`, and 1 where that is no positive finite number."""
    fine = usable(mean_sq)
    return jnp.where(fine, jax.lax.rsqrt(jnp.where(fine, mean_sq, 1.0)), 1.0)


@jax.jit
def times(*sizes: Float[Array, "..."] | float) -> Float[Array, "..."]:
    """The product of sizes, whatever the products of some of them are.

    0 where one is 0; else out of range it is as near to its value as can be, and
    `in_range` tells.
    """
    parts = [jnp.asarray(size, jnp.float32) for size in sizes]
    if len(parts) > 3:
        return _by_exponents(parts)
    if len(parts) == 3:
        parts = _ends_first(*parts)
    product = reduce(jnp.multiply, parts)
    inside = reduce(jnp.logical_and, [(t > 0) & (t < jnp.inf) for t in parts])
    return jnp.where(inside, jnp.clip(product, SMALLEST, LARGEST), product)


def _ends_first(a: Array, b: Array, c: Array) -> list[Array]:
    """The least, the largest, and what is between these.

    The product of the first two is out of range only where that of all is.
    """
    low, high = jnp.minimum(a, b), jnp.maximum(a, b)
    middle = jnp.maximum(low, jnp.minimum(high, c))
    return [jnp.minimum(low, c), jnp.maximum(high, c), middle]


def _by_exponents(sizes: list[Array]) -> Float[Array, "..."]:
    """The same of any number of sizes; exponents are added as integers."""
    parts = [_split(size) for size in sizes]
    mantissa, carry = _split(reduce(jnp.multiply, [m for m, _ in parts]))
    exponent = jnp.clip(carry + sum(e for _, e in parts), -125, 128)
    half = exponent >> 1
    return mantissa * _two_to(half) * _two_to(exponent - half)


def _split(
    size: Float[Array, "..."],
) -> tuple[Float[Array, "..."], Int[Array, "..."]]:
    """`(m, e)` with `size = m 2^e` and m from 1/2 to 1; the size and 0 where that
    cannot be."""
    bits = jax.lax.bitcast_convert_type(size, jnp.int32)
    exponent = ((bits >> 23) & 255) - 126
    half = (bits & ~(255 << 23)) | (126 << 23)
    mantissa = jax.lax.bitcast_convert_type(half, jnp.float32)
    normal = jnp.isfinite(size) & (jnp.abs(size) >= SMALLEST)
    whole = jnp.where(jnp.isfinite(size), 0.0, size)
    return jnp.where(normal, mantissa, whole), jnp.where(normal, exponent, 0)


def _two_to(exponent: Int[Array, "..."]) -> Float[Array, "..."]:
    """`2^exponent`, exactly, for exponents of normal numbers."""
    return jax.lax.bitcast_convert_type((exponent + 127) << 23, jnp.float32)


def in_range(size: Float[Array, "..."]) -> Bool[Array, "..."]:
    """Whether a size and its inverse are normal float32, with an octave to spare."""
    return (size >= 2 * SMALLEST) & (size <= LARGEST / 4)


@jax.jit
def at_peak(
    leaves: Sequence[Array],
) -> tuple[list[Array], Float[Array, ""]]:
    """The arrays over a power of two near the largest magnitude, and that power."""
    peaks = [jnp.max(jnp.abs(widen(t))) for t in leaves if t.size]
    peak = (_largest_of(peaks) if peaks else jnp.zeros(())).astype(jnp.float32)
    peak = jnp.clip(jnp.where(usable(peak), peak, 1), SMALLEST, LARGEST / 2)
    power = jax.lax.bitcast_convert_type(peak, jnp.int32) & (255 << 23)
    sizes = [(254 << 23) - power, power]  # exponents are counted from 127
    back, there = (jax.lax.bitcast_convert_type(n, jnp.float32) for n in sizes)
    return [multiply(t, back) for t in leaves], there


@jax.jit
def windows(size: Float[Array, "..."]) -> dict[str, Array]:
    """The square of a size times each of `WINDOWS`, as far as that is in range.

    Sums of them over calls are sums of squares, whatever the sizes: one of them fits.
    (XLA would take constant factors out of a square, and then square both.)
    """
    mantissa, exponent = _split(size)

    def square(shift: int) -> Array:
        moved = 2 * exponent + shift
        power = _two_to(jnp.clip(moved, -126, 127))
        return jnp.where(moved < -126, 0 * mantissa, jnp.square(mantissa) * power)

    return {name: square(shift) for name, shift in WINDOWS.items()}


def from_windows(sums: Mapping[str, Array], count: Array) -> Float[Array, "..."]:
    """The root mean square of sizes, from sums of `windows` and their number."""
    mean = {name: sums[name] / jnp.maximum(count, 1) for name in WINDOWS}
    low, middle, high = (
        jnp.sqrt(mean[name]) * 2.0 ** (-shift // 2) for name, shift in WINDOWS.items()
    )
    upper = jnp.where(mean["middle"] <= 1 / FLOOR, middle, high)
    return jnp.where(mean["middle"] < FLOOR, low, upper)


def as_summed(size: Float[Array, "..."], *, several: bool) -> Any:
    """A size of one call, as it is summed over calls: squared where there are several.

    One that is all there is stays as it is, which is cheaper.
    """
    return windows(size) if several else size


def rms_of_calls(sums: Any, count: Array) -> Float[Array, "..."]:
    """The root mean square over calls, from sums of what `as_summed` gives."""
    if isinstance(sums, Mapping):
        return from_windows(sums, count)
    return sums / jnp.maximum(count, 1)
