"""TODO."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Inexact

from ._numerics import is_float, multiply


def per_call(value: int | float, leaves: Sequence[Array]) -> Float[Array, ""]:
    """A constant, as a fact about the call that the arrays are of.

    Facts leave as cotangents, which `vmap` sums over its members where they depend on
    something mapped: a bare constant would count all of them as one.
    """
    fact = jnp.asarray(value, jnp.float32)
    seen = [t.ravel()[0] for t in leaves if t.size]
    return jnp.where(seen[0] == seen[0], fact, fact) if seen else fact


@jax.custom_jvp
def scale_gradient(t: Inexact[Array, "..."], factor: Float[Array, ""]) -> Array:
    """`G_k(t)`: t forward, its tangent and its cotangent times k (design: G_k)."""
    return t


@scale_gradient.defjvp
def _scale_gradient_jvp(primals, tangents):
    t, factor = primals
    return t, multiply(tangents[0], factor)


def float_leaves(outputs: Any) -> list:
    """The floating leaves of the model's outputs."""
    return [t for t in jax.tree.leaves(outputs) if is_float(t)]


@jax.custom_vjp
def anchor(outputs: list[jax.Array]) -> jax.Array:
    """Zero, with gradients of zero: makes every output of the model part of the loss.

    Units behind an output that the loss ignores are then swept like all others.
    """
    return jnp.zeros((), jnp.float32)


def _anchor_forward(outputs):
    return jnp.zeros((), jnp.float32), outputs


def _anchor_backward(outputs, cotangent):
    return ([jnp.zeros_like(t) for t in outputs],)


anchor.defvjp(_anchor_forward, _anchor_backward)


@jax.custom_vjp
def emit(outputs, facts, slot):
    """The outputs, with the facts as the slot's cotangent."""
    return outputs


def _emit_forward(outputs, facts, slot):
    return outputs, (facts, slot)


def _emit_backward(residual, cotangents):
    facts, slot = residual
    return cotangents, None, {n: facts[n].reshape(slot[n].shape) for n in slot}


emit.defvjp(_emit_forward, _emit_backward)


@jax.custom_vjp
def link_cotangents(inputs, outputs):
    """The outputs, with gradients of zero for the inputs: facts travel along these."""
    return outputs


def _linked_forward(inputs, outputs):
    return outputs, inputs


def _linked_backward(inputs, cotangents):
    return jax.tree.map(jnp.zeros_like, inputs), None


link_cotangents.defvjp(_linked_forward, _linked_backward)
