"""Gains against the textbook, fans against counting."""

import itertools
import math
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate

import einit_jax as ei

PHI = lambda z: math.exp(-z * z / 2) / math.sqrt(2 * math.pi)
LEAKY = {s: partial(nn.leaky_relu, negative_slope=s) for s in (0.01, 0.2, 0.5)}


def adaptive(fn):
    """The expectation over the normal distribution, by scipy's own quadrature."""
    parts = [(-12, -1), (-1, 0), (0, 1), (1, 12)]
    one = lambda z: fn(z) * PHI(z)
    return sum(integrate.quad(one, *part, epsabs=1e-12)[0] for part in parts)


@pytest.mark.parametrize(
    ("fn", "want"),
    [
        (lambda x: x, 1.0),
        (nn.relu, math.sqrt(2)),
        *((fn, math.sqrt(2 / (1 + s * s))) for s, fn in LEAKY.items()),
        (jnp.tanh, adaptive(lambda z: math.tanh(z) ** 2) ** -0.5),
        (np.tanh, adaptive(lambda z: math.tanh(z) ** 2) ** -0.5),
        (nn.selu, 1.0),
    ],
)
def test_gains_of_the_textbook(fn, want):
    assert ei.gain(fn) == pytest.approx(want, abs=1e-6)


def test_gains_that_preserve_other_things():
    """The variance of a ReLU is 1/2 - 1/(2 pi); its slope is 1 half of the time."""
    want = (0.5 - 1 / (2 * math.pi)) ** -0.5
    assert ei.gain(nn.relu, preserve="variance") == pytest.approx(want, abs=1e-6)
    assert ei.gain(nn.relu, preserve="gradient") == pytest.approx(2**0.5, abs=1e-6)
    square = adaptive(lambda z: (1 - math.tanh(z) ** 2) ** 2)
    found = ei.gain(jnp.tanh, preserve="gradient")
    assert found == pytest.approx(square**-0.5, abs=1e-6)


def test_a_gain_keeps_the_second_moment_of_a_network():
    """Drawn with it, 30 layers of GELU keep their size; without it they do not."""
    x = jax.random.normal(jax.random.key(0), (256, 512))
    sizes = {}
    for gain in (ei.gain(nn.gelu), 1.0):
        y = x
        for key in jax.random.split(jax.random.key(1), 30):
            w = gain * jax.random.normal(key, (512, 512)) / math.sqrt(512)
            y = nn.gelu(y) @ w
        sizes[gain] = float(jnp.sqrt(jnp.mean(jnp.square(y))))
    assert 0.5 < sizes.pop(ei.gain(nn.gelu)) < 2
    assert sizes[1.0] < 1e-3


@pytest.mark.parametrize(
    ("fn", "options", "error", "words"),
    [
        (nn.relu, {"preserve": "mean"}, ValueError, "second_moment, variance"),
        (3, {}, TypeError, "expected an elementwise function"),
        (jnp.sum, {}, TypeError, "expected an elementwise function"),
        (lambda x: x @ jnp.ones((3, 3)), {}, TypeError, "cannot take an array"),
        (jnp.log, {}, ValueError, "not finite at -14"),
        (jnp.zeros_like, {}, ValueError, "it is zero"),
        (jnp.ones_like, {"preserve": "variance"}, ValueError, "constant"),
        (jnp.sign, {"preserve": "gradient"}, ValueError, "derivative is zero"),
    ],
)
def test_functions_without_a_gain(fn, options, error, words):
    with pytest.raises(error, match=words):
        ei.gain(fn, **options)


