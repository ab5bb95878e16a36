"""Descent on a few numbers over a pool of batches, some steps at a time."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from ...core import Batch, is_concrete

REPORTS = 100
"""About so many times the host is told how far a descent is."""


@dataclass(frozen=True)
class Descent:
    """What is descended, how, and not below what: all that is static."""

    function: Callable
    """`function(sizes, data, batch, next_batch)` returns a value and a gradient."""
    optimizer: optax.GradientTransformation
    least: float
    """Sizes stay above this part of what they start from."""


class DescentState(NamedTuple):
    """Between two steps."""

    sizes: Float[Array, " n"]
    safe: Float[Array, " n"]
    """The last sizes at which value and gradient were finite."""
    memory: Any
    value: Float[Array, ""]
    fine: Bool[Array, ""]


def descend(
    descent: Descent,
    sizes: Float[Array, " n"],
    data: Any,
    pool: Batch,
    *,
    steps: int,
    progress: Callable[[int, int, float], Any] | None,
) -> Float[Array, " n"]:
    """The sizes after some steps of the optimizer; batches of the pool take turns.

    A step that arrives where value or gradient is not finite is taken back, and the
    optimizer forgets. `progress(step, steps, value)` is called on the host.

    Raises:
        ValueError: the function cannot be differentiated.
        FloatingPointError: it is not finite where it starts.
    """
    one, memory = jnp.ones((), jnp.float32), descent.optimizer.init(sizes)
    state = DescentState(sizes, sizes, memory, one, one > 0)
    stretch = -(-steps // REPORTS)
    take = partial(_take_steps, first=sizes, data=data, pool=pool, descent=descent)
    for start, stop in itertools.pairwise([0, *range(1, steps, stretch), steps]):
        span = jnp.int32(start), jnp.int32(stop)
        if not start:
            _check_twice_differentiable(descent, (span, state, sizes, data, pool))
        state = take(span, state)
        if not start and is_concrete(state.fine) and not state.fine:
            raise FloatingPointError(
                f"the objective is {float(state.value):.3g} before the first step, or "
                "its gradient is not finite: gradients of these parameters leave the "
                "range of the dtype; begin with others, such as those of ei.fold or "
                "smaller ones"
            )
        if progress is not None:
            progress(stop, steps, float(state.value))
    return state.sizes


def check_descent_settings(
    steps: Any, optimizer: Any, progress: Any, **numbers: Any
) -> None:
    """Raises where a descent cannot be run with these."""
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise ValueError(f"steps is {steps!r}, expected a positive integer")
    if not isinstance(optimizer, optax.GradientTransformation | None):
        raise TypeError(
            f"optimizer is {optimizer!r}, expected an optax.GradientTransformation at "
            "its learning rate, such as optax.sgd(0.1)"
        )
    if progress is not None and not callable(progress):
        raise TypeError(
            f"progress is {progress!r}, expected a function of (step, steps, value)"
        )
    for name, value in numbers.items():
        if not isinstance(value, int | float) or not value > 0:
            raise ValueError(f"{name} is {value!r}, expected a positive number")


def _check_twice_differentiable(descent: Descent, arrays: tuple) -> None:
    """Raises where the function cannot be traced; the trace itself is kept by jax."""
    try:
        span, state, first, data, pool = arrays
        _take_steps.trace(
            span, state, first=first, data=data, pool=pool, descent=descent
        )
    except Exception as error:
        raise ValueError(
            "the loss has no second derivative that jax can take: "
            f"{type(error).__name__}: {error}; leave out of the model what is "
            "differentiable only once (a while_loop in a custom rule, some kernels)"
        ) from error


@partial(jax.jit, static_argnames="descent")
def _take_steps(
    span: tuple[Int[Array, ""], Int[Array, ""]],
    state: DescentState,
    *,
    first: Float[Array, " n"],
    data: Any,
    pool: Batch,
    descent: Descent,
) -> DescentState:
    """The steps of a span, from its first to before its last.

    The compiler does not know these numbers, so that one program serves all spans.
    """
    count = jax.tree.leaves(pool)[0].shape[0]

    def step(i: Int[Array, ""], state: DescentState) -> DescentState:
        pick = lambda j: jax.tree.map(lambda x: x[j % count], pool)
        value, gradient = descent.function(state.sizes, data, pick(i), pick(i + 1))
        fine = jnp.isfinite(value) & jnp.all(jnp.isfinite(gradient))
        update = descent.optimizer.update
        moves, memory = update(gradient, state.memory, state.sizes)
        moved = jnp.asarray(optax.apply_updates(state.sizes, moves))
        moved = jnp.maximum(moved, descent.least * first)
        new = (moved, state.sizes, memory)
        old = (state.safe, state.safe, descent.optimizer.init(first))
        sizes, safe, memory = jax.tree.map(partial(jnp.where, fine), new, old)
        return DescentState(sizes, safe, memory, value, fine)

    start, stop = span
    return jax.lax.fori_loop(start, stop, step, state)
