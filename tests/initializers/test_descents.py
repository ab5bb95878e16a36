"""MetaInit and GradInit on other models and arrays, and bad input."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import einit_jax as ei
from einit_jax.core import flatten
from tests.support.checks import refuses
from tests.support.descents import KEY, draw
from tests.support.models import CASES

FEW = {"draws": 2, "steps": 3}
DESCENTS = {
    "metainit": ei.metainit,
    "gradinit": partial(ei.gradinit, learning_rate=0.1),
}


@pytest.mark.parametrize("verb", DESCENTS.values(), ids=DESCENTS)
def test_a_scaled_model_is_the_model(verb):
    """Given as `ei.scaled(model)` too: the same parameters."""
    model = nn.Dense(3)
    params = model.init(KEY, draw(KEY))["params"]
    run = lambda model: verb(model, params, draw, lambda y: jnp.mean(y**2), **FEW)
    assert jax.tree.all(jax.tree.map(np.array_equal, run(ei.scaled(model)), run(model)))


def layers_of(name, path):
    """Along which axis an array of a case holds layers."""
    return (
        {"scan_layers": 0, "scan_axis_1": 1}.get(name) if path[0] == "layers" else None
    )


@pytest.mark.parametrize(
    ("verb", "name"),
    [
        ("gradinit", "scan_axis_1"),
        ("metainit", "batch_norm_axis_name"),
        ("metainit", "custom_vjp"),
        ("gradinit", "dropout"),
        ("gradinit", "boxed"),
        ("gradinit", "integer_parameter"),
    ],
)
def test_each_array_is_multiplied(verb, name):
    """By one number, or one a layer; structure, dtypes and zeros stay."""
    job = CASES[name].build()
    model, params, input_fn, loss_fn, options = job
    found = DESCENTS[verb](model, params, input_fn, loss_fn, **options, **FEW)
    assert jax.tree.structure(found) == jax.tree.structure(params)
    changed = 0
    for path, old in flatten(nn.meta.unbox(params)).items():
        new, axis = flatten(nn.meta.unbox(found))[path], layers_of(name, path)
        assert new.dtype == old.dtype
        pairs = [(old, new)]
        if axis is not None and path[-1] == "kernel":
            pairs = [(jnp.take(old, i, axis), jnp.take(new, i, axis)) for i in range(3)]
            assert len({float(jnp.abs(b / a).max()) for a, b in pairs}) == 3
        for a, b in pairs:
            by = jnp.linalg.norm(b) / max(jnp.linalg.norm(a), 1e-30)
            np.testing.assert_allclose(b, by * a, rtol=2e-5)
            changed += by not in (0, 1)
    assert changed


@pytest.mark.parametrize(
    ("verb", "dtype"), [("metainit", jnp.float16), ("gradinit", jnp.bfloat16)]
)
def test_sizes_of_16_bit_parameters_are_float32(verb, dtype):
    """Steps far below what the dtype resolves add up."""
    model = nn.Dense(4, param_dtype=dtype)
    params = model.init(KEY, draw(KEY))["params"]
    how = {"steps": 100, "draws": 1, "learning_rate": 2e-4, "include": "kernel"}
    found = DESCENTS[verb](model, params, draw, lambda y: jnp.mean(y**2), **how)
    assert found["kernel"].dtype == dtype and not found["bias"].any()
    assert not np.array_equal(found["kernel"], params["kernel"])


# Bad input.


class Loops(nn.Module):
    """A gradient that is found in a while loop: it has no reverse mode."""

    @nn.compact
    def __call__(self, x):
        @jax.custom_vjp
        def same(x):
            return x

        def back(_, g):
            halve = lambda g: 0.5 * g
            return (jax.lax.while_loop(lambda g: jnp.sum(g**2) > 1, halve, g),)

        same.defvjp(lambda x: (x, None), back)
        return same(nn.Dense(4)(x))


def squares(outputs):
    return jnp.mean(outputs**2)


TINY = nn.Dense(4)
TINY_PARAMS = TINY.init(KEY, draw(KEY))["params"]
LOOPS = Loops().init(KEY, draw(KEY))["params"]
HUGE = jax.tree.map(lambda p: 1e38 * p, TINY_PARAMS)


@pytest.mark.parametrize("verb", [ei.metainit, ei.gradinit])
@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"steps": 0}, ValueError, "steps is 0"),
        ({"steps": 2.5}, ValueError, "steps is 2.5"),
        ({"learning_rate": -1.0}, ValueError, "learning_rate is -1.0"),
        ({"learning_rate": "fast"}, ValueError, "learning_rate is 'fast'"),
        ({"draws": 0}, ValueError, "draws is 0"),
        ({"progress": 3}, TypeError, "function of .step, steps, value."),
        ({"optimizer": optax.adam}, TypeError, "at its learning rate"),
        ({"include": "Dense/kernel"}, ValueError, "matches no array"),
        ({"exclude": "*"}, ValueError, "leave no array"),
        ({"params": {"params": TINY_PARAMS}}, ValueError, "pass variables"),
        ({"model": Loops(), "params": LOOPS}, ValueError, "no second derivative"),
        ({"params": HUGE}, FloatingPointError, "before the first step"),
    ],
)
def test_bad_input(verb, options, error, words):
    given = {"model": TINY, "params": TINY_PARAMS, "input_fn": draw, "loss_fn": squares}
    given |= {"draws": 2, "steps": 2} | options
    if "progress" not in options and error is not FloatingPointError:
        given["progress"] = lambda *_: pytest.fail("a step was taken")
    with refuses(error, match=words):
        verb(**given)


@pytest.mark.parametrize(
    ("verb", "options", "words"),
    [
        (ei.metainit, {"momentum": 1.0}, "momentum is 1.0"),
        (ei.metainit, {"epsilon": 0}, "epsilon is 0"),
        (ei.gradinit, {"gamma": 0}, "gamma is 0"),
        (ei.gradinit, {"alpha_min": -1}, "alpha_min is -1"),
        (ei.gradinit, {"alpha_min": 2}, "alpha_min is 2"),
        (ei.gradinit, {"optimizer": optax.sgd(0.0)}, "moves nothing"),
    ],
)
def test_bad_numbers(verb, options, words):
    with refuses(ValueError, match=words):
        verb(TINY, TINY_PARAMS, draw, squares, **options)


def test_batches_of_several_shapes_are_refused():
    sizes = iter([8, 8, 3])
    ragged = lambda key: jnp.ones((next(sizes), 8))
    with refuses(ValueError, match=r"float32\[3, 8\].* after .*float32\[8, 8\]"):
        ei.metainit(TINY, TINY_PARAMS, ragged, squares, draws=3)
