"""The trick that everything rests on: what is measured leaves as a cotangent.

A number that is computed deep inside a model, under any of Flax's lifted transforms,
has one way out that each of them keeps open: the gradient of an array that goes in
beside the parameters. Each function here passes arrays on unchanged and gives some
argument a cotangent of our choice, so that `jax.grad` with respect to it *is* the
measurement. Calls of one module, layers of a scan and devices of a mesh then add up by
themselves.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Inexact

from ._numerics import as_summed, multiply, unforeseen
from ._placement import shaped_like
from ._types import is_float


def float_leaves(tree: Any) -> list[Any]:
    """The floating leaves of a pytree, such as a model's outputs."""
    return [leaf for leaf in jax.tree.leaves(tree) if is_float(leaf)]


def per_call(value: int | float, statistic: Float[Array, ""]) -> Float[Array, ""]:
    """A constant, as a statistic of the call that another statistic is of.

    Statistics leave as cotangents, which `vmap` sums over its members where they depend
    on something mapped: it would count a bare constant of all members as one.
    """
    constant = jnp.asarray(value, jnp.float32)
    return jnp.where(statistic == statistic, constant, constant)


def summed_like(
    statistics: Mapping[str, Array], sums: Mapping[str, Any]
) -> dict[str, Any]:
    """The statistics of one call that `sums` has, in the form in which it adds them up.

    Sizes are squared where `sums` is that of several calls; see `as_summed`.
    """
    several = {name: isinstance(zeros, Mapping) for name, zeros in sums.items()}
    every = {n: as_summed(statistics[n], several=several[n]) for n in sums}
    return jax.tree.map(shaped_like, every, dict(sums))


@jax.custom_jvp
def scale_gradient(t: Inexact[Array, "..."], factor: Float[Array, ""]) -> Array:
    """`G_k(t)`: t forward, its tangent and its cotangent times k."""
    return _mapped_like(t, factor)


@scale_gradient.defjvp
def _scale_gradient_jvp(primals, tangents):
    t, factor = primals
    return _mapped_like(t, factor), multiply(tangents[0], factor)


def _mapped_like(t: Array, factor: Array) -> Array:
    """t, bit for bit, but mapped over by `vmap` where the factor is.

    The tangent is: members that share t have factors of their own. A rule whose output
    is mapped in one half alone cannot be staged and differentiated afterwards.
    """
    return jnp.where(factor == factor, t, t)


@jax.custom_vjp
def emit(outputs, statistics, sums):
    """The outputs; the cotangent of `sums`, dicts of zeros, is the statistics."""
    return outputs


def _emit_forward(outputs, statistics, sums):
    return outputs, (statistics, sums)


def _emit_backward(residual, cotangents):
    statistics, sums = residual
    wanted = {name: statistics[name] for name in sums}
    return cotangents, None, jax.tree.map(shaped_like, wanted, dict(sums))


emit.defvjp(_emit_forward, _emit_backward)


@jax.custom_vjp
def anchor(outputs: list[jax.Array]) -> jax.Array:
    """Zero, with cotangents of zero: makes every output of a model part of the loss.

    Units behind an output that the loss ignores are then measured like all others.
    """
    return jnp.zeros((), jnp.float32)


def _anchor_forward(outputs):
    return jnp.zeros((), jnp.float32), outputs


def _anchor_backward(outputs, cotangent):
    return ([unforeseen(jnp.zeros_like(t), t) for t in outputs],)


anchor.defvjp(_anchor_forward, _anchor_backward)


@jax.custom_vjp
def link_cotangents(inputs, outputs):
    """The outputs, with cotangents of zero for the inputs.

    No gradient is computed, and still the statistics of units before this one travel.
    """
    return outputs


def _link_forward(inputs, outputs):
    return outputs, inputs


def _link_backward(inputs, cotangents):
    return jax.tree.map(jnp.zeros_like, inputs), None


link_cotangents.defvjp(_link_forward, _link_backward)
