"""`metainit`: norms of weights at which a descent step changes the gradient little."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from operator import index
from typing import Any, SupportsIndex

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

from ...binding import Model, any_library, setup
from ...core import (
    Draw,
    as_number,
    check_not_zero,
    inverse,
    stack_batches,
    unfused,
    usual_rules,
    widen,
)
from ..classic import role_of
from ._descent import Descent, check_descent_settings, descend
from ._rescaling import (
    Rescaling,
    Variables,
    make_rescaling,
    rescale,
)

LEAST_NORM = 0.01
"""A norm stays above this part of its start: beyond zero the weights turn around."""


@any_library("params")
@usual_rules()
def metainit(
    model: Model,
    params: PyTree,
    input_fn: Any,
    loss_fn: Callable,
    *,
    key: jax.Array | None = None,
    batch_size: SupportsIndex | None = None,
    method: str | Callable | None = None,
    rngs: Sequence[str] | Mapping[str, jax.Array] = (),
    collections: Mapping[str, Any] | None = None,
    axis_name: str | None = None,
    include: str | Sequence[str] | None = None,
    exclude: str | Sequence[str] = (),
    draws: SupportsIndex = 8,
    steps: SupportsIndex = 200,
    learning_rate: float = 0.1,
    momentum: float = 0.9,
    epsilon: float = 1e-5,
    optimizer: optax.GradientTransformation | None = None,
    progress: Callable[[int, int, float], Any] | None = None,
) -> PyTree:
    r"""Weights of other norms, such that a step of descent changes the gradient little.

    Minimizes the *gradient quotient*, with the gradient g and the Hessian H of the loss
    in all floating parameters, N of them, over the norms of the weight arrays alone:

        GQ = 1/N sum |(g - H g) / (g + e) - 1|        e = epsilon with the sign of g

    `g - H g` is, to first order, the gradient after one step of learning rate 1; GQ is
    0 where the loss is linear, and 1 where gradients have vanished. Each weight keeps
    its direction: `W = norm W_0 / |W_0|`, with a norm for each layer of lifted ones
    (`nn.scan`). The descent is that of the sign of the gradient with momentum.

    **Slow**: a step costs six to seven gradient steps (a product with the Hessian, and
    back through it), so the default costs some 1300, where `tune` costs 3; and the
    program that it compiles is several times that of a gradient step.

    Gradients far below epsilon count as vanished, however useful they may be: at 32
    plain layers it takes many more steps than 200 to bring them above it. In shallow
    networks small weights suffice for a small GQ, and these learn slowly at first.

    Args:
        model, params, input_fn, loss_fn, key, batch_size, method, rngs, collections,
            axis_name: as in `tune`: `method`, `rngs` and `collections` go to
            `model.apply`, `axis_name` is the mapped axis it expects, `batch_size` the
            number of examples that `input_fn` is asked for; `input_fn(key)` draws a
            batch, or is a loader or a batch; `loss_fn(outputs, labels)` gets labels of
            pairs (x, y) and of `Batch`.
        include: patterns of array paths (`"*/kernel"`) that change; None: the weights,
            all arrays of two and more axes (lifted ones aside) that are called neither
            bias nor scale.
        exclude: patterns of arrays that do not change.
        draws: the number of batches, which take turns.
        steps: the number of steps of the descent.
        learning_rate: by how much a step changes a norm.
        momentum: with it, that change tends to `learning_rate / (1 - momentum)`.
        epsilon: see above.
        optimizer: an optax transformation in the place of sign and momentum; it sees
            one vector of all norms.
        progress: `progress(step, steps, value)` is called about a hundred times, first
            after one step; value is GQ before the step. None: silent.

    Returns:
        A tree like params, for the unmodified model; biases, gains and arrays of zeros
        (whose norm has no direction) are as they were.

    Raises:
        TypeError, ValueError: as in `tune`; wrong numbers, patterns without a match, a
            loss that cannot be differentiated twice and once more.
        FloatingPointError: GQ is not finite at the start.

    Example:
        >>> import flax.linen as nn, jax, jax.numpy as jnp, einit_jax as ei
        >>> model = nn.Sequential([nn.Dense(32), jnp.tanh, nn.Dense(4)])
        >>> x = jax.random.normal(jax.random.key(1), (64, 8))
        >>> params = model.init(jax.random.key(0), x)["params"]
        >>> loss = lambda y, key: jnp.mean((y - jax.random.normal(key, y.shape)) ** 2)
        >>> seen = []
        >>> report = lambda step, steps, value: seen.append(value)
        >>> new = ei.metainit(model, params, x, loss, steps=20, progress=report)
        >>> seen[-1] < seen[0]
        True

    Source: Y. Dauphin and S. Schoenholz, MetaInit, NeurIPS 2019: equation 1, section 4
    and the program in their appendix. There, inputs and labels are random and drawn
    anew in each step, and 500 steps are taken; here they are what you draw (random ones
    do), `draws` of them. There, a norm may pass zero, which turns the weights around;
    here it stays above a hundredth of its start, and a step to where GQ is not finite
    is taken back.
    """
    check_descent_settings(
        steps, optimizer, progress, learning_rate=learning_rate, epsilon=epsilon
    )
    number = as_number(momentum)
    if number is None or not 0 <= number < 1:
        raise ValueError(f"momentum is {momentum!r}, expected a number in [0, 1)")
    bound = setup(
        model,
        params,
        input_fn,
        loss_fn,
        key=key,
        batch_size=batch_size,
        method=method,
        rngs=rngs,
        collections=collections,
        axis_name=axis_name,
        draws=draws,
    )
    arrays = bound.arrays
    check_not_zero(arrays.batches)
    params = arrays.params
    is_weight = lambda path, axes: role_of(path, axes) == "weight"
    rescaling = make_rescaling(
        bound.objective, arrays.args, is_weight, include=include, exclude=exclude
    )
    first = rescaling.sizes(params)
    rule = optimizer or signs(learning_rate, momentum)
    sizes = descend(
        Descent(_Quotient(rescaling, epsilon), rule, LEAST_NORM),
        first,
        (first, Variables(params, arrays.collections)),
        stack_batches(arrays.batches),
        steps=index(steps),
        progress=progress,
    )
    return rescale(rescaling, params, sizes * inverse(first))


@cache
def signs(learning_rate: float, momentum: float) -> optax.GradientTransformation:
    """Descent by signs with momentum.

    The same numbers give the same object, so that compiled programs are used again.
    """
    return optax.chain(optax.scale_by_sign(), optax.sgd(learning_rate, momentum))


@dataclass(frozen=True)
class _Quotient:
    """The gradient quotient as a function of norms."""

    rescaling: Rescaling
    epsilon: float

    def __call__(
        self,
        sizes: Array,
        data: tuple[Array, Variables],
        batch: Draw,
        next_batch: Draw,
    ) -> tuple[Array, Array]:
        """The quotient on a batch, and its gradient; `data` begins with first norms."""
        del next_batch
        first, variables = data

        def quotient(sizes: Array) -> Array:
            factors = sizes * inverse(first)
            arrays = self.rescaling.arrays(variables.params, factors)
            loss = lambda arrays: self.rescaling.loss(arrays, variables, batch)
            return gradient_quotient(loss, arrays, self.epsilon).astype(sizes.dtype)

        inside = lambda: jax.value_and_grad(quotient)(sizes)
        return self.rescaling.objective.over_axis(inside)


def gradient_quotient(
    function: Callable, at: PyTree, epsilon: float
) -> Float[Array, ""]:
    """`mean |(g - H g) / (g + e) - 1|` over all elements, e = epsilon signed like g.

    `g - H g` is, to first order, the gradient after a step of learning rate 1. Written
    as `|(H g + e) / (g + e)|`, which is the same and cancels nothing: 0 where the
    function is linear, 1 where the gradient vanishes against epsilon. Real and
    imaginary parts count as elements of their own.

    Args:
        function: a function of a pytree like `at` that returns a real scalar.
        at: a pytree of floating arrays.
    """
    leaves, tree = jax.tree.flatten(at)
    whole = lambda parts: function(jax.tree.unflatten(tree, map(_join_parts, parts)))
    gradient, directional = jax.linearize(
        jax.grad(whole), [_real_parts(leaf) for leaf in leaves]
    )
    # forward mode, not a second reverse one: a custom rule may give the gradient a
    # derivative that is not symmetric
    products = jax.tree.leaves(directional(gradient))
    gradients = jax.tree.leaves(gradient)
    pairs = zip(gradients, products, strict=True)
    sums = [_sum_quotients(g, h, epsilon) for g, h in pairs]
    return jnp.sum(jnp.stack(sums)) / sum(g.size for g in gradients)


def _sum_quotients(gradient: Array, product: Array, epsilon: float) -> Float[Array, ""]:
    """The quotients of one array, summed; the product is that with the Hessian."""
    g, h = (unfused(widen(t)) for t in (gradient, product))
    e = jnp.where(g < 0, -epsilon, epsilon)
    return jnp.sum(jnp.abs((h + e) / (g + e)))


def _real_parts(leaf: Array) -> tuple[Array, ...]:
    """A real array by itself, or both parts of a complex one."""
    return (leaf.real, leaf.imag) if jnp.iscomplexobj(leaf) else (leaf,)


def _join_parts(parts: tuple[Array, ...]) -> Array:
    """The array that `_real_parts` took apart."""
    return jax.lax.complex(*parts) if len(parts) == 2 else parts[0]
