"""What tuning traces and compiles, so that neither creeps back."""

import re
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
import pytest

from einit_jax.binding import _compilation
from einit_jax.binding._compilation import compiled_once, is_worth_it
from einit_jax.graph import convolves
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
MOST = {"deep": (6.8, 17), "vit": (5.3, 9), "scanned": (4, 7.6)}
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


# What runs once is compiled quickly.


def test_small_programs_are_compiled_quickly_where_nothing_is_traced():
    """By shapes alone; under a `jit` of the user's own, as that is compiled."""
    small, large = jnp.zeros((8, 8)), jax.ShapeDtypeStruct((1024, 1024), jnp.float32)
    assert is_worth_it([small, "static", None])
    assert is_worth_it([large, *[small] * 7])
    assert not is_worth_it([large])
    seen = []
    jax.jit(lambda x: seen.append(is_worth_it([x])) or x)(small)
    jax.jit(lambda x: seen.append(is_worth_it([small])) or x)(small)
    assert seen == [False, False]


def test_options_that_xla_does_not_know_are_left_out(monkeypatch):
    known = {"xla_backend_optimization_level": 0}
    monkeypatch.setattr(_compilation, "QUICK", {**known, "xla_no_such_option": 1})
    assert dict(_compilation.quick_options.__wrapped__()) == known


def test_the_older_way_is_for_short_programs():
    """It takes longer than the other from some thousand instructions on."""
    few, many = [jnp.zeros(3)] * 48, [jnp.zeros(3)] * 49
    for long, expected in ((False, (True, True)), (True, (True, False))):
        twice = compiled_once(long=long)(lambda xs: [2 * x for x in xs])
        ways = [twice._chosen((xs,), {}) for xs in (few, many)]
        assert tuple(way is twice._quick for way in ways) == expected
        assert twice._usual not in ways
        assert all(jnp.array_equal(y, jnp.zeros(3)) for y in twice(many))


@pytest.mark.parametrize("name", ["masked_attention", "mnist_cnn", "scan_layers"])
def test_both_ways_to_compile_agree(name):
    """Sums of what is short here are in another order; so 20 roundings."""
    job = CASES[name].build()
    given = arguments_of(_tune, "_tune_compiled", lambda: tuned(job))
    lowered = _tune._tune_compiled.lower(*given.args, **given.kwargs)
    full = {"xla_backend_optimization_level": 3, "xla_cpu_use_fusion_emitters": True}
    both = [
        lowered.compile(compiler_options=how)(*given.args)[0]
        for how in (full, _compilation.QUICK)
    ]
    off = jax.tree.map(lambda a, b: abs(a / b - 1).max(), *both)
    assert max(jax.tree.leaves(off)) < 20 * jnp.finfo(jnp.float32).eps


class Convolved(nn.Module):
    """Three convolutions, written out or under a scan, and a readout."""

    scanned: bool

    @nn.compact
    def __call__(self, x):
        one = lambda: nn.Conv(3, (3, 3))
        step = lambda layer, x, _: (nn.tanh(layer(x)), None)
        if self.scanned:
            axes = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}}
            x, _ = nn.scan(step, length=3, **axes)(one(), x, None)
        else:
            for _ in range(3):
                x = nn.tanh(one()(x))
        return nn.Dense(4)(x.mean((1, 2)))


@pytest.mark.parametrize("scanned", [False, True])
@pytest.mark.parametrize("draws", [1, 2])
def test_convolutions_are_in_no_loops_of_ours(scanned, draws):
    """In which XLA runs them slowly on a CPU; in loops of a user's own with effort."""
    x = jax.random.normal(KEY, (4, 6, 6, 3))
    model = Convolved(scanned)
    job = Job(model, params_of(model, x.shape), lambda key: x, squared_error)
    for module, name, verb in (
        (_measure, "_measure_compiled", measured),
        (_tune, "_tune_compiled", tuned),
    ):
        run = lambda verb=verb: verb(job, draws=draws)
        given = arguments_of(module, name, run)
        traced = getattr(module, name).trace(*given.args, **given.kwargs).jaxpr
        assert convolves(traced.jaxpr)
        assert convolves(traced.jaxpr, in_loops=True) == scanned
    function = _tune._tune_compiled
    quickly = function._chosen(given.args, given.kwargs) is not function._usual
    assert quickly == (not scanned)
