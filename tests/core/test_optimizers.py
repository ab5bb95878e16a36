"""Whether an optimizer's steps tell its learning rate."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import optax
import optax.contrib
import pytest

import einit_jax as ei
from einit_jax.core import check_learning_rate
from tests.support.cases import to_one
from tests.support.checks import KEY, allclose, params_of, refuses, same
from tests.support.models.dense import CompactMlp

MODEL = CompactMlp()
PARAMS = params_of(MODEL)
X = jax.random.normal(KEY, (16, 8))


def chained(make: Callable, *before: optax.GradientTransformation) -> Callable:
    return lambda rate: optax.chain(*before, make(rate))


def by_layer(head: float) -> Callable:
    """Adam with another learning rate at the head; None: none is trained there."""

    def label(params):
        name = lambda path, _: "head" if "Dense_2" in str(path) else "body"
        return jax.tree.map_with_path(name, params)

    def make(rate):
        last = optax.adam(head * rate) if head else optax.set_to_zero()
        return optax.multi_transform({"head": last, "body": optax.adam(rate)}, label)

    return make


momentum = partial(optax.sgd, momentum=0.9)
nesterov = partial(optax.sgd, momentum=0.9, nesterov=True)
TOLD = {
    "adam": optax.adam,
    "adamw": partial(optax.adamw, weight_decay=0.1),
    "lion": optax.lion,
    "sgd": optax.sgd,
    "momentum": momentum,
    "injected": lambda rate: optax.inject_hyperparams(optax.adam)(learning_rate=rate),
    "clipped_adam": chained(optax.adam, optax.clip_by_global_norm(1.0)),
    "clipped_momentum": chained(momentum, optax.clip(1.0)),
    "frozen_head": by_layer(0.0),
}
# Of these each is at learning rate 1, and its first step of another size.
UNTOLD = {
    "muon": optax.contrib.muon(1.0),
    "nesterov": nesterov(1.0),
    "adafactor": optax.adafactor(1.0),
    "lamb": optax.lamb(1.0),
    "lars": optax.lars(1.0),
    "rmsprop": optax.rmsprop(1.0),
    "adagrad": optax.adagrad(1.0),
    "adadelta": optax.adadelta(1.0, eps=1e-10),
    "adabelief": optax.adabelief(1.0),
    "yogi": optax.yogi(1.0),
    "prodigy": optax.contrib.prodigy(1.0),
    "dadapt": optax.contrib.dadapt_adamw(1.0),
    "schedule_free": optax.contrib.schedule_free_adamw(1.0),
    "normalized": chained(optax.sgd, optax.normalize_by_update_norm())(1.0),
    "warmup": optax.adam(optax.linear_schedule(1e-3, 1.0, 100)),
    "slow_head": by_layer(0.1)(1.0),
    "slow_body": by_layer(10.0)(0.1),
    "lbfgs": optax.lbfgs(1.0),
}


@pytest.mark.parametrize("make", TOLD.values(), ids=TOLD)
def test_another_learning_rate_is_refused(make):
    assert check_learning_rate(make(1.0), PARAMS)
    for rate in (0.1, 1e-3):
        with refuses(ValueError, match=f"learning rate {rate:g}, as its steps tell"):
            check_learning_rate(make(rate), PARAMS)


@pytest.mark.parametrize("optimizer", UNTOLD.values(), ids=UNTOLD)
def test_optimizers_at_one_are_never_refused(optimizer):
    check_learning_rate(optimizer, PARAMS)


def test_what_is_not_told_is_said():
    """Muon's steps are of no one size: what is measured says that 1 is assumed."""
    run = partial(ei.measure, MODEL, PARAMS, X, to_one)
    assert "by the optimizer at learning rate 1" in str(run(optimizer=optax.adam(1.0)))
    taken = str(run(optimizer=optax.contrib.muon(1.0)))
    assert "by the optimizer, taken to be at learning rate 1" in taken


SLOW = optax.adam(1e-3)


def traced(verb: Callable, params: dict):
    return verb(MODEL, params, X, to_one, optimizer=SLOW)


def test_verbs_refuse_another_learning_rate():
    for verb in (ei.tune, ei.measure):
        run = partial(verb, MODEL, PARAMS, X, to_one)
        with refuses(ValueError, match="optimizer is at learning rate 0.001"):
            run(optimizer=optax.adam(1e-3))
        with refuses(ValueError, match="optimizer is at learning rate 0.001"):
            jax.eval_shape(partial(traced, verb), PARAMS)


def test_a_function_of_the_learning_rate_is_called_at_one():
    """The same factors, of one program; whatever it makes of 1 is meant."""
    run = partial(ei.tune, MODEL, PARAMS, X, to_one)
    scales = run(optimizer=optax.adam)
    assert same(scales, run(optimizer=optax.adam(1.0)))
    tenth = run(optimizer=lambda rate: optax.adam(rate / 10))
    grown = lambda s: {**s, "update": 10 * s["update"]}
    allclose(tenth, {name: grown(own) for name, own in scales.items()}, rtol=1e-5)
    table = ei.measure(MODEL, PARAMS, X, to_one, scales=scales, optimizer=optax.adam)
    assert float(jnp.max(table.total_update_rms)) == pytest.approx(1, rel=1e-4)


@pytest.mark.parametrize(
    ("optimizer", "words"),
    [
        (1e-3, "optimizer is 0.001, expected an optax.GradientTransformation"),
        ("adam", "'adam'"),
        (optax.GradientTransformation, "optimizer is <class"),
        (lambda: optax.adam(1.0), r"optimizer\(1.0\) failed"),
        (lambda rate: rate, r"optimizer\(1.0\) is a float"),
        (optax.GradientTransformation([], []), "cannot be hashed"),  # pyright: ignore
    ],
)
def test_what_is_no_optimizer_is_refused(optimizer, words):
    for verb in (ei.tune, ei.measure):
        with refuses(TypeError, match=words):
            verb(MODEL, PARAMS, X, to_one, optimizer=optimizer)


def test_descents_want_an_instance_and_experiments_a_function():
    for verb in (ei.gradinit, ei.metainit):
        with refuses(TypeError, match="it is a function: call it"):
            verb(MODEL, PARAMS, X, to_one, optimizer=optax.adam)
    with refuses(TypeError, match=r"optax.adam \(not optax.adam\(1e-3\)\)"):
        ei.compare(MODEL, PARAMS, X, to_one, optimizer=SLOW)
    with refuses(TypeError, match=r"optax.adam \(not optax.adam\(1e-3\)\)"):
        ei.coordinate_check(lambda n: MODEL, (4, 8), X, to_one, optimizer=SLOW)
