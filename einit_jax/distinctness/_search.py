"""How a start is chosen by measuring: in pairs or not, and how small outputs are.

At most eleven passes of forward mode: the plain draw; the mirrored one, where the
former amplifies too much; then smaller outputs before curved functions, by bisection,
where that one does too. Of functions that mirrored weights leave curved (ELU), smaller
outputs alone are tried first: they keep the even part, with which networks learn more.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ..core import as_number, describe, is_concrete

SMALLEST_SIZE = 2.0**-7
"""The least rms of outputs before curved functions."""
HALVINGS = 7
"""How often the range of the logarithm of that rms is halved."""
GOAL = 1.2
"""The amplification that smaller outputs are to reach, where a larger one is allowed:
that of DKS, whose C maps have the slope 1.5 at 1."""
SLACK = 1.1
"""How near to the least amplification that can be reached a goal is set at most."""
PLAIN, ALONE, MIRRORED, LEAST, HALVING, DONE = range(6)
"""What is measured next."""


@partial(
    jax.tree_util.register_dataclass,
    data_fields=[
        "stage", "halvings", "in_pairs", "size", "before", "reached", "limit", "goal",
        "low", "high",
    ],
    meta_fields=[],
)  # fmt: skip
@dataclass(frozen=True)
class Choice:
    """A start, as far as it is chosen: a pytree of scalars."""

    stage: Int[Array, ""]
    halvings: Int[Array, ""]
    in_pairs: Bool[Array, ""]
    """Whether weights are drawn in pairs."""
    size: Float[Array, ""]
    """The rms of outputs before curved functions."""
    before: Float[Array, ""]
    """The amplification of the plain draw."""
    reached: Float[Array, ""]
    """That of the better draw, with outputs of rms 1."""
    limit: Float[Array, ""]
    """The largest that is left alone."""
    goal: Float[Array, ""]
    """The largest that smaller outputs may leave."""
    low: Float[Array, ""]
    high: Float[Array, ""]
    """Bounds of the logarithm of the size, to base 2."""

    @property
    def more(self) -> Bool[Array, ""]:
        """Whether something is still to be measured."""
        return self.stage != DONE


def checked_amplification(value: Any) -> float:
    """The limit that a user gave.

    Raises:
        ValueError: it is no finite number from 1.
    """
    limit = as_number(value)
    if limit is None or not 1 <= limit < float("inf"):
        raise ValueError(
            f"amplification is {describe(value)}, expected a number from 1, such as 2.0"
        )
    return limit


def check_told_apart(choice: Choice) -> None:
    """Raises where the plain draw was found to have no amplification."""
    if is_concrete(choice.before) and not choice.before >= 0:
        raise ValueError(
            "no difference between inputs reaches the outputs, so nothing tells "
            "whether they stay distinct; pass a batch of several, distinct examples"
        )


def first_choice(limit: float) -> Choice:
    """The choice before anything is measured: up to the limit all is left alone."""
    number = lambda value: jnp.asarray(value, jnp.float32)
    return Choice(
        jnp.int32(PLAIN),
        jnp.int32(0),
        in_pairs=jnp.array(False),
        size=number(1),
        before=number(jnp.nan),
        reached=number(jnp.inf),
        limit=number(limit),
        goal=number(min(limit, GOAL)),
        low=jnp.log2(number(SMALLEST_SIZE)),
        high=number(0),
    )


def next_choice(
    choice: Choice, found: Float[Array, ""], *, pairs: bool, curved: Array, alone: Array
) -> Choice:
    """The choice after an amplification was found for the one before.

    Args:
        choice: what was measured.
        found: the amplification.
        pairs: whether weights can be drawn in pairs.
        curved: whether smaller outputs can help where they are.
        alone: the same where they are not.
    """
    after = [
        _after_plain(choice, found, pairs=pairs, both=curved & alone),
        _after_alone(choice, found),
        _after_mirrored(choice, found),
        _after_least(choice, found),
        _after_halving(choice, found),
    ]
    pick = lambda *values: jnp.stack(values)[choice.stage]
    chosen = jax.tree.map(pick, *after)
    useless = (chosen.stage == LEAST) & ~jnp.where(chosen.in_pairs, curved, alone)
    stage = jnp.where(useless, DONE, chosen.stage)
    least = (stage == LEAST) | (stage == ALONE)
    size = jnp.where(least, SMALLEST_SIZE, chosen.size)
    middle = jnp.exp2((chosen.low + chosen.high) / 2)
    size = jnp.where(stage == HALVING, middle, size)
    return replace(chosen, stage=stage, size=size)


def _after_plain(choice: Choice, found: Array, *, pairs: bool, both: Array) -> Choice:
    more = found > choice.limit
    first = jnp.where(both, ALONE, MIRRORED) if pairs else LEAST
    stage = jnp.where(more, first, DONE)
    in_pairs = stage == MIRRORED
    return replace(choice, stage=stage, in_pairs=in_pairs, before=found, reached=found)


def _after_alone(choice: Choice, found: Array) -> Choice:
    """After the least outputs without pairs: do they do?"""
    fits = found <= choice.goal
    stage = jnp.where(fits, HALVING, MIRRORED)
    return replace(choice, stage=stage, in_pairs=~fits, size=jnp.ones_like(choice.size))


def _after_mirrored(choice: Choice, found: Array) -> Choice:
    better = found < choice.before
    reached = jnp.where(better, found, choice.before)
    stage = jnp.where(reached > choice.limit, LEAST, DONE)
    return replace(choice, stage=stage, in_pairs=better, reached=reached)


def _after_least(choice: Choice, found: Array) -> Choice:
    goal = jnp.maximum(choice.goal, SLACK * found)
    more = choice.reached > goal
    stage = jnp.where(more, HALVING, DONE)
    return replace(choice, stage=stage, goal=goal, size=jnp.ones_like(choice.size))


def _after_halving(choice: Choice, found: Array) -> Choice:
    middle, fits = jnp.log2(choice.size), found <= choice.goal
    low = jnp.where(fits, middle, choice.low)
    high = jnp.where(fits, choice.high, middle)
    halvings = choice.halvings + 1
    stage = jnp.where(halvings < HALVINGS, HALVING, DONE)
    return replace(
        choice, stage=stage, halvings=halvings, low=low, high=high, size=jnp.exp2(low)
    )
