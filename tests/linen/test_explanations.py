"""Errors of a model's call: whose they are, and what they say."""

import traceback
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
import pytest

import einit_jax as ei
from einit_jax.units import FACTORS
from tests.support.cases import to_one
from tests.support.checks import KEY, params_of, refuses
from tests.support.verbs import VERBS as ALL_VERBS
from tests.support.verbs import compared, folded

X = jax.random.normal(KEY, (16, 8))
PLAIN = nn.Dense(4)


class Failing(nn.Module):
    """A layer whose code does something before it calls the layer."""

    act: str = "key"

    @nn.compact
    def __call__(self, x):
        y = nn.Dense(4)(x)
        if self.act == "key":
            return {}["missing"]
        if self.act == "name":
            return misspelled + y  # pyright: ignore
        if self.act == "call":
            return (lambda a, b: a)(y)  # pyright: ignore
        if self.act == "stop":
            return next(iter(()))
        return y + jnp.ones(3)


PARAMS = {"Dense_0": params_of(PLAIN)}
SCALES = {"Dense_0": dict.fromkeys(FACTORS, 1.0)}
VERBS = ALL_VERBS | {"fold": partial(folded, scales=SCALES)}


@pytest.mark.parametrize("verb", VERBS.values(), ids=VERBS)
def test_errors_of_a_model_keep_their_type_and_place(verb):
    """A KeyError stays one, ends in the model's own line, and has a note."""
    with refuses(KeyError, match="missing") as error:
        verb(Failing(), PARAMS, X, to_one)
    assert traceback.extract_tb(error.tb)[-1].line == 'return {}["missing"]'
    (note,) = [n for n in error.value.__notes__ if "Failing" in n]
    assert "float32[16, 8]" in note


@pytest.mark.parametrize(
    ("act", "exception"),
    [
        ("name", NameError),
        ("call", TypeError),
        ("stop", StopIteration),
        ("add", ValueError),
    ],
)
def test_errors_that_look_like_those_of_arguments_stay(act, exception):
    """A misspelled name is no mapped axis, an inner call not that of the model."""
    with refuses(exception) as error:
        ei.tune(Failing(act), PARAMS, X, to_one)
    assert type(error.value) is exception
    assert sum("Failing called with" in note for note in error.value.__notes__) == 1


@pytest.mark.parametrize("verb", [ei.tune, ei.measure, ei.gradinit, compared])
def test_errors_of_a_loss_keep_their_type_and_place(verb):
    def broken(outputs):
        return jnp.mean(outputs) + [][0]

    with refuses(IndexError) as error:
        verb(PLAIN, params_of(PLAIN), X, broken)
    assert traceback.extract_tb(error.tb)[-1].name == "broken"
    (note,) = [n for n in error.value.__notes__ if "loss_fn" in n]
    assert "float32[16, 4]" in note


class Dropped(nn.Module):
    """A layer behind dropout."""

    @nn.compact
    def __call__(self, x, train=True):
        return nn.Dense(4)(nn.Dropout(0.5, deterministic=not train)(x))


@pytest.mark.parametrize(
    ("batch", "words"),
    [
        ((), "missing a required argument: 'x'"),
        ((X, True, X), "too many positional"),
        (ei.Inputs(X, training=True), "unexpected keyword argument 'training'"),
    ],
)
def test_arguments_that_the_model_does_not_take_are_named(batch, words):
    with refuses(ValueError, match="cannot take the inputs") as error:
        ei.tune(Dropped(), PARAMS, batch, to_one)
    assert words in str(error.value)


def test_inputs_that_do_not_fit_at_init_are_named():
    check = partial(ei.coordinate_check, lambda width: PLAIN, (4, 8), loss_fn=to_one)
    with refuses(ValueError, match="Dense cannot take the inputs"):
        check((X, X), optimizer=optax.sgd)
