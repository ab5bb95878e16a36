"""Which axes a lifted transform has added, told by shapes alone."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from einit_jax.core import find_lifted_axes, inner_axes
from tests.support.checks import refuses


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
    assert find_lifted_axes(pairs) == [expected]


def test_lifted_axes_nested_and_impossible():
    assert find_lifted_axes([((2, 3, 4, 5), (4, 5)), ((2, 3, 5), (5,))]) == [(2, 3)]
    assert find_lifted_axes([((4, 5), (4, 5))]) == [()]
    assert find_lifted_axes([((3, 3), (3,))]) == [(3,), (0, 3), (3, 0)]
    assert inner_axes((4, 7, 5), (0, 7)) == (0, 2)
    with refuses(ValueError, match="no lifted axes"):
        find_lifted_axes([((2, 3), (7,))])
