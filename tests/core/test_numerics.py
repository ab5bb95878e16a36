"""Root mean squares and scaled gradients at their singular points."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from einit_jax import core


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.complex64])
def test_rms_beyond_the_range_of_squares(scale, dtype):
    """Equal to float64 where a square would be 0 or infinite in float32."""
    t = (scale * jax.random.normal(jax.random.key(0), (64, 3))).astype(dtype)
    wide = np.asarray(t).astype(np.complex128)
    expected = np.sqrt(np.mean(np.abs(wide) ** 2))
    np.testing.assert_allclose(core.rms([t]), expected, rtol=1e-5)


def test_rms_of_nothing_and_of_zeros():
    assert core.rms([]) == 0
    assert core.rms([jnp.zeros((0, 3))]) == 0
    assert core.rms([jnp.zeros(3)]) == 0
    assert core.rms([jnp.ones((2, 3)), 3 * jnp.ones((2, 1))], keep=1).shape == (2,)
    np.testing.assert_allclose(core.rms([jnp.ones(3), 3 * jnp.ones(1)]), np.sqrt(3))


@pytest.mark.parametrize("power", [0.0, np.inf, np.nan])
def test_inverse_rms_is_one_where_undefined(power):
    assert core.inverse_rms(jnp.array(power, jnp.float32)) == 1
    assert jax.grad(core.inverse_rms)(jnp.array(power, jnp.float32)) == 0


def test_scale_gradient_scales_both_ways_only():
    """Forward it is the identity to the bit; tangents and cotangents are scaled."""
    t, k = jnp.array([1.5, -2.0]), jnp.array(3.0)
    f = lambda t: core.scale_gradient(t, k)
    np.testing.assert_array_equal(f(t), t)
    np.testing.assert_array_equal(jax.vjp(f, t)[1](t)[0], 3 * t)
    np.testing.assert_array_equal(jax.jvp(f, (t,), (t,))[1], 3 * t)
