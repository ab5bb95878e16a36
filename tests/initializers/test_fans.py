"""Fans against counting."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import einit_jax as ei
from tests.support.checks import refuses


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
    with refuses(ValueError, match=words):
        ei.fans(shape, **options)
