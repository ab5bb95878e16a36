"""The gradient quotient: how a step of gradient descent changes a gradient."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ._math import widen


def gradient_quotient(function: Callable, at: Any, epsilon: float) -> Float[Array, ""]:
    """`mean |(g - H g) / (g + e) - 1|` over all elements, e = epsilon signed like g.

    `g - H g` is, to first order, the gradient after a step of learning rate 1. Written
    as `|(H g + e) / (g + e)|`, which is the same and cancels nothing: 0 where the
    function is linear, 1 where the gradient is nothing beside epsilon. Real and
    imaginary parts count as elements of their own.

    Args:
        function: of a pytree like `at`, returns a real scalar.
        at: a pytree of floating arrays.
    """
    leaves, tree = jax.tree.flatten(at)
    whole = lambda parts: function(jax.tree.unflatten(tree, map(_joined, parts)))
    gradient, along = jax.linearize(jax.grad(whole), [_parts(leaf) for leaf in leaves])
    # forward mode, not a second reverse one: a custom rule may give the gradient a
    # derivative that is not symmetric
    found = [jax.tree.leaves(tree) for tree in (gradient, along(gradient))]
    sums = [_sum(g, h, epsilon) for g, h in zip(*found, strict=True)]
    return jnp.sum(jnp.stack(sums)) / sum(g.size for g in found[0])


def _sum(gradient: Array, product: Array, epsilon: float) -> Array:
    g, h = widen(gradient), widen(product)
    e = jnp.where(g < 0, -epsilon, epsilon)
    return jnp.sum(jnp.abs((h + e) / (g + e)))


def _parts(leaf: Array) -> tuple[Array, ...]:
    return (leaf.real, leaf.imag) if jnp.iscomplexobj(leaf) else (leaf,)


def _joined(parts: tuple[Array, ...]) -> Array:
    return jax.lax.complex(*parts) if len(parts) == 2 else parts[0]
