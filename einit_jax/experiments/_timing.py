"""What a call costs: seconds, and gradient steps that take turns with it."""

import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

TIMED_ROUNDS, TIMED_SECONDS = 5, 1.0
"""So many calls are timed, or as many as fit into so many seconds."""


class CallCost(NamedTuple):
    """The cost of a call."""

    first: float
    """Seconds of the first call, which compiles."""
    seconds: float
    """Seconds of a later call."""
    steps: float
    """The same in calls of another function."""


def time_against(
    call: Callable[[], Any], step: Callable[[], Any]
) -> tuple[Any, CallCost]:
    """What a call returns, and its cost in calls of `step`, which is compiled already.

    Medians; the two take turns, so that other users of the machine slow both.
    """
    first, result = _timed(call)
    call_seconds: list[float] = []
    step_seconds: list[float] = []
    while len(call_seconds) < TIMED_ROUNDS and sum(call_seconds) < TIMED_SECONDS:
        step_seconds.append(_timed(step)[0])
        call_seconds.append(_timed(call)[0])
    seconds = statistics.median(call_seconds)
    return result, CallCost(first, seconds, seconds / statistics.median(step_seconds))


def median_seconds(call: Callable[[], Any]) -> float:
    """How long a call takes after its first time."""
    call()
    return statistics.median(_timed(call)[0] for _ in range(TIMED_ROUNDS))


def _timed(call: Callable[[], Any]) -> tuple[float, Any]:
    """How long a call takes until its results are there, and the results."""
    start = time.perf_counter()
    result = jax.block_until_ready(call())
    return time.perf_counter() - start, result
