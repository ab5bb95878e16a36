"""Gains against the textbook."""

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
from tests.support.checks import refuses

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
    with refuses(error, match=words):
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
    with refuses(ValueError, match="leak=2"):
        ei.general_relu(2.0)
    with refuses(ValueError, match="max_value=-1"):
        ei.general_relu(max_value=-1.0)
