"""Units whose own reverse rules round, call the host, or are of another library."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import einit_jax as ei
from tests.support.cases import Job, squared_error
from tests.support.checks import KEY, measured, quick, refuses, tuned

X = jax.random.normal(KEY, (32, 16))


class Rounded(nn.Module):
    """Products of 8 bits, or not, with gradients that are rounded as well."""

    product: Any

    @nn.compact
    def __call__(self, x):
        product = self.product
        for width in (32, 16):
            x = jnp.tanh(nn.Dense(width, dot_general_cls=product)(x))
        return nn.Dense(4, dot_general_cls=product)(x)


class Layer(nn.Module):
    """A layer of a stack."""

    product: Any

    @nn.compact
    def __call__(self, x, _):
        return jnp.tanh(nn.Dense(16, dot_general_cls=self.product)(x)), None


class Stacked(nn.Module):
    """Two layers of products of 8 bits, in a scan."""

    product: Any

    @nn.compact
    def __call__(self, x):
        axes = dict.fromkeys(("params", "_overwrite_with_gradient"), 0)
        keys = {"params": True}
        stack = nn.scan(Layer, variable_axes=axes, split_rngs=keys, length=2)
        return nn.Dense(4)(stack(self.product)(x, None)[0])


@jax.custom_vjp
def on_host(x):
    """tanh, by the host."""
    kind = jax.ShapeDtypeStruct(x.shape, x.dtype)
    return jax.pure_callback(np.tanh, kind, x, vmap_method="expand_dims")


on_host.defvjp(lambda x: (on_host(x), x), lambda x, g: (g * (1 - jnp.tanh(x) ** 2),))


class Hosted(nn.Module):
    """The host computes between units, and jax knows the reverse rule alone."""

    on_host: bool = True

    @nn.compact
    def __call__(self, x):
        between = on_host if self.on_host else jnp.tanh
        return nn.Dense(4)(between(nn.Dense(8)(x)))


def clip_by_norm(gradient):
    """The gradient, with a norm of 0.001 at most."""
    return gradient * jnp.minimum(1, 1e-3 * jax.lax.rsqrt(jnp.sum(gradient**2)))


class Ruled(nn.Module):
    """A unit whose output has a reverse rule of its own."""

    rule: Callable

    @nn.compact
    def __call__(self, x):
        with_rule = jax.custom_vjp(lambda y: y)
        with_rule.defvjp(lambda y: (y, None), lambda _, g: (self.rule(g),))
        product = lambda *args, **how: with_rule(jax.lax.dot_general(*args, **how))
        return nn.Dense(4, dot_general=product)(x)


class Bridged(nn.Module):
    """A layer of nnx among those of Linen."""

    @nn.compact
    def __call__(self, x):
        layer = nnx.bridge.to_linen(nnx.Linear, 16, 8, name="foreign")
        return nn.Dense(4, name="own")(layer(x))


def job_of(model: nn.Module) -> Job:
    variables = dict(quick(model.init)(KEY, X))
    params = variables.pop("params")
    options = {"collections": variables} if variables else {}
    return Job(model, params, X, squared_error, options)


@pytest.mark.filterwarnings("ignore:The Fp8DotGeneralOp is deprecated")
@pytest.mark.parametrize(
    ("kind", "product"),
    [
        (Rounded, nn.Fp8DotGeneralOp),
        pytest.param(Rounded, nn.Fp8DirectDotGeneralOp, marks=pytest.mark.slow),
        pytest.param(Stacked, nn.Fp8DotGeneralOp, marks=pytest.mark.slow),
    ],
    ids=["around", "inside", "scan"],
)
def test_changes_go_through_products_of_8_bits(kind, product):
    """Factors are those of the exact model, up to roundings of 2^-4 that average out.

    A derivative that is rounded too would be 0 or not finite: it is in no range.
    """
    exact, job = job_of(kind(None)), job_of(kind(product))
    factors = tuned(job)
    pairs = zip(*map(jax.tree.leaves, (factors, tuned(exact))), strict=True)
    assert all((abs(np.log(a / b)) < 2.0**-4).all() for a, b in pairs)
    table = measured(job, scales=factors)
    np.testing.assert_allclose(table.total_update_rms.max(), 1, rtol=2.0**-4)
    assert (table.cosine > 0.98).all() and (table.cosine < 1 - 1e-5).any()


@pytest.mark.parametrize("rule", [jnp.sign, clip_by_norm], ids=["sign", "norm"])
def test_reverse_rules_that_are_not_linear_are_refused(rule):
    """The error says what is wrong with the rule; what is linear passes."""
    with refuses(ValueError, match="not linear in cotangents.*exclude="):
        tuned(job_of(Ruled(rule)))
    factors = tuned(job_of(Ruled(lambda g: 2 * g)))
    assert all(np.isfinite(s) for s in jax.tree.leaves(factors))


def test_what_the_host_computes_has_no_total_update():
    """The error says what does without, and that gives the same as without the host."""
    job = job_of(Hosted())
    words = "no derivative in forward mode.*custom_jvp.*update='local'"
    with refuses(ValueError, match=words):
        tuned(job)
    with refuses(ValueError, match=words):
        measured(job)
    local = tuned(job, update="local")
    plain = tuned(job_of(Hosted(on_host=False)), update="local")
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5)
    jax.tree.map(close, local, plain)


def test_layers_of_nnx_are_refused_by_name():
    """Nothing can be carried to them: no verb goes on, the scaled model neither."""
    job = job_of(Bridged())
    words = "^foreign is a module of flax.nnx"
    with refuses(ValueError, match=words):
        tuned(job)
    with refuses(ValueError, match=words):
        measured(job)
    scaled = ei.scaled(job.model)
    with refuses(ValueError, match=words):
        scaled.apply(scaled.init(KEY, X), X)
