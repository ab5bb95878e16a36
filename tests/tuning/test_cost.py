"""What tuning traces and compiles, so that neither creeps back."""

import re
from typing import Any

import flax.linen as nn
import jax
import optax
import pytest

from einit_jax.measurement import _measure
from einit_jax.tuning import _tune
from tests.benchmarks.cost.networks import gradient_step
from tests.benchmarks.cost.speed import arguments_of, step_arguments
from tests.support.cases import Job, squared_error
from tests.support.checks import KEY, measured, params_of, tuned
from tests.support.models import CASES

X = jax.random.normal(KEY, (16, 8))


class Deep(nn.Module):
    """Counts its traces."""

    depth: int = 16

    @nn.compact
    def __call__(self, x):
        TRACES.append(self.depth)
        for _ in range(self.depth):
            x = nn.tanh(nn.Dense(8)(x))
        return nn.Dense(4)(x)


TRACES: list[int] = []


def deep(depth: int = 16) -> Job:
    return Job(Deep(depth), params_of(Deep(depth)), lambda key: X, squared_error)


JOBS = {"deep": deep, "vit": CASES["vit"].build, "scanned": CASES["scan_layers"].build}
MOST = {"deep": (7, 21), "vit": (7, 10.4), "scanned": (4.5, 9.8)}
"""How many times the instructions of a gradient step `tune` and `measure` may have: a
seventh more than they have. The ViT has raw parameters, each with a pass of its own."""


def instructions(lowered: Any) -> int:
    """The number of instructions that XLA makes of a program."""
    text = lowered.compile().as_text()
    return len(re.findall(r"\n\s+(?:ROOT )?%\S+ = ", text))


def of_verb(module: Any, name: str, run: Any) -> int:
    """Those of the function that a verb has jitted."""
    given = arguments_of(module, name, run)
    return instructions(getattr(module, name).lower(*given.args, **given.kwargs))


@pytest.mark.parametrize("name", JOBS)
def test_programs_are_a_few_times_a_gradient_step(name):
    job = JOBS[name]()
    step = instructions(gradient_step(job).lower(*step_arguments(job)))
    most_tune, most_measure = MOST[name]
    tune = of_verb(_tune, "_tune_compiled", lambda: tuned(job))
    measure = of_verb(_measure, "_measure_compiled", lambda: measured(job))
    assert step < tune < most_tune * step
    assert step < measure < most_measure * step


def test_models_are_traced_once_for_each_thing_to_find():
    """Discovery, the sweep, the total update and the referee; with an optimizer also
    each unit's own update. A second call with equal arguments traces nothing."""
    for depth, keywords, expected in (
        (3, {}, 4),
        (4, {"verify": False, "update": "local"}, 2),
        (5, {"optimizer": optax.adam}, 5),
    ):
        job = deep(depth)
        for times in (expected, 0):
            TRACES.clear()
            tuned(job, **keywords)
            assert len(TRACES) == times
