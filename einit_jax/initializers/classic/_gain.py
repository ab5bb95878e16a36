"""`gain` of an activation function, and `general_relu`, which can be centred."""

import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ...core import (
    as_number,
    usual_rules,
)

PRESERVED = ("second_moment", "variance", "gradient")


REACH, GAIN_PANELS, NODES = 14, 64, 8
"""The range in standard deviations, panels in each of these, nodes in each panel."""


@usual_rules()
def gain(fn: Callable, *, preserve: str = "second_moment") -> float:
    r"""The gain of an activation function: `1 / sqrt(E fn(z)^2)` for `z ~ N(0, 1)`.

    Weights of variance `gain^2 / fan_in` behind `fn` then bring the next inputs of `fn`
    back to mean square 1. The mean is computed in float64, by composite Gauss-Legendre
    quadrature on panels that end at all multiples of 1/64: exact to 1e-9 and better for
    smooth functions and for kinks at such places, to 1e-5 for other kinks, to 1e-3 for
    other jumps.

    | `preserve` | gain |
    |---|---|
    | `"second_moment"` | `1 / sqrt(E fn(z)^2)` |
    | `"variance"` | `1 / sqrt(Var fn(z))`, where biases take the mean away |
    | `"gradient"` | `1 / sqrt(E fn'(z)^2)`, the mean square of what is sent back |

    Textbook values: identity 1, ReLU `sqrt 2`, leaky ReLU of slope s
    `sqrt(2 / (1 + s^2))`, tanh 1.5925, SELU 1. PyTorch's `calculate_gain` differs for
    tanh, 5/3 (chosen so that deep tanh networks settle at a useful size, not at 1), and
    SELU, 3/4 (found by trial); it has none for GELU, SiLU and others.

    Args:
        fn: an elementwise function; of jax for `"gradient"`, else numpy will do.
        preserve: what the gain keeps, see above.

    Returns:
        A positive float.

    Raises:
        TypeError: fn is no function, or not elementwise.
        ValueError: unknown `preserve`, or fn is not finite, or keeps nothing (is zero,
            constant or flat).

    Example:
        >>> import flax.linen as nn, einit_jax as ei
        >>> f"{ei.gain(nn.relu):.6f} {ei.gain(nn.tanh):.6f}"
        '1.414214 1.592537'

    Source: K. He et al., arXiv 1502.01852, section 2.2, for ReLU; "gradient" is their
    backward case.
    """
    if preserve not in PRESERVED:
        raise ValueError(
            f"preserve={preserve!r} is not known; expected {', '.join(PRESERVED)}"
        )
    if not callable(fn):
        raise TypeError(
            f"fn is a {type(fn).__name__}, expected an elementwise function"
        )
    z, weights = _quadrature()
    values = _function_values(fn, z, preserve == "gradient")
    if not np.isfinite(values).all():
        first = float(z[~np.isfinite(values)][0])
        raise ValueError(f"fn is not finite at {first:.3g}: it has no gain")
    mean = weights @ values if preserve == "variance" else 0.0
    power = float(weights @ np.square(values - mean))
    if not power > 1e-30:
        reasons = {"gradient": "its derivative is", "variance": "it is constant, or"}
        raise ValueError(f"fn has no gain: {reasons.get(preserve, 'it is')} zero")
    return power**-0.5


def _quadrature() -> tuple[Float[np.ndarray, " nodes"], Float[np.ndarray, " nodes"]]:
    """Nodes, and weights that include the density of the normal distribution."""
    nodes, weights = np.polynomial.legendre.leggauss(NODES)
    starts = np.arange(-REACH * GAIN_PANELS, REACH * GAIN_PANELS) / GAIN_PANELS
    z = (starts[:, None] + (nodes + 1) / (2 * GAIN_PANELS)).ravel()
    density = np.exp(-np.square(z) / 2) / np.sqrt(2 * np.pi)
    weights = np.tile(weights / (2 * GAIN_PANELS), len(starts)) * density
    return z, weights / weights.sum()


