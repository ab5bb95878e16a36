"""Root mean squares and scaled gradients at their singular points."""

import re
from itertools import permutations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxlib.version import __version__ as jaxlib_version

from einit_jax import core

ODD = jnp.array([0.0, -0.0, 1.5, jnp.inf, -jnp.inf, jnp.nan])
READ_SAFELY = {
    "squares": lambda t: core.squares([t])[0],
    "rms": lambda t: core.rms([t]),
    "unfused": lambda t: jnp.abs(core.unfused(t)).sum(),
}


def summed_products(function, *arrays):
    """The fusions of a compiled function in which a product is made and summed up."""
    text = jax.jit(function).lower(*arrays).compile().as_text() or ""
    bodies = re.findall(r"^%\S+ \(.*?^}", text, re.MULTILINE | re.DOTALL)
    return [b for b in bodies if " dot(" in b and " reduce(" in b]


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


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.complex64])
def test_what_hides_from_the_compiler_changes_nothing(dtype):
    odd = ODD.astype(dtype)
    wide = lambda t: np.asarray(t.astype(jnp.complex64))
    for same in (core.unfused(odd), core.unforeseen(odd, jnp.ones(odd.shape))):
        assert same.dtype == dtype
        np.testing.assert_array_equal(wide(same), wide(odd))
        assert np.signbit(wide(same)[1].real)


@pytest.mark.parametrize("read", READ_SAFELY)
def test_no_sum_is_fused_with_the_product_it_reads(read):
    x = jax.random.normal(jax.random.key(0), (64, 32))
    function = lambda x: READ_SAFELY[read](x @ jnp.ones((32, 65)))
    assert summed_products(function, x) == []
    with jax.disable_jit():
        eager = function(x)
    np.testing.assert_allclose(jax.jit(function)(x), eager, rtol=1e-5)


def test_a_product_with_zeros_is_one_with_an_array_in_memory():
    """A sum may be fused with it then: its factors are all read from memory."""
    x, w = jnp.ones((64, 32)), jnp.ones((32, 65))
    total = lambda x, w: jnp.sum(x @ core.unforeseen(jnp.zeros_like(w), w))
    assert not any(" broadcast(" in body for body in summed_products(total, x, w))
    assert jax.jit(total)(x, w) == 0


@pytest.mark.skipif(jaxlib_version != "0.10.2", reason="other versions fuse otherwise")
def test_a_bare_sum_is_fused_with_a_product_with_zeros():
    total = lambda x: jnp.sum(x @ jnp.zeros((32, 65)))
    (body,) = summed_products(total, jnp.ones((64, 32)))
    assert " broadcast(" in body


EXTREMES = [2.0**-120, 1e-30, 1e-19, 1.0, 3.0, 1e19, 1e30, 2.0**120]


@pytest.mark.parametrize("size", EXTREMES)
@pytest.mark.parametrize("run", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_sums_of_squares_in_windows(size, run):
    """The root mean square of several calls, to the last bits, for all sizes."""
    sizes = jnp.float32(size) * jnp.array([1.0, 0.5, 2.0, 0.0], jnp.float32)

    def over_calls(sizes):
        each = core.windows(sizes)
        sums = jax.tree.map(jnp.sum, each)
        return core.from_windows(sums, jnp.float32(4))

    expected = np.sqrt(np.mean(np.square(np.asarray(sizes, np.float64))))
    np.testing.assert_allclose(run(over_calls)(sizes), expected, rtol=3e-7)
    naive = jnp.sqrt(jnp.mean(jnp.square(sizes)))
    assert np.isclose(naive, expected, rtol=1e-3, atol=0) == (1e-19 < size < 1e19)


@pytest.mark.parametrize("size", EXTREMES)
def test_the_size_of_a_single_call_stays_as_it_is(size):
    """Of several, squares are summed."""
    one = jnp.float32(size)
    single = core.as_summed(one, several=False)
    assert core.rms_of_calls(single, jnp.float32(1)) == single == one
    two = jax.tree.map(lambda t: t + t, core.as_summed(one, several=True))
    np.testing.assert_allclose(core.rms_of_calls(two, jnp.float32(2)), one, rtol=3e-7)
    assert core.rms_of_calls(0 * one, jnp.float32(0)) == 0


@pytest.mark.parametrize("bad", [jnp.inf, jnp.nan])
def test_windows_of_what_is_not_finite(bad):
    sums = jax.tree.map(jnp.sum, core.windows(jnp.array([1.0, bad])))
    assert not jnp.isfinite(core.from_windows(sums, jnp.float32(2)))


def test_products_of_sizes_out_of_order():
    """Right where partial products are not; where it is out, near the end and told."""
    big, small = jnp.float32(1e30), jnp.float32(1e-30)
    product = jax.jit(core.times)
    np.testing.assert_allclose(product(big, big, small, small), 1, rtol=1e-6)
    np.testing.assert_allclose(product(big, 3.0), 3e30, rtol=1e-6)
    for three in permutations((big, big, small)):
        np.testing.assert_allclose(product(*three), 1e30, rtol=1e-6)
    for three in permutations((big, small, small)):
        np.testing.assert_allclose(product(*three), 1e-30, rtol=1e-6)
    assert big * big == jnp.inf  # the negative
    for far in (product(big, big), product(small, small)):
        assert jnp.isfinite(far) & (far > 0) & ~core.in_range(far)
    assert product(big, jnp.float32(0)) == 0
    assert jnp.isnan(product(big, jnp.float32(jnp.nan)))


@pytest.mark.parametrize("size", EXTREMES)
def test_arrays_at_their_peak(size):
    """In the octave above 1, and nothing is rounded."""
    t = jnp.float32(size) * jax.random.normal(jax.random.key(0), (8,))
    (near,), scale = core.at_peak([t])
    assert 1 <= jnp.max(jnp.abs(near)) < 2
    np.testing.assert_array_equal(near * scale, t)
    (zeros,), _ = core.at_peak([jnp.zeros(3)])
    assert not zeros.any()


def test_a_sum_of_squares_with_a_floor_tells_zeros():
    small = jnp.array([0.0, 1e-30])
    assert core.squares([small])[0] == 0
    assert core.squares([small], core.FLOOR)[0] == core.FLOOR
    assert core.squares([0 * small], core.FLOOR)[0] == 0
    assert jnp.isnan(core.squares([small.at[0].set(jnp.nan)], core.FLOOR)[0])
    ordinary = jax.random.normal(jax.random.key(0), (64,))
    assert core.squares([ordinary])[0] == core.squares([ordinary], core.FLOOR)[0]
