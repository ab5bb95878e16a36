"""Samples of signals, against known laws."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from einit_jax.initializers.signal_propagation import (
    SampledArray,
    SampleSource,
    average,
    covariance,
    largest,
    mean,
    power,
    sample_axis,
    shuffled,
)

KEY, SIZE = jax.random.key(0), 8192


def equally(correlation):
    """A signal of standard normal elements, equally correlated along one axis."""
    draws = SampleSource(KEY, SIZE)
    common, *own = (draws.normal() for _ in range(3))
    tie = math.sqrt(correlation)
    base, beside = (tie * common + math.sqrt(1 - correlation) * x for x in own)
    return draws, SampledArray(base, (beside,))


def test_shuffling_is_a_permutation_of_its_own_for_each_key():
    values = jnp.arange(SIZE)
    one, other = (shuffled(jax.random.key(i), values) for i in range(2))
    assert (jnp.sort(one) == values).all()
    found = np.corrcoef(one, other)[0, 1]
    assert abs(found) < 4 / math.sqrt(SIZE)
    assert abs(np.corrcoef(one, values)[0, 1]) < 4 / math.sqrt(SIZE)


def test_one_source_is_a_quadrature():
    """No sampling error: E z^2 = 1 and E relu(z)^2 = 1/2, for any key."""
    for i in range(3):
        z = SampleSource(jax.random.key(i), SIZE).normal()
        assert float(power(z)) == pytest.approx(1, abs=1e-5)
        assert float(power(nn.relu(z))) == pytest.approx(0.5, abs=1e-3)
    assert abs(float(power(jax.random.normal(KEY, (SIZE,)))) - 1) > 1e-4


@pytest.mark.parametrize("correlation", [0.0, 0.5])
@pytest.mark.parametrize("size", [4, 16, 300])
def test_means_along_an_axis(correlation, size):
    """`Var = c + (v - c) / n`, also of more elements than are drawn."""
    draws, signal = equally(correlation)
    found = average(draws, signal, 0, size=size, max_elements=16)
    want = correlation + (1 - correlation) / size
    assert float(power(found.base)) == pytest.approx(want, rel=0.12)
    independent = 1 / size
    if correlation:
        assert float(power(found.base)) > 2 * independent


@pytest.mark.parametrize(("size", "want"), [(2, 0.5642), (10, 1.5388), (1000, 3.2414)])
def test_the_largest_of_normal_numbers(size, want):
    """Known expectations of order statistics."""
    draws, signal = equally(0.0)
    found = largest(draws, signal, 0, size=size, max_elements=16)
    assert float(mean(found.base)) == pytest.approx(want, rel=0.03)


def test_elements_keep_the_correlation_that_two_of_them_have():
    """Behind a ReLU too, half of whose values are ties."""
    draws, signal = equally(0.6)
    made = SampledArray(nn.relu(signal.base), (nn.relu(signal.row(0)),))
    parts = sample_axis(draws, made, 0, 5).base
    want = float(covariance(*parts[:2]))
    assert want > 0.1
    for i in range(2, 5):
        assert float(covariance(parts[0], parts[i])) == pytest.approx(want, abs=0.03)
