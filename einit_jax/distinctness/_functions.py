"""Functions of one number, told by their values: even parts, curvature.

What stands between two layers is evaluated, primitive by primitive, on the nodes of a
quadrature for a standard normal distribution. The nodes lie as far left as right of 0.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..core import JaxprEqn

COUNT = 40
SCALES = (1.0, 0.25)
"""Functions are evaluated for numbers of these standard deviations."""
NEGLIGIBLE = 1e-5
"""Shares of a mean square up to this are none."""
_POINTS, _WEIGHTS = np.polynomial.hermite_e.hermegauss(COUNT)
WEIGHTS = _WEIGHTS / _WEIGHTS.sum()
IDENTITY = np.stack([scale * _POINTS for scale in SCALES]).astype(np.float32)
"""The nodes, at each scale; also the values of the function that changes nothing."""
ELEMENTWISE = {
    "mul", "div", "add", "sub", "add_any", "neg", "max", "min", "abs", "sign", "tanh",
    "exp", "exp2", "log", "log1p", "expm1", "logistic", "erf", "erfc", "erf_inv", "pow",
    "integer_pow", "square", "sqrt", "rsqrt", "cbrt", "select_n", "clamp", "round",
    "floor", "ceil", "sin", "cos", "tan", "asin", "acos", "atan", "atan2", "sinh",
    "cosh", "asinh", "acosh", "atanh", "rem", "gt", "lt", "ge", "le", "eq", "ne", "and",
    "or", "not", "xor", "is_finite",
}  # fmt: skip
"""Primitives whose results depend on operands element by element."""


def values_after(eqn: JaxprEqn, operands: Sequence[Any]) -> np.ndarray | None:
    """The values of an elementwise equation's result; None where they are unknown.

    In float32, whatever the model computes in: the function is what is asked for.
    """
    wide = [_wide(x, eqn) for x in operands]
    shape = np.broadcast_shapes(*(x.shape for x in wide))
    wide = [np.broadcast_to(x, shape) for x in wide]
    try:
        with jax.ensure_compile_time_eval():
            params = eqn.primitive.get_bind_params(dict(eqn.params))
            result = eqn.primitive.bind(*map(jnp.asarray, wide), **params)
            values = np.asarray(result)
    except (TypeError, ValueError, NotImplementedError):
        return None
    floating = np.issubdtype(values.dtype, np.floating)
    return None if floating and not np.isfinite(values).all() else values


def _wide(value: Any, eqn: JaxprEqn) -> np.ndarray:
    array = np.asarray(value)
    if array.dtype == bool or np.issubdtype(array.dtype, np.integer):
        return array
    return array.astype(np.float32)


def _mean_square(values: np.ndarray) -> float:
    return float(np.sum(WEIGHTS * np.square(values)))


def has_even_part(values: np.ndarray) -> bool:
    """Whether `f(z) + f(-z)` is more than rounding."""
    f = values[0].astype(np.float64)
    even = (f + f[::-1]) / 2
    return _mean_square(even) > NEGLIGIBLE * _mean_square(f)


def is_curved(values: np.ndarray, *, odd: bool) -> bool:
    """Whether a function is nearer to a straight line where its arguments are smaller.

    Of the function's odd part, or of all of it but the constant at 0. It is not so of
    functions that look alike at every size, as ReLU does.
    """
    shares = [_share_off_line(f.astype(np.float64), odd=odd) for f in values]
    return shares[0] > NEGLIGIBLE and shares[1] < shares[0] / 2


def _share_off_line(f: np.ndarray, *, odd: bool) -> float:
    """The share of the mean square that no straight line explains."""
    f = (f - f[::-1]) / 2 if odd else f - np.sum(WEIGHTS * f)
    whole = _mean_square(f)
    if whole == 0:
        return 0.0
    slope = np.sum(WEIGHTS * f * _POINTS)
    return 1 - float(slope**2) / whole
