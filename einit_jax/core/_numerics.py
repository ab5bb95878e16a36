"""Arithmetic of the method: root mean squares, and inverses that are safe at zero."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Float, Inexact

from ._placement import gathered


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


def is_float(leaf: object) -> bool:
    """Whether a leaf carries a cotangent: a real or complex floating array."""
    dtype = getattr(leaf, "dtype", None)
    return dtype is not None and jnp.issubdtype(dtype, jnp.inexact)


def is_concrete(x: object) -> bool:
    """Whether the values of an array are known: it is not traced."""
    return not isinstance(x, Tracer)


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


def squares(leaves: Sequence[Array]) -> tuple[Float[Array, ""], int]:
    """The sum of `|t|^2` over all elements of some arrays, and their number (or 1).

    The two are returned apart, because the compiler then needs no kernel for the
    quotient of each layer.
    """
    parts = [_square(unfused(widen(leaf))).sum() for leaf in leaves if leaf.size]
    total = jnp.asarray(sum(parts), jnp.float32)
    return total, max(sum(leaf.size for leaf in leaves), 1)


def _square(t: Array) -> Array:
    """`|t|^2`, elementwise."""
    if jnp.iscomplexobj(t):
        return jnp.square(t.real) + jnp.square(t.imag)
    return jnp.square(t)


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
    peak = jnp.max(jnp.stack(peaks), 0)
    divisor = jnp.where((peak > 0) & jnp.isfinite(peak), peak, 1)
    shares = [t / jnp.expand_dims(divisor, rest(t)) for t in wide]
    sums = [gathered(jnp.square(jnp.abs(t)).sum(rest(t))) for t in shares]
    size = sum(t.size for t in wide) // max(peak.size, 1)
    return (divisor * jnp.sqrt(sum(sums) / size)).astype(jnp.float32)


def multiply(t: Inexact[Array, "..."], factor: Float[Array, "..."]) -> Array:
    """`factor * t`, computed in at least float32 and returned in the dtype of t."""
    with jax.numpy_dtype_promotion("standard"):
        return (widen(t) * factor).astype(t.dtype)


def usable(size: Float[Array, "..."]) -> Array:
    """Whether an rms or a mean square can be divided by: finite, and not zero."""
    return jnp.isfinite(size) & (size > 0)


def inverse(value: Float[Array, "..."]) -> Float[Array, "..."]:
    """`1 / value`, and 1 where that is no positive finite number."""
    return 1 / jnp.where(usable(value), value, 1.0)


def inverse_rms(mean_sq: Float[Array, "..."]) -> Float[Array, "..."]:
    """`1 / sqrt(mean_sq)`, and 1 where that is no positive finite number."""
    fine = usable(mean_sq)
    return jnp.where(fine, jax.lax.rsqrt(jnp.where(fine, mean_sq, 1.0)), 1.0)
