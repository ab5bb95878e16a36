"""A scaled model beside the plain one: collections, streams, values."""

import inspect
import pickle

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import DenyList, freeze

import einit_jax as ei
from tests.support.checks import KEY, initialized, quick, refuses, same
from tests.support.models.dense import CompactMlp
from tests.support.models.lifted import Layers
from tests.support.models.stateful import Dropped, Normed

X = jax.random.normal(KEY, (16, 8))


def test_rngs_reach_the_model():
    """Dropout draws from the stream given, as in the plain model."""
    rngs = {"params": KEY, "dropout": jax.random.key(1)}
    tuned = ei.scaled(Dropped())
    variables = tuned.init(rngs, X)
    plain = {"params": variables["params"]}
    drop = lambda apply, variables, i: apply(
        variables, X, rngs={"dropout": jax.random.key(i)}
    )
    left, other = (drop(tuned.apply, variables, i) for i in (1, 2))
    assert same(left, drop(Dropped().apply, plain, 1))
    assert not np.array_equal(left, other)


@pytest.mark.parametrize(
    ("mutable", "capture"),
    [
        ("batch_stats", False),
        (["params", "batch_stats"], False),
        (True, False),
        (DenyList("params"), True),
        (["params", "intermediates", "batch_stats"], True),
    ],
)
def test_mutable_returns_what_the_model_writes(mutable, capture):
    """The collections written are the plain model's: no factor leaks into any."""
    tuned, variables = initialized(Normed(), X)
    plain = {k: v for k, v in variables.items() if k != "scales"}
    options = {"mutable": mutable, "capture_intermediates": capture}
    y, written = tuned.apply(variables, X, **options)
    assert "einit:" not in str(written)
    assert same((y, written), Normed().apply(plain, X, **options))
    assert not same(written["batch_stats"], plain["batch_stats"])


def test_the_variables_passed_are_not_touched():
    """Nothing is written into the trees given, and mutable params come back alike."""
    tuned, variables = initialized(Layers(), X)
    copy = jax.tree.map(np.array, variables)
    run = lambda variables: tuned.apply(variables, X, mutable=["params"])
    _, written = run(variables)
    slope = quick(jax.grad(lambda variables: run(variables)[0].sum()))(variables)
    assert same(variables, copy)
    assert same(written["params"], copy["params"])
    assert jax.tree.structure(slope) == jax.tree.structure(copy)


def test_frozen_variables_are_taken():
    tuned, variables = initialized(CompactMlp(), X)
    frozen = freeze(variables)
    got = tuned.apply(frozen, X, mutable=["params"])
    plain = freeze({"params": variables["params"]})
    assert same(got, CompactMlp().apply(plain, X, mutable=["params"]))


# What a scaled model is.


def test_scaled_twice_is_scaled_once():
    once = ei.scaled(CompactMlp())
    assert ei.scaled(once) is once
    assert once == ei.scaled(CompactMlp())


@pytest.mark.parametrize(
    ("build", "other"),
    [
        (CompactMlp, lambda: CompactMlp(jnp.bfloat16)),
        (lambda: Layers(axis=1), Layers),
        (lambda: nn.Sequential([nn.Dense(8), nn.tanh]), lambda: nn.Sequential([])),
    ],
    ids=["compact", "scan", "unhashable"],
)
def test_equal_models_scale_to_equal_values(build, other):
    """Value semantics: equal, of one hash, and one entry in the cache of jit."""
    left, right = ei.scaled(build()), ei.scaled(build())
    assert left == right
    assert hash(left) == hash(right)
    assert left != ei.scaled(other())
    traces = []
    run = jax.jit(lambda model, x: traces.append(model) or x, static_argnums=0)
    run(left, KEY)
    run(right, KEY)
    assert len(traces) == 1


def test_a_scaled_model_pickles():
    """The copy is equal and computes the same."""
    tuned, variables = initialized(CompactMlp(), X)
    copy = pickle.loads(pickle.dumps(tuned))
    assert copy == tuned
    assert same(copy.apply(variables, X), tuned.apply(variables, X))


@pytest.mark.parametrize("make", [ei.scaled, ei.activation_stats])
def test_bound_methods_are_equal_by_value(make):
    """`apply` of equal models: one key, one trace, its own signature, picklable."""
    left, right, other = (make(CompactMlp(d)).apply for d in (None, None, "float16"))
    assert left == right != other
    assert hash(left) == hash(right)
    assert left != CompactMlp().apply
    assert len({left, right, other}) == 2
    assert pickle.loads(pickle.dumps(left)) == left
    parameters = list(inspect.signature(left).parameters)
    assert parameters[0] == "variables"
    assert left.__name__ == "apply"
    assert type(left.__self__) is type(make(CompactMlp()))


def test_the_plain_model_ignores_scales():
    """As `scaled` says: only its own `apply` puts them into force."""
    tuned, variables = initialized(CompactMlp(), X)
    scales = jax.tree.map(lambda s: 2 * s, variables["scales"])
    given = {**variables, "scales": scales}
    plain = CompactMlp().apply(given, X)
    assert same(plain, tuned.apply(variables, X))
    assert not same(plain, tuned.apply(given, X))


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (CompactMlp(), ["scales", "Dense_2", "output: float32[]", "9 (36 B)"]),
        (Layers(), ["scales", "layers/block/up", "output: float32[3]", "21 (84 B)"]),
    ],
    ids=["scalars", "layers"],
)
def test_tabulate_has_a_column_of_scales(model, words):
    """A column of factors with their shapes beside the plain model's columns."""
    plain = {"width": 200, "color_system": None}
    table = ei.scaled(model).tabulate(KEY, X, console_kwargs=plain)
    for word in words:
        assert word in table
    assert "einit:" not in table


@pytest.mark.parametrize(
    ("model", "words"),
    [(nn.Dense, ["Dense", "instance"]), (None, ["None", "flax.linen.Module"])],
    ids=["class", "none"],
)
def test_only_instances_of_linen_modules_are_scaled(model, words):
    with refuses(TypeError) as error:
        ei.scaled(model)
    for word in words:
        assert word in str(error.value)
