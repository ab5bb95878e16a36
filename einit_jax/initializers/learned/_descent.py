"""Descent on a few numbers over a pool of batches, some steps at a time."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, PyTree

from ...core import (
    Draw,
    as_integer,
    as_number,
    is_concrete,
    vary_with,
)

REPORTS = 100
"""About how many times `progress` is called in one descent."""


@dataclass(frozen=True)
class Descent:
    """The function, the optimizer and the bound of a descent: all that is static."""

    function: Callable
    """`function(sizes, data, batch, next_batch)` returns a value and a gradient."""
    optimizer: optax.GradientTransformation
    least: float
    """The least size, over the size at the start."""


class DescentState(NamedTuple):
    """What one step of a descent hands to the next."""

    sizes: Float[Array, " n"]
    safe: Float[Array, " n"]
    """The last sizes at which value and gradient were finite."""
    memory: optax.OptState
    value: Float[Array, ""]
    """The value before the last step."""
    fine: Bool[Array, ""]
    """Whether that value and its gradient were finite."""


def descend(
    descent: Descent,
    sizes: Float[Array, " n"],
    data: PyTree,
    pool: Draw,
    *,
    steps: int,
    progress: Callable[[int, int, float], Any] | None,
) -> Float[Array, " n"]:
    """The sizes after some steps of the optimizer; batches of the pool take turns.

    A step to where value or gradient is not finite is taken back, and the optimizer
    starts anew. `progress(step, steps, value)` is called on the host.

    Raises:
        ValueError: the function cannot be differentiated.
        FloatingPointError: value or gradient is not finite at the start.
    """
    sizes = vary_with(sizes, (data, pool))
    one, memory = jnp.ones_like(sizes[0]), descent.optimizer.init(sizes)
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
    whole = as_integer(steps)
    if whole is None or whole < 1:
        raise ValueError(f"steps is {steps!r}, expected a positive integer")
    if not isinstance(optimizer, optax.GradientTransformation | None):
        hint = "; it is a function: call it" if callable(optimizer) else ""
        raise TypeError(
            f"optimizer is {optimizer!r}, expected an optax.GradientTransformation at "
            f"its learning rate, such as optax.sgd(0.1){hint}"
        )
    if progress is not None and not callable(progress):
        raise TypeError(
            f"progress is {progress!r}, expected a function of (step, steps, value)"
        )
    for name, value in numbers.items():
        number = as_number(value)
        if number is None or not number > 0:
            raise ValueError(f"{name} is {value!r}, expected a positive number")


def _check_twice_differentiable(descent: Descent, arrays: tuple) -> None:
    """Raises where the function cannot be traced; jax keeps the trace for the steps."""
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
    data: PyTree,
    pool: Draw,
    descent: Descent,
) -> DescentState:
    """The state after the steps of a span, which does not include its end.

    The compiler does not know the numbers of the span, so that one program serves all.
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
