"""Wall times on a machine that others use too."""

import statistics
import time
from collections.abc import Callable, Mapping

import jax

COMPILED = "/jax/core/compile/backend_compile_duration"


def seconds(call: Callable) -> float:
    """How long a call takes, until its results are there."""
    start = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - start


def medians(
    calls: Mapping[str, Callable], rounds: int, before: Callable = lambda: None
) -> tuple[dict[str, float], dict[str, float]]:
    """The median and the least time of each call.

    The calls take turns, so that noise hits all. The least time is what they take when
    nobody disturbs them.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            before()
            times[name].append(seconds(call))
    middle = {name: statistics.median(found) for name, found in times.items()}
    return middle, {name: min(found) for name, found in times.items()}


def compilations(call: Callable) -> int:
    """How many programs a call compiles."""
    found: list[str] = []
    listen = lambda event, _, **__: found.append(event)
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        jax.block_until_ready(call())
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    return found.count(COMPILED)
