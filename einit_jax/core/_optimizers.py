"""An optimizer's own first step, in the place of a step of SGD."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from ._numerics import is_float
from ._paths import key_path, plain


def check_optimizer(optimizer: Any) -> None:
    """Raises where optimizer is no gradient transformation."""
    if isinstance(optimizer, optax.GradientTransformation | None):
        return
    made = " it is a function: call it," if callable(optimizer) else ""
    raise TypeError(
        f"optimizer is {optimizer!r}, expected an optax.GradientTransformation;{made} "
        "pass one at learning rate 1, such as optax.adam(1.0)"
    )


def check_optimizer_factory(optimizer: Any) -> None:
    """Raises where optimizer is no function of the learning rate."""
    if isinstance(optimizer, tuple) or not callable(optimizer):
        raise TypeError(
            f"optimizer is a {type(optimizer).__name__}, expected a function of the "
            "learning rate, such as optax.adam (not optax.adam(1e-3))"
        )


def first_step(
    optimizer: optax.GradientTransformation,
    like: Any,
    params: Mapping,
    gradient: list[Array],
) -> list[Array]:
    """How the optimizer's first update moves each floating parameter.

    The optimizer sees params nested as in `like`, the user's own tree: it may hold
    labels or masks of that structure. Of complex parameters it gets the conjugate
    gradient, which points uphill. Arrays of integers get zeros.
    """
    paths = [path for path, leaf in _arrays_by_path(params).items() if is_float(leaf)]
    uphill = dict(zip(paths, map(jnp.conj, gradient), strict=True))
    grads = {
        p: uphill.get(p, jnp.zeros_like(v)) for p, v in _arrays_by_path(params).items()
    }
    optimizer = optax.with_extra_args_support(optimizer)
    try:
        params = _nest_like(_arrays_by_path(params), like)
        state = optimizer.init(params)
        updates, _ = optimizer.update(_nest_like(grads, like), state, params)
        moves = _arrays_by_path(updates)
        steps = [jnp.asarray(moves[path]) for path in paths]
    except Exception as error:
        raise ValueError(
            "optimizer cannot take its first step on these params: "
            f"{type(error).__name__}: {error}; pass one that needs gradients and "
            "parameters alone"
        ) from error
    return [s.astype(g.dtype) for s, g in zip(steps, gradient, strict=True)]


def _arrays_by_path(tree: Any) -> dict[tuple, Array]:
    """The arrays of a tree by path, those in boxes too, in the order of `flatten`."""
    leaves, _ = jax.tree.flatten_with_path(plain(tree))
    return {key_path(path): leaf for path, leaf in leaves}


def _nest_like(arrays: Mapping[tuple, Array], like: Any) -> Any:
    """Arrays by path, in the structure of `like`."""
    return jax.tree.map_with_path(lambda path, _: arrays[key_path(path)], like)
