"""A model with scanned layers, tuned for Adam, and its updates by hand."""

from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import optax

from tests.support.cases import Job
from tests.support.checks import scales_of
from tests.support.models import CASES

ADAM = optax.adam(1.0)


def scanned() -> Job:
    """The model that these tests share."""
    return CASES["scan_layers"].build()


def adam_scales() -> dict:
    """Its factors for Adam."""
    return scales_of(CASES["scan_layers"], optimizer=ADAM)


@cache
def some_gradient() -> dict:
    """Numbers of the shapes of its parameters."""
    waves = lambda p: jnp.cos(jnp.arange(1.0, p.size + 1).reshape(p.shape))
    return jax.tree.map(waves, scanned().params)


def by_hand(updates: dict) -> dict:
    """What `scale_updates` ought to do: in this model all lifted axes come first."""
    scales = adam_scales()
    out = {"head": {}, "layers": {"block": {"up": {}, "down": {}}}}
    for name, value in updates["head"].items():
        out["head"][name] = value * scales["head"]["update"]
    for unit, own in updates["layers"]["block"].items():
        factor = scales["layers"]["block"][unit]["update"]
        for name, value in own.items():
            wide = factor.reshape(-1, *(1,) * (value.ndim - 1))
            out["layers"]["block"][unit][name] = value * wide
    return out


def first_update(
    tx: optax.GradientTransformation, gradient: Any = None, params: Any = None
) -> Any:
    """The first update of a transformation, by default of the shared model."""
    gradient = some_gradient() if gradient is None else gradient
    params = scanned().params if params is None else params
    return tx.update(gradient, tx.init(params), params)[0]
