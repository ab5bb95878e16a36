"""Anderson acceleration: the root search for factors of units called several times.

In a recurrence of T steps a factor acts T times: the logarithm of an rms then moves up
to T times as fast as that of the factor, in a direction that all units of the cell
share. Fixed-point iteration diverges there. A multi-secant step (Anderson, type II)
learns that direction from the passes made so far.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ._types import as_integer, as_number, is_concrete

MEMORY = 8
"""The number of secants that are kept."""


class Stopping(NamedTuple):
    """When passes stop: the most of them, and the largest |log rms| that will do."""

    max_passes: int
    tolerance: float


def checked_stopping(max_sweeps: Any, tolerance: Any) -> Stopping:
    """The stopping rule of two numbers that a user gave.

    Raises:
        ValueError: no positive integer, or no positive number.
    """
    passes, least = as_integer(max_sweeps), as_number(tolerance)
    if passes is None or passes < 1:
        raise ValueError(
            f"max_sweeps is {max_sweeps!r}, expected an integer, at least 1"
        )
    if least is None or not least > 0:
        raise ValueError(f"tolerance is {tolerance!r}, expected a positive number")
    return Stopping(passes, least)


class AndersonState(NamedTuple):
    """Where the next pass is made, the best pass so far, and secants between passes.

    Evidence for the constants: GRU, LSTM and Elman cells over 5 to 100 steps.
    """

    at: Float[Array, " n"]
    """Where the next pass is made."""
    best: Float[Array, " n"]
    miss: Float[Array, " n"]
    """What the best pass missed, and in `error` the largest of it."""
    error: Float[Array, ""]
    steps: Float[Array, "memory n"]
    gains: Float[Array, "memory n"]
    last: tuple[Float[Array, " n"], Float[Array, " n"]]
    """The point of the last finite pass, and what it missed."""
    trust: Float[Array, ""]
    """The longest step, in the largest unknown."""
    passes: Float[Array, ""]


def anderson_init(n: int) -> AndersonState:
    """A search in n unknowns, before its first pass."""
    zero = jnp.zeros(n, jnp.float32)
    table = jnp.zeros((MEMORY, n), jnp.float32)
    number = jnp.zeros((), jnp.float32)
    return AndersonState(
        zero, zero, zero, number + jnp.inf, table, table, (zero, zero), number + 1,
        number,
    )  # fmt: skip


def anderson_step(
    search: AndersonState, miss: Float[Array, " n"], tolerance: float
) -> tuple[AndersonState, Bool[Array, ""]]:
    """The state after a pass at `search.at`, and whether that pass was the best so far.

    `miss` is what the pass missed in each unknown. The first pass is free: what it
    misses from 0 is where the search starts. A pass that missed more than the best one,
    or overflowed, sends the search back there, with one secant more and a shorter step.
    """
    first = search.passes == 0
    finite = jnp.all(jnp.isfinite(miss))
    error = jnp.where(finite, jnp.max(jnp.abs(miss), initial=0.0), jnp.inf)
    better = first | (error <= jnp.maximum(search.error, tolerance))
    steps, gains = _remember(search, miss, finite & (search.passes > 1))
    base = jnp.where(better, search.at, search.best)
    known = jnp.where(better & finite, miss, search.miss)
    trust = jnp.where(better, jnp.minimum(2 * search.trust, 2.0), search.trust / 4)
    trust = jnp.where(first, search.trust, trust)
    step = _secant_step(known, steps, gains)
    step *= jnp.minimum(
        1.0, trust / jnp.maximum(jnp.max(jnp.abs(step), initial=0), 1e-9)
    )
    start = jnp.where(finite, -miss, 0.0)
    last = (search.at, miss)
    return AndersonState(
        at=jnp.where(first, start, base + step),
        best=jnp.where(first, start, base),
        miss=jnp.where(first, 0.0, known),
        error=jnp.where(first, jnp.inf, jnp.minimum(error, search.error)),
        steps=steps,
        gains=gains,
        last=jax.tree.map(
            lambda new, old: jnp.where(finite, new, old), last, search.last
        ),
        trust=trust,
        passes=search.passes + 1,
    ), better


def _remember(search: AndersonState, miss: Array, useful: Array) -> tuple[Array, Array]:
    """The secants, the newest in place of the oldest."""
    at, missed = search.last
    moved = jnp.roll(search.steps, 1, 0).at[0].set(search.at - at)
    gained = jnp.roll(search.gains, 1, 0).at[0].set(miss - missed)
    keep = lambda new, old: jnp.where(useful, new, old)
    return keep(moved, search.steps), keep(gained, search.gains)


def _secant_step(miss: Array, steps: Array, gains: Array) -> Array:
    """`-G miss` with `G gain = step` for every secant, and the identity beside them."""
    gram = gains @ gains.T
    ridge = 1e-6 * jnp.trace(gram) + 1e-12
    weights = jnp.linalg.solve(
        gram + ridge * jnp.eye(MEMORY, dtype=gram.dtype), gains @ miss
    )
    return -(miss - weights @ gains) - weights @ steps


def run_while_more(one_pass: Callable[[Any], Any], state: Any) -> Any:
    """The state after passes, at least one, until its `more` is false.

    They are dispatched one by one where values are known. Under an outer trace they are
    a `while_loop`, in which convolutions run many times slower on a CPU.
    """
    state = one_pass(state)
    if not is_concrete(state.more):
        return jax.lax.while_loop(lambda state: state.more, one_pass, state)
    while state.more:
        state = one_pass(state)
    return state
