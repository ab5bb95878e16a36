"""The mapped axis that a model's collectives ask for."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def run_over_axis(axis_name: str | None, run: Callable[[], Any]) -> Any:
    """`run()` under a mapped axis of size one; None: as it is.

    Gradients are taken inside of it: collectives in a backward pass need the axis.
    """
    if axis_name is None:
        return run()
    mapped = jax.vmap(lambda _: run(), axis_name=axis_name, axis_size=1)
    return jax.tree.map(lambda x: x[0], mapped(jnp.zeros(1)))
