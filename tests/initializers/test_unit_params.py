"""Parameters of unit size."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import freeze

import einit_jax as ei
from einit_jax.core import flatten, unboxed
from tests.support.cases import Case
from tests.support.checks import refuses, some

KEY = jax.random.key(7)


class Block(nn.Module):
    """A layer of a stack, wide enough for statistics."""

    @nn.compact
    def __call__(self, x, _):
        return x + nn.Dense(48, name="up")(nn.LayerNorm(name="norm")(x)), None


class Net(nn.Module):
    """Weights of several kinds, biases, gains, a token and a scalar."""

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(48, (3, 3), name="conv")(x).mean((1, 2))
        x = x + self.param("token", nn.initializers.normal(0.02), (1, 48))
        x = x * self.param("temperature", nn.initializers.ones_init(), ())
        blocks = nn.scan(
            Block, variable_axes={"params": 0}, split_rngs={"params": True}, length=3
        )
        x, _ = blocks(name="blocks")(x, None)
        return nn.Dense(32, name="head")(x)


MODEL, X = Net(), jnp.ones((2, 8, 8, 3))
VARIABLES = ei.scaled(MODEL).init(jax.random.key(0), X)
PARAMS, SCALES = VARIABLES["params"], VARIABLES["scales"]
WEIGHTS = {"conv/kernel", "blocks/up/kernel", "head/kernel", "token"}


def rms(x) -> float:
    return float(jnp.sqrt(jnp.mean(jnp.abs(x) ** 2)))


@pytest.mark.parametrize(
    "draw", ["normal", "truncated_normal", "uniform", "orthogonal"]
)
def test_weights_have_rms_one(draw):
    """Within 4 / sqrt(2 N), as drawn; biases 0, gains and scalars as they were."""
    new = ei.unit_params(PARAMS, KEY, draw=draw, scales=SCALES)
    for path, value in flatten(new).items():
        old, name = flatten(PARAMS)[path], "/".join(path)
        assert (value.shape, value.dtype) == (old.shape, old.dtype)
        if name in WEIGHTS:
            assert abs(rms(value) - 1) < 4 / np.sqrt(2 * value.size), name
        elif path[-1] == "bias":
            np.testing.assert_array_equal(value, 0)
        else:
            np.testing.assert_array_equal(value, old)
    assert abs(rms(PARAMS["head"]["kernel"]) - 1) > 0.5
    assert len(np.unique(new["blocks"]["up"]["kernel"].ravel()[::48])) > 100
    again = ei.unit_params(PARAMS, KEY, draw=draw, scales=SCALES)
    jax.tree.map(np.testing.assert_array_equal, new, again)
    other = ei.unit_params(PARAMS, jax.random.key(8), draw=draw)
    assert rms(other["head"]["kernel"] - new["head"]["kernel"]) > 0.5


def test_shapes_of_the_draws():
    """Truncated at two deviations, uniform to sqrt(3), orthogonal layer by layer."""
    draw = lambda how: ei.unit_params(PARAMS, KEY, draw=how, scales=SCALES)
    wide = jnp.abs(draw("truncated_normal")["blocks"]["up"]["kernel"]).max()
    assert 2.0 < wide < 2.3  # the deviation is 0.88 before it is made good
    assert 1.70 < jnp.abs(draw("uniform")["blocks"]["up"]["kernel"]).max() <= 3**0.5
    assert jnp.abs(draw("normal")["blocks"]["up"]["kernel"]).max() > 2.5
    new = draw("orthogonal")
    for q in new["blocks"]["up"]["kernel"]:
        np.testing.assert_allclose(q @ q.T, 48 * np.eye(48), atol=1e-3)
    head = new["head"]["kernel"]
    np.testing.assert_allclose(head.T @ head, 48 * np.eye(32), atol=1e-3)


def test_keep_rescales_what_is_there():
    """Layer by layer; zeros stay zeros."""
    kernel = PARAMS["blocks"]["up"]["kernel"] * jnp.array([1.0, 5.0, 0.0]).reshape(
        3, 1, 1
    )
    params = {**PARAMS, "blocks": {**PARAMS["blocks"], "up": {"kernel": kernel}}}
    new = ei.unit_params(params, keep=True, scales=SCALES)["blocks"]["up"]["kernel"]
    for layer, old, size in zip(new, kernel, (1, 1, 0), strict=True):
        np.testing.assert_allclose(rms(layer), size, rtol=1e-5)
        np.testing.assert_allclose(layer * rms(old), old, atol=1e-6)
    whole = ei.unit_params(params, keep=True)["blocks"]["up"]["kernel"]
    np.testing.assert_allclose(rms(whole), 1, rtol=1e-5)


def test_choices():
    """Gains on request; paths that stay; every kind of tree."""
    doubled = jax.tree.map(lambda p: 2 * p, PARAMS)
    assert rms(ei.unit_params(doubled, KEY)["blocks"]["norm"]["scale"]) == 2
    gains = ei.unit_params(doubled, KEY, gains=True)["blocks"]["norm"]["scale"]
    np.testing.assert_array_equal(gains, 1)
    left = ei.unit_params(PARAMS, KEY, exclude=["token", "head/*"])
    assert left["token"] is PARAMS["token"]
    assert left["head"]["kernel"] is PARAMS["head"]["kernel"]
    assert abs(rms(left["conv"]["kernel"]) - 1) < 0.1
    compiled = jax.jit(lambda p: ei.unit_params(p, KEY))(PARAMS)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6)
    jax.tree.map(close, compiled, ei.unit_params(PARAMS, KEY))
    frozen = ei.unit_params(freeze(PARAMS), KEY)
    assert jax.tree.structure(frozen) == jax.tree.structure(freeze(PARAMS))


@some("boxed", "complex", "bfloat16", "integer_parameter", "remat_scan", "tensors")
def test_every_kind_of_parameter(case: Case):
    """Boxes, dtypes and integers stay; what is drawn is of unit size."""
    params = case.build().params
    new = ei.unit_params(params, KEY)
    kind = lambda x: (x.shape, x.dtype)
    assert jax.tree.structure(new) == jax.tree.structure(params)
    assert jax.tree.map(kind, new) == jax.tree.map(kind, params)
    drawn = {
        path: value
        for path, value in flatten(unboxed(new)).items()
        if path[-1] in ("kernel", "embedding")
        and jnp.issubdtype(value.dtype, jnp.inexact)
    }
    assert drawn
    for value in drawn.values():
        assert abs(rms(value) - 1) < 4 / np.sqrt(2 * value.size)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"key": KEY, "draw": "gaussian"}, ["'gaussian'", "orthogonal"]),
        ({}, ["key", "keep=True"]),
        ({"key": KEY, "exclude": "body/*"}, ["'body/*'", "array", "conv/kernel"]),
        ({"key": KEY, "scales": {**SCALES, "body": SCALES["head"]}}, ["body"]),
    ],
    ids=str,
)
def test_bad_input(options, words):
    with refuses(ValueError) as error:
        ei.unit_params(PARAMS, **options)
    for word in words:
        assert word in str(error.value)