def _function_values(
    fn: Callable, z: Float[np.ndarray, " nodes"], derivative: bool
) -> Float[np.ndarray, " nodes"]:
    """The values of the function, or of its derivative, in float64."""
    with jax.enable_x64(True):
        points = jnp.asarray(z, jnp.float64)
        some = points[len(points) // 3 :: 2]
        try:
            values, few = fn(points), fn(some)
            slopes = values
            if derivative:
                slopes = jax.jvp(fn, (points,), (jnp.ones_like(points),))[1]
        except Exception as error:
            raise TypeError(
                f"fn cannot take an array of float64: {type(error).__name__}: {error}; "
                "pass an elementwise function of jax, such as flax.linen.relu"
            ) from error
        shape = np.shape(values)
        if shape != z.shape:
            raise TypeError(
                f"fn turned an array of shape {z.shape} into one of {shape}, "
                "expected an elementwise function"
            )
        _check_elementwise(np.asarray(values)[len(points) // 3 :: 2], np.asarray(few))
        return np.asarray(slopes, np.float64)


def _check_elementwise(values: np.ndarray, alone: np.ndarray) -> None:
    """Raises where values depend on what other elements the array has."""
    finite = np.isfinite(values)
    size = np.max(np.abs(values[finite]), initial=0.0)
    same = values.shape == alone.shape and np.allclose(
        values, alone, rtol=1e-4, atol=1e-6 * size, equal_nan=True
    )
    if not same:
        raise TypeError(
            "fn is not elementwise: what it makes of a number depends on the other "
            "elements of the array, as in a softmax or a normalization; such a "
            "function has no gain"
        )


def general_relu(
    leak: float = 0.0, sub: float | None = None, max_value: float | None = None
) -> Callable:
    r"""A leaky, shifted, clamped ReLU: `min(max(x, leak x) - sub, max_value)`.

    A ReLU returns no negative numbers, so its mean is far from 0. Shifted down by its
    mean for `x ~ N(0, 1)` it is centred; without a clamp that mean is
    `(1 - leak) / sqrt(2 pi)`, about 0.4.

    Args:
        leak: the slope below zero, in `[0, 1]`; 0 is the ReLU.
        sub: the number that is subtracted; None: the one that makes the mean 0.
        max_value: the largest value returned, positive; None: no clamp.

    Returns:
        An elementwise function of jax, of any shape and floating dtype.

    Raises:
        ValueError: leak or max_value out of range, or sub is no number.

    Example:
        >>> import jax.numpy as jnp, einit_jax as ei
        >>> fn = ei.general_relu(leak=0.1, sub=0.4, max_value=6.0)
        >>> fn(jnp.array([-1.0, 2.0, 9.0]))
        Array([-0.5,  1.6,  6. ], dtype=float32)

    Source: J. Howard's fast.ai lesson on initialization (2019), whose sub is 0.4.
    """
    slope, top = as_number(leak), as_number(max_value)
    if slope is None or not 0 <= slope <= 1:
        raise ValueError(f"leak={leak!r}, expected a slope between 0 and 1")
    if max_value is not None and (top is None or not top > 0):
        raise ValueError(f"max_value={max_value!r}, expected a positive number")
    shift = _centre(slope, top) if sub is None else as_number(sub)
    if shift is None or not math.isfinite(shift):
        raise ValueError(f"sub={sub!r}, expected a number, or None to centre")
    return partial(_general_relu, leak=slope, sub=shift, max_value=top)


def _general_relu(x: Array, leak: float, sub: float, max_value: float | None) -> Array:
    """The function that `general_relu` returns."""
    y = jnp.maximum(x, leak * x) - sub
    return y if max_value is None else jnp.minimum(y, max_value)


def _centre(leak: float, max_value: float | None) -> float:
    """The s that makes the mean 0: `s = E min(max(z, leak z), max_value + s)`."""
    mean = (1 - leak) / math.sqrt(2 * math.pi)
    if max_value is None:
        return mean
    sub = mean
    for _ in range(200):  # each turn shrinks the error by P(z > max_value + s) < 1/2
        top = max_value + sub
        density = math.exp(-top * top / 2) / math.sqrt(2 * math.pi)
        sub = mean - density + top * math.erfc(top / math.sqrt(2)) / 2
    return sub
