"""An optimizer's own first step, in the place of a step of SGD."""

from collections.abc import Mapping
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PyTree

from ._numerics import usual_rules
from ._partition import as_static, static_value
from ._paths import Path, key_path, plain
from ._types import Params, describe, is_float


def optimizer_at_one(optimizer: Any) -> optax.GradientTransformation | None:
    """A gradient transformation as it is, or what a function makes of learning rate 1.

    The same object for the same function, as compiled programs are kept by it.

    Raises:
        TypeError: it is neither; None is None.
    """
    if isinstance(optimizer, optax.GradientTransformation | None):
        built = optimizer
    elif isinstance(optimizer, type) or not callable(optimizer):
        raise TypeError(
            f"optimizer is {describe(optimizer)}, expected an "
            "optax.GradientTransformation at learning rate 1, such as optax.adam(1.0), "
            "or a function of the learning rate, such as optax.adam"
        )
    else:
        built = _call_at_one(as_static(optimizer))
    try:
        hash(built)
    except TypeError as error:
        raise TypeError(
            f"optimizer cannot be hashed ({error}); make it of plain functions: "
            "optax.GradientTransformation(init, update)"
        ) from error
    return built


@lru_cache(maxsize=32)
def _call_at_one(optimizer: Any) -> optax.GradientTransformation:
    """What a function of the learning rate makes of 1."""
    function = static_value(optimizer)
    try:
        built = function(1.0)
    except Exception as error:
        raise TypeError(
            f"optimizer is a function, and optimizer(1.0) failed: {error}; pass one "
            "of the learning rate, such as optax.adam, or optax.adam(1.0)"
        ) from error
    if not isinstance(built, optax.GradientTransformation):
        raise TypeError(
            f"optimizer is a function, and optimizer(1.0) is a {type(built).__name__}, "
            "expected an optax.GradientTransformation; pass optax.adam, say"
        )
    return built


SMALL, LARGE = 1e-3, 1e-2
"""Sizes of trial gradients: above the epsilons of Adam and its kin, and below bounds at
which gradients are clipped."""
TRIAL_PARAMS = {"layer": {"kernel": np.ones((2, 2)), "bias": np.ones(2)}}
"""Tried first, as the user's own take long to compile."""
TRIAL_STEPS = 24
"""Optimizers that find their own learning rate (Prodigy) leave the first one before."""


def check_learning_rate(optimizer: optax.GradientTransformation, like: Params) -> bool:
    """Whether an optimizer's steps tell that it is at learning rate 1.

    Those do that have one size whatever the gradient (Adam, Lion), or are a number
    times the gradient (SGD, with momentum too), at step after step. False for all
    others (Muon, AdaGrad, a warmup), which may be of any size at learning rate 1.

    Raises:
        ValueError: they tell that it is at another one.
    """
    rate = None
    for tree in (TRIAL_PARAMS, like):
        try:
            with usual_rules(), jax.ensure_compile_time_eval():
                rate = _told_learning_rate(optimizer, tree)
        except Exception:  # of other params, of more than gradients, or frozen
            rate = None
            continue
        if rate is None or abs(rate - 1) < 0.1:
            return rate is not None
    if rate is None:
        return False
    raise ValueError(
        f"optimizer is at learning rate {rate:.3g}, as its steps tell; pass it at "
        "learning rate 1, such as optax.adam(1.0), or the function, optax.adam"
    )


def _told_learning_rate(
    optimizer: optax.GradientTransformation, like: Params
) -> float | None:
    """The learning rate of a descent by signs or along gradients; None of others."""
    pattern = _flat(_trial_tree(like, 1.0), _float_paths(like))
    first = {s: _trial_steps(optimizer, like, s, 1)[0] for s in (SMALL, LARGE)}
    moved = first[LARGE] != 0  # what is frozen does not count
    if not moved.any():
        raise ValueError("nothing moves")
    by_sign = lambda size: 1.0
    along = lambda size: size * np.abs(pattern)
    for unit in (by_sign, along):
        ratios = [(np.abs(x) / unit(size))[moved] for size, x in first.items()]
        rate = float(np.median(ratios))
        if rate and np.allclose(ratios, rate, rtol=0.02):
            steps = np.abs(_trial_steps(optimizer, like, LARGE, TRIAL_STEPS))
            growth = (steps / unit(LARGE))[:, moved] / rate
            if unit is by_sign:
                return rate if _is_steady(growth, momentum=0.0) else None
            momentum = float(np.median(growth[1])) - 1
            # above 1 it may be AdaGrad's, or Nesterov's first step
            return rate if rate < 1.1 and _is_steady(growth, momentum) else None
    return None


def _is_steady(growth: Float[np.ndarray, "steps n"], momentum: float) -> bool:
    """Whether steps stay as the first one, or grow as momentum makes them."""
    wanted = np.ones(len(growth))
    if 0.01 < momentum < 0.999:
        powers = momentum ** np.arange(1, len(growth) + 1)
        wanted = (1 - powers) / (1 - momentum)
    return np.allclose(growth, wanted[:, None], rtol=0.02)


def _trial_steps(
    optimizer: optax.GradientTransformation, like: Params, size: float, count: int
) -> Float[np.ndarray, "count n"]:
    """The steps for the same gradient again and again, less those for none.

    What is done without a gradient (weight decay) does not count.
    """
    pair = [_trial_tree(like, size), _trial_tree(like, 0.0)]
    params, floats = _trial_tree(like, None), _float_paths(like)
    states = [optimizer.init(params)] * 2
    steps = []
    for _ in range(count):
        each = [
            _trial_update(optimizer, gradient, state, params)
            for gradient, state in zip(pair, states, strict=True)
        ]
        moves = [_flat(step, floats) for step, _ in each]
        steps.append(moves[0] - moves[1])
        params = jax.tree.map(lambda p, step: p + step, params, each[0][0])
        states = [state for _, state in each]
    return np.stack(steps)


@partial(jax.jit, static_argnums=0)
def _trial_update(
    optimizer: optax.GradientTransformation,
    gradient: Params,
    state: optax.OptState,
    params: Params,
) -> tuple[Any, optax.OptState]:
    update = optax.with_extra_args_support(optimizer).update
    step, state = update(gradient, state, params)
    return jax.tree.map(lambda p, u: u.astype(p.dtype), params, step), state


def _trial_tree(like: Params, size: float | None) -> Params:
    """Small arrays, with as many axes, of a gradient of this size; None: of ones."""
    arrays = {}
    for i, (path, leaf) in enumerate(_arrays_by_path(like).items()):
        shape = [min(n, 2 if axis < 2 else 1) for axis, n in enumerate(leaf.shape)]
        # sizes and signs of elements differ, in arrays of one element too
        values = np.resize(np.roll([1.0, -0.5, 2.0, -1.5], i), shape)
        values = np.ones(shape) if size is None else size * values
        dtype = np.float32 if is_float(leaf) else leaf.dtype
        arrays[path] = jax.device_put((values * is_float(leaf)).astype(dtype))
    return _nest_like(arrays, like)


def _float_paths(like: Params) -> list[Path]:
    return [path for path, leaf in _arrays_by_path(like).items() if is_float(leaf)]


def _flat(tree: Any, paths: list[Path]) -> Float[np.ndarray, " n"]:
    """The elements of the arrays of some paths."""
    arrays = jax.device_get(_arrays_by_path(tree))
    return np.concatenate([np.ravel(arrays[path]) for path in paths])


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
