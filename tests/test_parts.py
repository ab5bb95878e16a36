"""The arithmetic, each piece at its singular points."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from einit_jax import core
from einit_jax.core import (
    anderson_init,
    anderson_step,
    find_lifted_axes,
    inner_axes,
    match_patterns,
)
from einit_jax.units import _probes, zero_candidates


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


@pytest.mark.parametrize(
    ("axis", "expected"),
    [(0, (5,)), (1, (0, 5)), (-1, (5,))],
)
def test_lifted_axes_as_flax_lifts_them(axis, expected):
    """From the shapes of parameters that `nn.scan` itself made."""

    class Layer(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            return nn.Dense(3)(x), None

    class Stack(nn.Module):
        @nn.compact
        def __call__(self, x):
            lifted = nn.scan(
                Layer,
                variable_axes={"params": axis},
                split_rngs={"params": True},
                length=5,
            )
            return lifted()(x, None)[0]

    x = jnp.ones((2, 3))
    outer = jax.eval_shape(Stack().init, jax.random.key(0), x)["params"]
    inner = jax.eval_shape(Layer().init, jax.random.key(0), x, None)["params"]
    pairs = [
        (o.shape, i.shape)
        for o, i in zip(jax.tree.leaves(outer), jax.tree.leaves(inner), strict=True)
    ]
    assert find_lifted_axes(pairs) == expected


def test_lifted_axes_nested_and_impossible():
    assert find_lifted_axes([((2, 3, 4, 5), (4, 5)), ((2, 3, 5), (5,))]) == (2, 3)
    assert find_lifted_axes([((4, 5), (4, 5))]) == ()
    assert inner_axes((4, 7, 5), (0, 7)) == (0, 2)
    with pytest.raises(ValueError, match="no lifted axes"):
        find_lifted_axes([((2, 3), (7,))])


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (np.zeros((3, 4)), True),
        (np.ones((3, 4)), False),
        (np.stack([np.ones((3, 4)), np.zeros((3, 4))]), True),
        (np.stack([np.ones((3, 4)), np.zeros((3, 4))], 1), True),
        (np.zeros(()), True),
        (np.ones(5), False),
    ],
)
def test_zeros_are_suspected_alike_on_host_and_device(value, found):
    """A layer of zeros among others counts; the device path gives the same answer."""
    assert bool(_probes._cross(np, value)) is found
    assert bool(jax.jit(_probes._cross, static_argnums=0)(jnp, value)) is found
    assert (("w",) in zero_candidates({"w": jnp.asarray(value)})) is found


def test_first_pattern_wins_and_all_must_match():
    names = {"a/b": 0, "a/c": 0}
    assert match_patterns({"a/b": 1, "*": 2}, names) == {"a/b": 1, "a/c": 2}
    with pytest.raises(ValueError, match="matches no unit"):
        match_patterns({"x*": 1}, names)


@pytest.mark.parametrize("slope", [1.0, 30.0])
def test_search_finds_the_root_that_substitution_misses(slope):
    """A miss that all unknowns drive together, `slope` times as fast as each alone."""
    root = jnp.array([0.3, -0.2, 0.1])

    def miss(at):
        return (at - root) + slope * jnp.sum(at - root) * jnp.ones(3)

    search, _ = anderson_step(anderson_init(3), jnp.zeros(3), 1e-3)
    passes = 0
    while float(search.error) > 1e-3 and passes < 32:
        search, _ = anderson_step(search, miss(search.at), 1e-3)
        passes += 1
    assert passes < 20
    np.testing.assert_allclose(search.best, root, atol=2e-3)

    at = jnp.zeros(3)
    for _ in range(passes):
        at = at - miss(at)
    assert slope == 1.0 or float(jnp.max(jnp.abs(at - root))) > 0.1


def test_search_survives_an_overflow():
    """A pass that is not finite sends it back, and it still arrives."""
    search, _ = anderson_step(anderson_init(1), jnp.zeros(1), 1e-3)
    search, better = anderson_step(search, jnp.array([5.0]), 1e-3)
    search, better = anderson_step(search, jnp.array([jnp.inf]), 1e-3)
    assert not better
    assert jnp.all(jnp.isfinite(search.at))
    for _ in range(30):
        search, _ = anderson_step(search, search.at + 5.0, 1e-3)
    np.testing.assert_allclose(search.best, [-5.0], atol=1e-2)
