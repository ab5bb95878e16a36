"""An optimizer's own first step, in the place of a step of SGD."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

from ._numerics import is_float
from ._paths import Path, key_path, plain
from ._types import Params


def check_optimizer(optimizer: object) -> None:
    """Raises unless optimizer is a gradient transformation or None."""
    if isinstance(optimizer, optax.GradientTransformation | None):
        return
    hint = " it is a function: call it," if callable(optimizer) else ""
    raise TypeError(
        f"optimizer is {optimizer!r}, expected an optax.GradientTransformation;{hint} "
        "pass one at learning rate 1, such as optax.adam(1.0)"
    )


def check_optimizer_factory(optimizer: object) -> None:
    """Raises unless optimizer is a function of the learning rate."""
    if isinstance(optimizer, tuple) or not callable(optimizer):
        raise TypeError(
            f"optimizer is a {type(optimizer).__name__}, expected a function of the "
            "learning rate, such as optax.adam (not optax.adam(1e-3))"
        )


def first_step(
    optimizer: optax.GradientTransformation,
    like: Params,
    params: Params,
    gradient: list[Array],
) -> list[Array]:
    """How the optimizer's first update moves each floating parameter.

    The optimizer sees params nested as in `like`, the user's own tree, because it may
    hold labels or masks of that structure. Complex parameters come with the conjugate
    gradient, which points uphill, and arrays of integers with zeros.

    Raises:
        ValueError: the optimizer needs more than gradients and parameters.
    """
    arrays = _arrays_by_path(params)
    paths = [path for path, x in arrays.items() if is_float(x)]
    uphill = dict(zip(paths, map(jnp.conj, gradient), strict=True))
    gradients = {p: uphill.get(p, jnp.zeros_like(x)) for p, x in arrays.items()}
    optimizer = optax.with_extra_args_support(optimizer)
    try:
        params = _nest_like(arrays, like)
        state = optimizer.init(params)
        updates, _ = optimizer.update(_nest_like(gradients, like), state, params)
        updates_by_path = _arrays_by_path(updates)
        steps = [jnp.asarray(updates_by_path[path]) for path in paths]
    except Exception as error:
        raise ValueError(
            "optimizer cannot take its first step on these params: "
            f"{type(error).__name__}: {error}; pass one that needs gradients and "
            "parameters alone"
        ) from error
    return [s.astype(g.dtype) for s, g in zip(steps, gradient, strict=True)]


def _arrays_by_path(tree: PyTree) -> dict[Path, Array]:
    """The arrays of a tree by path, those in boxes too, in the order of `flatten`."""
    leaves, _ = jax.tree.flatten_with_path(plain(tree))
    return {key_path(path): leaf for path, leaf in leaves}


def _nest_like(arrays: Mapping[Path, Array], like: Params) -> Params:
    """The arrays, given by path, in the structure of `like`."""
    return jax.tree.map_with_path(lambda path, _: arrays[key_path(path)], like)
