"""Whether numbers are nothing but rounding: how much they move with last digits."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from einit_jax.core import is_float

DIGITS = 4
"""How many of its last digits a number is moved by, at most."""


def nudged(params: Any) -> Any:
    """The parameters, each element moved by some of its last digits."""
    floats = [x for x in jax.tree.leaves(params) if is_float(x)]
    keys = iter(jax.random.split(jax.random.key(7), max(len(floats), 1)))

    def move(x: Any) -> Any:
        if not is_float(x):
            return x
        last = jnp.finfo(x.dtype).eps
        step = jax.random.uniform(next(keys), x.shape, minval=-DIGITS, maxval=DIGITS)
        return (x * (1 + step * last)).astype(x.dtype)

    return jax.tree.map(move, params)


def sensitivity(function: Callable[[Any], Any], params: Any) -> float:
    """The largest relative change of any output's size as parameters are nudged."""
    pairs = zip(
        jax.tree.leaves(function(params)),
        jax.tree.leaves(function(nudged(params))),
        strict=True,
    )
    moved = [0.0]
    for a, b in pairs:
        a, b = (np.asarray(x).astype(complex) for x in (a, b))
        size = max(float(np.linalg.norm(a)), 1e-300)
        moved.append(float(np.linalg.norm(a - b)) / size)
    return max(moved)