@pytest.mark.parametrize("leak", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("top", [None, 0.5, 6.0])
def test_general_relu_is_centred(leak, top):
    fn = ei.general_relu(leak, max_value=top)
    value = lambda z: min(max(z, leak * z) - fn.keywords["sub"], top or math.inf)
    kink = (top or 0) + fn.keywords["sub"]
    parts = sorted({-12.0, 0.0, min(kink, 11.0), 12.0})
    one = lambda z: value(z) * PHI(z)
    pairs = itertools.pairwise(parts)
    mean = sum(integrate.quad(one, *pair)[0] for pair in pairs)
    assert mean == pytest.approx(0, abs=1e-8)
    z = jnp.linspace(-3, 3, 13)
    want = [value(float(v)) for v in z]
    np.testing.assert_allclose(fn(z), want, atol=1e-6)


def test_general_relu_refuses_what_it_cannot_be():
    with pytest.raises(ValueError, match="leak=2"):
        ei.general_relu(2.0)
    with pytest.raises(ValueError, match="max_value=-1"):
        ei.general_relu(max_value=-1.0)


def counted(module, x):
    """Fans by counting, away from borders: inputs that move an output, and back."""
    params = module.init(jax.random.key(0), x)
    ones = jax.tree.map(jnp.ones_like, params)
    jacobian = jax.jacobian(lambda x: module.apply(ones, x))(x)[0]
    size = math.prod(jacobian.shape[: jacobian.ndim - x.ndim])
    matrix = np.asarray(jacobian).reshape(size, -1) != 0
    kernel = params["params"]["kernel"].shape
    return kernel, matrix.sum(1).max(), matrix.sum(0)


@pytest.mark.parametrize(
    ("module", "shape", "options"),
    [
        (nn.Dense(5), (1, 7), {}),
        (nn.DenseGeneral((2, 3)), (1, 7), {"kind": "dense"}),
        (nn.DenseGeneral(5, axis=(-2, -1)), (1, 4, 3), {"contracted": 2}),
        (nn.Conv(6, (3,)), (1, 9, 4), {}),
        (nn.Conv(6, (3, 3)), (1, 7, 7, 2), {}),
        (nn.Conv(6, (3, 3), feature_group_count=2), (1, 7, 7, 4), {"groups": 2}),
        (nn.Conv(3, (4, 4), strides=2), (1, 12, 12, 2), {"strides": (2, 2)}),
        (nn.Conv(3, (2, 2, 2)), (1, 4, 4, 4, 2), {}),
        (nn.ConvTranspose(3, (4,), strides=(2,)), (1, 8, 2),
         {"kind": "conv_transpose", "strides": 2}),
    ],
)  # fmt: skip
def test_fans_are_those_of_the_jacobian(module, shape, options):
    """Each output moves with fan-in inputs; each input moves fan-out outputs."""
    kernel, into, out = counted(module, jnp.ones(shape))
    found = ei.fans(kernel, **options)
    assert found.fan_in == into
    assert found.fan_out == out.max()


def test_fans_without_strides_and_groups_are_those_of_jax():
    """The standard deviation of `variance_scaling` with these fans."""
    shape = (3, 3, 8, 16)
    for mode, fan in zip(("fan_in", "fan_out"), ei.fans(shape), strict=True):
        init = jax.nn.initializers.variance_scaling(1.0, mode, "normal")
        drawn = init(jax.random.key(0), shape)
        want = fan**-0.5
        assert float(drawn.std()) == pytest.approx(
            want, rel=4 / (2 * drawn.size) ** 0.5
        )
    assert ei.fans((100, 12), "embed") == (1.0, 12.0)
    assert ei.fans((4, 3, 5), batched=1) == (3.0, 5.0)


@pytest.mark.parametrize(
    ("shape", "options", "words"),
    [
        ((4, 4), {"kind": "linear"}, "dense, conv"),
        ((), {}, "no elements"),
        ((0, 4), {}, "no elements"),
        ((4,), {"kind": "dense"}, "for a bias there are no fans"),
        ((4,), {"kind": "conv"}, "too few axes"),
        ((4, 4), {"contracted": 2}, "no axis of features"),
        ((3, 3, 2, 5), {"groups": 2}, "do not divide"),
        ((3, 3, 2, 4), {"strides": (2,)}, "2 positive integers"),
    ],
)
def test_arrays_without_fans(shape, options, words):
    with pytest.raises(ValueError, match=words):
        ei.fans(shape, **options)
