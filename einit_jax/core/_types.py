"""Types that signatures share, numbers and keys; what is none; how messages show it."""

import operator
from collections.abc import Mapping
from numbers import Real
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.extend.core import JaxprEqn as JaxprEqn
from jaxtyping import PyTree

Params = Mapping[str, Any]
"""A model's parameters: nested mappings of arrays, or of boxes that hold them."""
Collections = Mapping[str, Any]
"""A model's variables besides its parameters, by collection: `{"batch_stats": ...}`."""


def as_integer(value: object) -> int | None:
    """An integer of Python, numpy or jax as that of Python; None for anything else."""
    if isinstance(value, bool | Tracer):
        return None
    try:
        return operator.index(value)  # pyright: ignore[reportArgumentType]
    except TypeError:
        return None


def as_number(value: object) -> float | None:
    """A real number of Python, numpy or jax as a float; None for anything else."""
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        real = jnp.issubdtype(value.dtype, jnp.floating)
        real |= jnp.issubdtype(value.dtype, jnp.integer)
        known = real and not value.shape and not isinstance(value, Tracer)
        return float(value) if known else None
    if isinstance(value, bool) or not isinstance(value, Real):
        return None
    return float(value)


def checked_key(key: Any, name: str = "key") -> jax.Array:
    """A single random key, typed or raw.

    Raises:
        TypeError: it is none.
        ValueError: there are several.
    """
    dtype, shape = getattr(key, "dtype", None), getattr(key, "shape", ())
    typed = dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)
    raw = dtype == jnp.uint32 and bool(shape) and shape[-1] in (2, 4)
    if not (typed or raw):
        raise TypeError(
            f"{name} is {describe(key)}, expected a random key: jax.random.key(0)"
        )
    several = shape if typed else shape[:-1]
    if several:
        raise ValueError(
            f"{name} holds keys of shape {tuple(several)}, expected a single one, such "
            f"as {name}[0]; jax.vmap maps over keys"
        )
    return key


def describe(tree: PyTree) -> str:
    """The text of a pytree in which each array is told by dtype and shape."""
    return repr(jax.tree.map(_describe_leaf, tree))


def _describe_leaf(leaf: Any) -> "_Unquoted":
    """Dtype and shape of an array; of anything else its `repr`."""
    is_typed = hasattr(leaf, "dtype")
    return _Unquoted(f"{leaf.dtype}{list(leaf.shape)}" if is_typed else repr(leaf))


class _Unquoted(str):
    """A string whose `repr` has no quotes."""

    def __repr__(self) -> str:
        return str(self)


def is_array(leaf: object) -> bool:
    """Whether a leaf is traced as an array; any other leaf is static."""
    return isinstance(leaf, jax.Array | np.ndarray | np.generic | jax.ShapeDtypeStruct)
