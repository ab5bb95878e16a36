"""`gradinit`: a factor for each array, for the least loss after one training step."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from operator import index
from typing import Any, NamedTuple, SupportsIndex

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

from ...binding import Model, any_library, setup
from ...core import (
    Draw,
    Params,
    Path,
    check_not_zero,
    first_step,
    squares,
    stack_batches,
    unfused,
    usual_rules,
    with_leaves,
)
from ._descent import Descent, check_descent_settings, descend
from ._rescaling import (
    Rescaling,
    Variables,
    float_arrays,
    make_rescaling,
    rescale,
)

DECREASE = 0.1
"""By how much a first step lowers the loss, to first order: `eta |g|_p^p`."""

TINY = 1e-4
"""Each element of a stand-in for a gradient, so small that it is not clipped."""


@any_library("params")
@usual_rules()
def gradinit(
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
    learning_rate: float = 1e-2,
    optimizer: optax.GradientTransformation | None = None,
    gamma: float | None = None,
    alpha_min: float = 0.01,
    progress: Callable[[int, int, float], Any] | None = None,
) -> PyTree:
    r"""Parameters times a factor each, for the least loss after one training step.

    Let alpha be one positive factor for each array (weights, biases, gains; one for
    each layer of lifted ones), and A the first step of the optimizer that you will
    train with:

        min over alpha of  L(B'; theta + A(g))    subject to  |g|_p <= gamma
        theta = alpha theta_0,    g = grad L(B; theta)

    A step where `|g|_p > gamma` descends the norm of the gradient, any other step the
    loss after the optimizer's step, both by Adam. B' is half B: the loss there is the
    mean of the losses on B and on the next batch. p = 2 for optimizers whose first step
    grows with the gradient (SGD, momentum), and A is differentiated through; p = 1 for
    those whose first step does not (Adam, Lion, Muon), and A is taken as constant: that
    of Adam is nearly a sign, which has no derivative. Two trial steps tell which kind
    yours is.

    **Slow**: a step costs four to five gradient steps, two to three while the norm is
    above gamma, so the default costs some 900, where `tune` costs 3.

    It finds a minimum nearby. Where one step does not gain much over a constant output,
    that may be to shrink all arrays together: a plain chain that trains as it is may
    train worse afterwards.

    Args:
        model, params, input_fn, loss_fn, key, batch_size, method, rngs, collections,
            axis_name: as in `tune`: `method`, `rngs` and `collections` go to
            `model.apply`, `axis_name` is the mapped axis it expects, `batch_size` the
            number of examples that `input_fn` is asked for; `input_fn(key)` draws a
            batch, or is a loader or a batch; `loss_fn(outputs, labels)` gets labels of
            pairs (x, y) and of `Batch`.
        include: patterns of array paths that get a factor; None: all.
        exclude: patterns of arrays whose factor stays 1.
        draws: the number of batches, which take turns.
        steps: the number of steps of the descent.
        learning_rate: that of Adam, for the factors.
        optimizer: what you will train with, at your learning rate (without a warmup,
            whose first step is zero); None: `optax.sgd(0.1)`.
        gamma: the largest norm of the gradient. None: the norm at which the optimizer's
            step lowers the loss, to first order, by 0.1 (the paper's 1 for SGD at 0.1;
            100 for Adam at 0.001, whose norm is a sum over all parameters).
        alpha_min: the least factor.
        progress: `progress(step, steps, value)` is called about a hundred times, first
            after one step; value is what that step descends: the loss after a training
            step, or the norm where it is above gamma. None: silent.

    Returns:
        A tree like params, for the unmodified model. Arrays of zeros stay zero, and
        what they hide from the gradient (all blocks of an adaLN-zero model) stays as it
        was. The bound is not guaranteed: give more steps where it does not hold.

    Raises:
        TypeError, ValueError: as in `tune`; wrong numbers, patterns without a match, a
            loss that cannot be differentiated twice, an optimizer that moves nothing.
        FloatingPointError: loss or gradient is not finite at the start.

    Example:
        >>> import flax.linen as nn, jax, jax.numpy as jnp, einit_jax as ei
        >>> model = nn.Sequential([nn.Dense(32), jnp.tanh, nn.Dense(4)])
        >>> x = jax.random.normal(jax.random.key(1), (64, 8))
        >>> params = model.init(jax.random.key(0), x)["params"]
        >>> loss = lambda y: jnp.mean((y - x[:, :4]) ** 2)
        >>> new = ei.gradinit(model, params, x, loss, steps=50)
        >>> mean = lambda params: loss(model.apply({"params": params}, x))
        >>> bool(mean(new) < mean(params))
        True

    Source: C. Zhu et al., GradInit, arXiv 2102.08098, algorithm 1. There, the steps are
    those of plain SGD and of signs; here, of any optax optimizer. There, half of the
    rows of B' are those of B; here, batches are taken whole, for not every input has
    rows. There, norms and losses have an Adam each.
    """
    check_descent_settings(
        steps,
        optimizer,
        progress,
        learning_rate=learning_rate,
        gamma=1.0 if gamma is None else gamma,
        alpha_min=alpha_min,
    )
    if not alpha_min < 1:
        raise ValueError(f"alpha_min is {alpha_min!r}, expected a number below 1")
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
    rescaling = make_rescaling(
        bound.objective,
        arrays.args,
        lambda path, axes: True,
        include=include,
        exclude=exclude,
    )
    trained_with = optimizer or _sgd()
    power, eta = _step_norm(trained_with, params)
    largest = (DECREASE / eta) ** (1 / power) if gamma is None else gamma
    step = _Step(rescaling, trained_with, power, largest)
    factors = descend(
        Descent(step, _adam(learning_rate), alpha_min),
        jnp.ones_like(rescaling.sizes(params)),
        Variables(params, arrays.collections),
        stack_batches(arrays.batches),
        steps=index(steps),
        progress=progress,
    )
    return rescale(rescaling, params, factors)


@cache
def _sgd() -> optax.GradientTransformation:
    """The same object each time, so that compiled programs are used again."""
    return optax.sgd(0.1)


@cache
def _adam(learning_rate: float) -> optax.GradientTransformation:
    """The same object for the same number, so that compiled programs are used again."""
    return optax.adam(learning_rate)


def _step_norm(
    optimizer: optax.GradientTransformation, params: Params
) -> tuple[int, float]:
    """The p of the norm that bounds gradients, and the step for a gradient of 1.

    p is 2 where twice the gradient gives twice the step, 1 where it gives the same
    step; in between, whichever is nearer.
    """

    def size(scale: float) -> Array:
        like = jax.tree.map(jnp.ones_like, params)
        gradient = [jnp.full_like(x, scale * TINY) for x in float_arrays(like).values()]
        zeros = [jnp.zeros_like(g) for g in gradient]
        moves = [first_step(optimizer, like, like, g) for g in (gradient, zeros)]
        # a step that is taken without a gradient (weight decay) does not count
        pairs = zip(*moves, strict=True)
        total, count = squares([a - b for a, b in pairs])
        return jnp.sqrt(total / count)

    with jax.ensure_compile_time_eval():
        once, twice = jax.device_get(jax.jit(lambda: (size(1.0), size(2.0)))())
    if not once > 0:
        raise ValueError(
            "optimizer's first step moves nothing (a warmup from 0?); pass it at the "
            "learning rate that you will train with"
        )
    return (2, float(once / TINY)) if twice > 2**0.5 * once else (1, float(once))


class _Point(NamedTuple):
    """The arrays at some factors, and the gradient of the loss there."""

    arrays: dict[Path, Array]
    gradient: dict[Path, Array]


@dataclass(frozen=True)
class _Step:
    """The loss after a step, or the norm of the gradient, as a function of factors."""

    rescaling: Rescaling
    optimizer: optax.GradientTransformation
    power: int
    gamma: float

    def __call__(
        self, factors: Array, variables: Variables, batch: Draw, next_batch: Draw
    ) -> tuple[Array, Array]:
        """The value on a batch and the next one, and its gradient."""
        batches = batch, next_batch
        inside = lambda: self._value_and_gradient(factors, variables, batches)
        return self.rescaling.objective.over_axis(inside)

    def _value_and_gradient(
        self, factors: Array, variables: Variables, batches: tuple[Draw, Draw]
    ) -> tuple[Array, Array]:
        """The value and its gradient; one reverse pass serves both kinds of steps."""

        def point(factors: Array) -> _Point:
            arrays = self.rescaling.arrays(variables.params, factors)
            gradient = jax.grad(self.rescaling.loss)(arrays, variables, batches[0])
            return _Point(arrays, gradient)

        here, back = jax.vjp(point, factors)
        norm = jax.value_and_grad(self._norm)
        after = jax.value_and_grad(partial(self._loss_after, variables, batches))
        above = self._norm(here) > self.gamma
        value, cotangent = jax.lax.cond(above, norm, after, here)
        return value, back(cotangent)[0]

    def _norm(self, here: _Point) -> Float[Array, ""]:
        """The p-norm of the gradient."""
        gradient = list(here.gradient.values())
        if self.power == 2:
            return jnp.sqrt(squares(gradient)[0])
        sums = [jnp.abs(unfused(g)).sum() for g in gradient]
        return jnp.sum(jnp.stack(sums)).astype(jnp.float32)

    def _loss_after(
        self, variables: Variables, batches: tuple[Draw, Draw], here: _Point
    ) -> Array:
        """The loss after a training step, the mean over two batches."""
        moved = self._moved(variables.params, here)
        loss = lambda batch: self.rescaling.loss(moved, variables, batch)
        return jnp.mean(jax.lax.map(loss, stack_batches(batches)))

    def _moved(self, params: Params, here: _Point) -> dict[Path, Array]:
        """The arrays after a training step, which is taken in float32 at least."""
        arrays, gradient = here
        if self.power == 1:
            gradient = jax.lax.stop_gradient(gradient)
        paths = list(float_arrays(params))
        uphill = [gradient[path] for path in paths]
        moves = first_step(self.optimizer, params, with_leaves(params, arrays), uphill)
        return {p: arrays[p] + move for p, move in zip(paths, moves, strict=True)}
