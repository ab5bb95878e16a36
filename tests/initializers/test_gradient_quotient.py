"""The gradient quotient, by its definition."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from einit_jax.initializers.learned import gradient_quotient
from tests.support.checks import KEY


def dense(function, at, epsilon):
    """By the dense Hessian over real and imaginary parts, in numpy."""
    leaves, tree = jax.tree.flatten(at)
    parts = [
        p for x in leaves for p in ((x.real, x.imag) if x.dtype.kind == "c" else [x])
    ]
    sizes = np.cumsum([p.size for p in parts])[:-1]

    def of_vector(v):
        flat = iter(jnp.split(v, sizes))
        whole = [
            jax.lax.complex(next(flat), next(flat))
            if x.dtype.kind == "c"
            else next(flat)
            for x in leaves
        ]
        shaped = [w.reshape(x.shape) for w, x in zip(whole, leaves, strict=True)]
        return function(jax.tree.unflatten(tree, shaped))

    v = jnp.concatenate([p.ravel() for p in parts])
    both = jax.jit(lambda v: (jax.grad(of_vector)(v), jax.hessian(of_vector)(v)))
    g, h = map(np.asarray, both(v))
    e = np.where(g < 0, -epsilon, epsilon)
    return np.mean(np.abs((g - h @ g) / (g + e) - 1))


def two_layers(params):
    x = jnp.linspace(-1, 1, 12).reshape(4, 3)
    return jnp.sum(jnp.sin(jnp.tanh(x @ params["a"]) @ params["b"]))


def of_complex(params):
    z = params["z"] @ params["z"].T + params["r"]
    return jnp.sum(jnp.cos(z.real) * z.imag) + jnp.sum(jnp.abs(params["z"]) ** 4)


@pytest.mark.parametrize(
    ("function", "shapes"),
    [
        (two_layers, {"a": (3, 5), "b": (5, 2)}),
        (of_complex, {"z": (3, 3), "r": (3, 3)}),
    ],
)
@pytest.mark.parametrize("epsilon", [1e-5, 0.3])
def test_quotient_is_that_of_the_dense_hessian(function, shapes, epsilon):
    """In float64, to 1e-10; products with the Hessian are exact."""
    with jax.enable_x64(True):
        keys = jax.random.split(KEY, len(shapes))
        kinds = {"z": jnp.complex128}
        at = {
            n: jax.random.normal(k, s, kinds.get(n, jnp.float64))
            for k, (n, s) in zip(keys, shapes.items(), strict=True)
        }
        want = dense(function, at, epsilon)
        found = jax.jit(partial(gradient_quotient, function, epsilon=epsilon))(at)
        assert float(found) == pytest.approx(want, rel=1e-10)


def test_quotient_in_closed_form():
    """Of a quadratic `g = A x`, `H g = A A x`; a linear loss has 0, a flat one 1."""
    a = np.array([[2.0, -0.5], [-0.5, 0.3]])
    x = np.array([1.0, -2.0])
    g = a @ x
    e = 0.01 * np.sign(g)
    want = np.mean(np.abs((g - a @ g) / (g + e) - 1))
    quadratic = lambda x: 0.5 * x @ jnp.asarray(a) @ x
    at = jnp.asarray(x)
    assert float(gradient_quotient(quadratic, at, 0.01)) == pytest.approx(
        want, rel=1e-5
    )
    linear = lambda x: 3.0 * x.sum()
    assert float(gradient_quotient(linear, at, 1e-5)) == pytest.approx(0, abs=1e-5)
    assert float(gradient_quotient(lambda x: 0 * x.sum(), at, 1e-5)) == 1.0
