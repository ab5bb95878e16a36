"""`HyperCubes` against the dense product with a mask, and against its formula."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

import einit_jax as ei
from tests.support.checks import refuses

KEY = jax.random.key(0)


def made(dim, features=3, inputs=5, **options):
    layer = ei.HyperCubes(features, dim, **options)
    x = jax.random.normal(KEY, (4, 2**dim, inputs))
    return layer, x, layer.init(jax.random.key(1), x)


def dense(kernel):
    """The whole matrix: a block wherever two numbers differ in at most one bit."""
    blocks, _, inputs, outputs = kernel.shape
    whole = np.zeros((blocks, inputs, blocks, outputs))
    for into in range(blocks):
        for out in range(blocks):
            differ = into ^ out
            if differ.bit_count() <= 1:
                bit = differ.bit_length() - 1 if differ else -1
                whole[into, :, out] = kernel[out, bit]
    return whole


@pytest.mark.parametrize("dim", [0, 1, 3, 4])
def test_equals_the_dense_masked_product(dim):
    layer, x, variables = made(dim)
    whole = dense(np.asarray(variables["params"]["kernel"]))
    want = np.einsum("nvi,viwo->nwo", np.asarray(x), whole)
    np.testing.assert_allclose(layer.apply(variables, x), want, rtol=1e-4, atol=1e-5)
    share = np.mean(np.any(whole != 0, (1, 3)))
    assert layer.density == pytest.approx(share)


def test_gradients():
    layer, x, variables = made(2)
    run = lambda variables, x: layer.apply(variables, jnp.asarray(x))  # x is numpy's
    check_grads(run, (variables, x), order=2, modes=("fwd", "rev"), rtol=0.02)


def test_dim_layers_mix_all_blocks():
    """A change in one block reaches all others through `dim` layers, not fewer."""
    dim = 3
    model = nn.Sequential([ei.HyperCubes(4, dim) for _ in range(dim)])
    x = jax.random.normal(KEY, (1, 2**dim, 4))
    variables = model.init(KEY, x)
    shifted = x.at[0, 5].add(1.0)
    moved = model.apply(variables, shifted) - model.apply(variables, x)
    assert np.all(np.abs(moved).max(-1) > 1e-4)
    layer = ei.HyperCubes(4, dim)
    variables = layer.init(KEY, x)
    once = layer.apply(variables, shifted) - layer.apply(variables, x)
    assert np.sum(np.abs(once).max(-1) > 1e-6) == dim + 1


def test_default_init_keeps_the_size():
    """Outputs of inputs of rms 1 have rms 1, whatever the dimension."""
    layer, _, _ = made(0)
    for dim in (0, 5):
        layer = ei.HyperCubes(64, dim)
        x = jax.random.normal(KEY, (64, 2**dim, 64))
        y = layer.apply(layer.init(jax.random.key(1), x), x)
        assert float(jnp.sqrt(jnp.mean(y**2))) == pytest.approx(1, rel=0.1)


def test_bias_and_dtype():
    layer, x, variables = made(2, use_bias=True, dtype=jnp.bfloat16)
    assert variables["params"]["bias"].shape == (4, 3)
    assert variables["params"]["kernel"].dtype == jnp.float32
    assert layer.apply(variables, x).dtype == jnp.bfloat16
    raised = jax.tree.map(lambda p: p, variables)
    raised["params"]["bias"] = raised["params"]["bias"] + 1
    rise = layer.apply(raised, x) - layer.apply(variables, x)
    np.testing.assert_allclose(rise, 1, atol=0.05)


def test_it_is_a_unit_like_any_other():
    model = nn.Sequential([ei.HyperCubes(8, 3), nn.relu, ei.HyperCubes(4, 3)])
    x = jax.random.normal(KEY, (32, 8, 6))
    params = model.init(KEY, x)["params"]
    loss = lambda y: jnp.mean(jnp.square(y - 1))
    scales = ei.tune(model, params, x, loss)
    table = ei.measure(model, params, x, loss, scales=scales)
    np.testing.assert_allclose(table.output_rms, 1, rtol=1e-5)
    plain = ei.measure(model, params, x, loss)
    assert np.max(np.abs(np.log2(plain.output_rms))) > 0.1


@pytest.mark.parametrize(("dim", "shape"), [(3, (2, 4, 5)), (2, (4,)), (-1, (2, 1, 5))])
def test_other_shapes_are_refused(dim, shape):
    with refuses(ValueError, match=r"reshape the features into blocks"):
        ei.HyperCubes(3, dim).init(KEY, jnp.ones(shape))
