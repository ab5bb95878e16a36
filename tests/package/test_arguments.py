"""Arguments of the wrong kind, on every verb that takes them: refused by name."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import einit_jax as ei
from einit_jax.core import as_integer, as_number
from tests.support.cases import to_one
from tests.support.checks import KEY, params_of, refuses, same
from tests.support.models.dense import CompactMlp
from tests.support.verbs import VERBS as ALL_VERBS
from tests.support.verbs import checked, compared, drawn
from tests.support.verbs import folded as fold

X = jax.random.normal(KEY, (16, 8))
MODEL = CompactMlp()
PARAMS = params_of(MODEL)
SCALES = ei.scaled(MODEL).init(KEY, X)["scales"]
folded = partial(fold, scales=SCALES)
VERBS = ALL_VERBS | {"fold": folded}
of_each = pytest.mark.parametrize("verb", VERBS.values(), ids=VERBS)
KEYS = jax.random.split(KEY, 3)
SHARED = [
    ({"key": 0}, TypeError, "key is 0, expected a random key"),
    ({"key": [0, 1]}, TypeError, r"key is \[0, 1\], expected a random key"),
    ({"key": X}, TypeError, r"key is float32\[16, 8\], expected"),
    ({"key": KEYS}, ValueError, r"key holds keys of shape \(3,\), expected a single"),
    ({"key": jax.random.key_data(KEYS)}, ValueError, r"keys of shape \(3,\)"),
    ({"rngs": 3}, TypeError, r"rngs is 3, expected names of random streams"),
    ({"rngs": [["dropout"]]}, TypeError, r"rngs is \[\['dropout'\]\], expected names"),
    ({"rngs": {"dropout": 0}}, TypeError, r"rngs\['dropout'\] is 0, expected a random"),
    ({"rngs": {"dropout": KEYS}}, ValueError, r"rngs\['dropout'\] holds keys"),
    ({"input_fn": X[:0]}, ValueError, r"input_fn is float32\[0, 8\], an empty batch"),
    ({"input_fn": lambda key: X[:0]}, ValueError, r"input_fn returned float32\[0, 8\]"),
    ({"input_fn": iter([])}, ValueError, "is a list_iterator that gives no batch"),
    ({"input_fn": range(9)}, TypeError, "input_fn gave a int, expected a batch"),
    ({"input_fn": lambda key: iter([X])}, TypeError, "returned a list_iterator"),
    ({"input_fn": lambda key: None}, TypeError, "input_fn returned None, expected a"),
    ({"input_fn": "mnist"}, TypeError, "input_fn is a str, expected a batch"),
    ({"batch_size": 0}, ValueError, "batch_size is 0, expected a positive"),
    ({"batch_size": 1.5}, ValueError, "batch_size is 1.5"),
    ({"axis_name": 3}, TypeError, "axis_name is 3, expected a name"),
]
OF_PARAMS = [
    ({"params": X}, TypeError, "params"),
    ({"params": None}, TypeError, "params are a NoneType"),
    (
        {"model": PARAMS, "params": MODEL},
        TypeError,
        "model is a dict|params at '.' hold CompactMlp",
    ),
    (
        {"params": jax.tree.map(lambda p: p.astype(int), PARAMS)},
        ValueError,
        "no floating array",
    ),
    ({"params": {"Dense_0": {"kernel": 1.0}}}, TypeError, "'Dense_0/kernel' hold 1.0"),
    ({"collections": 3}, TypeError, "collections are 3, expected variables"),
]


def call(verb: Any, **changes: Any) -> Any:
    fitting = {"model": MODEL, "params": PARAMS, "input_fn": X, "loss_fn": to_one}
    given = fitting | changes
    arguments = [given.pop(name) for name in fitting]
    return verb(*arguments, **given)


@of_each
def test_wrong_arguments_are_refused_by_name(verb):
    rows = SHARED + (OF_PARAMS if verb is not checked else [])
    for changes, exception, words in rows:
        if verb is drawn and "no floating" in words:  # arrays of integers stay
            continue
        with refuses(exception, match=words) as error:
            call(verb, **changes)
        assert type(error.value) is exception


def test_swapped_arguments_are_told():
    with refuses(TypeError, match="model is a dict and params is the model, a Compact"):
        call(ei.tune, model=PARAMS, params=MODEL)
    with refuses(TypeError, match="model is a dict and input_fn is the model, a Comp"):
        call(ei.measure, model=PARAMS, params=X, input_fn=MODEL)
    with refuses(TypeError, match="params and input_fn have changed places"):
        call(ei.lsuv, params=X, input_fn=PARAMS)
    with refuses(TypeError, match=r"loss_fn is float32\[16, 8\], expected a function"):
        call(ei.tune, input_fn=to_one, loss_fn=X)


@of_each
def test_shapes_are_no_params(verb):
    """Where nothing runs they will do; what `jax.eval_shape` traces always does."""
    shapes = jax.eval_shape(lambda: PARAMS)
    if verb is drawn:
        assert same(call(verb, params=shapes), call(verb))
    elif verb is not checked:
        with refuses(TypeError, match="'Dense_0/bias' hold a shape and no array"):
            call(verb, params=shapes)
    if verb is ei.tune:
        jax.eval_shape(lambda params: call(verb, params=params), PARAMS)


@of_each
def test_a_batch_of_zeros_tells_nothing(verb):
    """Refused where values count; measured all the same, and said."""
    zeros = jnp.zeros_like(X)
    if verb is ei.measure:
        assert "float32[16, 8]), all zeros" in str(call(verb, input_fn=zeros))
        assert "zeros" not in str(call(verb))
    elif verb is drawn:
        assert same(call(verb, input_fn=zeros), call(verb))
    else:
        with refuses(ValueError, match=r"drew float32\[16, 8\], all zeros"):
            call(verb, input_fn=lambda key: zeros)


def test_a_batch_with_some_zeros_is_none_of_zeros():
    """A carry of zeros beside data, tokens that are all zero, analysis alone."""

    class Cell(nn.Module):
        @nn.compact
        def __call__(self, carry, x):
            return nn.Dense(4)(carry + nn.Embed(3, 8)(x))

    tokens = jnp.zeros(16, jnp.int32)
    batch = (jnp.zeros_like(X), tokens)
    scales = ei.tune(Cell(), Cell().init(KEY, *batch)["params"], batch, to_one)
    assert scales["Embed_0"]["output"] != 1
    moments = {"input_mean": 0.0, "input_var": 1.0}
    call(ei.autoinit, input_fn=jnp.zeros_like(X), **moments)


# Patterns, targets, numbers.


@pytest.mark.parametrize("name", ["include", "exclude"])
@pytest.mark.parametrize("patterns", [3, [3], [["Dense_0"]], b"Dense_0"])
def test_patterns_are_strings(name, patterns):
    verbs = [partial(call, VERBS[v]) for v in ("tune", "lsuv", "gradinit", "metainit")]
    verbs += [partial(ei.activation_stats, MODEL)]
    if name == "exclude":
        verbs += [partial(ei.unit_params, PARAMS, KEY)]
    for verb in verbs:
        with refuses(TypeError, match=f"{name} is .*expected a glob pattern"):
            verb(**{name: patterns})


def test_targets_are_numbers_by_pattern():
    for verb, name in ((ei.tune, "targets"), (ei.lsuv, "target")):
        run = partial(call, verb)
        with refuses(TypeError, match="have the pattern 1, expected a glob"):
            run(**{name: {1: 1.0}})
        for wrong in (True, X, 1j):
            with refuses(ValueError, match="is no number that is positive"):
                run(**{name: wrong})
        with refuses(ValueError, match="expected one number: it is a single layer"):
            run(**{name: [2.0]})
        half = run(**{name: 0.5})
        for number in (np.float32(0.5), jnp.float32(0.5), np.array(0.5)):
            assert same(run(**{name: number}), half)
            assert same(run(**{name: {"*": number}}), half)
        with refuses(ValueError, match="known while nothing runs"):
            jax.jit(lambda t: run(**{name: t}))(0.5)  # noqa: B023


def test_integers_of_numpy_and_jax_are_integers():
    two = call(ei.tune, draws=2, input_fn=lambda key: jax.random.normal(key, (16, 8)))
    for draws in (np.int64(2), jnp.int32(2), np.array(2)):
        draw = lambda key, batch_size: jax.random.normal(key, (batch_size, 8))
        sized = call(ei.tune, draws=draws, input_fn=draw, batch_size=np.int64(16))
        assert same(sized, two)
    for wrong in (True, 2.0, np.float32(2), "2", None, jnp.ones(2, int)):
        assert as_integer(wrong) is None
        with refuses(ValueError, match="draws is .*, expected a positive integer"):
            call(ei.tune, draws=wrong)
    assert [as_number(x) for x in (True, "1", 1j, X, None)] == [None] * 5
    assert [as_number(x) for x in (2, np.int8(2), jnp.bfloat16(2))] == [2.0] * 3


@pytest.mark.parametrize(
    ("function", "options", "exception", "words"),
    [
        (ei.unit_params, {"params": PARAMS, "key": 0}, TypeError, "key is 0"),
        (ei.unit_params, {"params": PARAMS, "key": KEYS}, ValueError, "keys of shape"),
        (
            ei.unit_params,
            {"params": jax.eval_shape(lambda: PARAMS), "key": KEY},
            TypeError,
            "a shape and no array",
        ),
        (
            ei.unit_params,
            {"params": PARAMS, "key": KEY, "scales": 3},
            TypeError,
            "scales are 3, a int",
        ),
        (folded, {"scales": None}, TypeError, "scales are None, a NoneType"),
        (folded, {"scales": X}, TypeError, r"scales are float32\[16, 8\]"),
        (ei.measure, {"scales": [1.0]}, TypeError, r"scales are \[1.0\], a list"),
        (ei.scale_updates, {"scales": None}, TypeError, "scales are a NoneType"),
        (ei.fans, {"shape": 3}, TypeError, "shape is 3, expected the sizes"),
        (ei.fans, {"shape": PARAMS}, TypeError, "expected the sizes"),
        (ei.fans, {"shape": (3, 4.0)}, TypeError, "expected the sizes"),
        (ei.fans, {"shape": (3, 4), "groups": "a"}, TypeError, "groups is 'a'"),
        (
            ei.fans,
            {"shape": (3, 3, 4, 4), "strides": 1.5},
            ValueError,
            "strides=1.5, expected 2",
        ),
        (ei.gain, {"fn": nn.softmax}, TypeError, "fn is not elementwise"),
        (
            ei.gain,
            {"fn": nn.softmax, "preserve": "gradient"},
            TypeError,
            "fn is not elementwise",
        ),
        (ei.gain, {"fn": lambda x: x - x.mean()}, TypeError, "fn is not elementwise"),
        (ei.gain, {"fn": jnp.cumsum}, TypeError, "fn is not elementwise"),
        (ei.general_relu, {"leak": "a"}, ValueError, "leak='a'"),
        (ei.general_relu, {"sub": float("nan")}, ValueError, "sub=nan"),
        (checked, {"init_fn": 3}, TypeError, "init_fn is 3, expected a function"),
        (checked, {"tune": 3}, TypeError, "tune is 3, expected True, False"),
        (checked, {"flat": "a"}, ValueError, "flat='a'"),
        (checked, {"flat": -0.1}, ValueError, "flat=-0.1"),
        (compared, {"seeds": "a"}, ValueError, "seeds='a'"),
        (ei.autoinit, {"samples": 100.0}, ValueError, "samples=100.0"),
        (ei.metainit, {"momentum": "a"}, ValueError, "momentum is 'a'"),
        (ei.gradinit, {"steps": 2.5}, ValueError, "steps is 2.5"),
        (ei.tune, {"max_sweeps": True}, ValueError, "max_sweeps is True"),
        (ei.tune, {"tolerance": "a"}, ValueError, "tolerance is 'a'"),
        (ei.tune, {"like": ["original"]}, ValueError, "like="),
    ],
)
def test_other_arguments_are_refused_by_name(function, options, exception, words):
    run = partial(call, function) if function in VERBS.values() else function
    with refuses(exception, match=words):
        run(**options)


def test_loose_is_a_finite_number():
    scales = ei.tune(MODEL, PARAMS, X, to_one, optimizer=optax.adam)
    for wrong in (float("nan"), float("inf"), -1.0, jnp.float32("nan")):
        with refuses(ValueError, match="expected a finite number, 0 or more"):
            ei.scale_updates(scales, loose=wrong)
    for wrong in ("1", 1j, jnp.ones(2)):
        with refuses(TypeError, match="loose is .*, expected a number"):
            ei.scale_updates(scales, loose=wrong)
    assert ei.scale_updates(scales).init(PARAMS).loose is None
    for fine in (0, 0.5, np.float32(2), jnp.float32(2)):
        state = ei.scale_updates(scales, loose=fine).init(PARAMS)
        assert float(state.loose) == fine
    traced = jax.jit(lambda loose: ei.scale_updates(scales, loose=loose).init(PARAMS))
    assert float(traced(0.5).loose) == 0.5
