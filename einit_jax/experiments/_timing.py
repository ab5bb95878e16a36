"""What a call costs: seconds, and gradient steps taken in turn with it."""

import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

TIMED_ROUNDS, TIMED_SECONDS = 5, 1.0
"""So many calls are timed, or as many as fit into so many seconds."""


class CallCost(NamedTuple):
    """Of a call: seconds of the first one, of later ones, and these in other calls."""

    first: float
    seconds: float
    steps: float


def time_against(
    call: Callable[[], Any], step: Callable[[], Any]
) -> tuple[Any, CallCost]:
    """What a call returns, and its cost in calls of `step`, which is compiled already.

    Medians; the two take turns, so that other users of the machine slow both.
    """
    first, made = _timed(call)
    own: list[float] = []
    other: list[float] = []
    while len(own) < TIMED_ROUNDS and sum(own) < TIMED_SECONDS:
        other.append(_timed(step)[0])
        own.append(_timed(call)[0])
    seconds = statistics.median(own)
    return made, CallCost(first, seconds, seconds / statistics.median(other))


def median_seconds(call: Callable[[], Any]) -> float:
    """How long a call takes that has been made before."""
    call()
    return statistics.median(_timed(call)[0] for _ in range(TIMED_ROUNDS))


def _timed(call: Callable[[], Any]) -> tuple[float, Any]:
    """How long a call takes, until its results are there."""
    start = time.perf_counter()
    made = jax.block_until_ready(call())
    return time.perf_counter() - start, made
