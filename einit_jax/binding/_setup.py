"""What all verbs do first: bind the model, draw batches, settle keys."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..core import Batch, Collections, ModelArgs, draw_batches, float_leaves
from ..linen import Model
from ..units import Objective
from ._bind import bind


class Arrays(NamedTuple):
    """What a verb's compiled function takes; a pytree."""

    params: Any
    """As the user gave them, not yet checked: boxed, frozen, or none at all."""
    collections: Collections
    batches: tuple[Batch, ...]
    key: jax.Array

    @property
    def args(self) -> ModelArgs:
        """What the model runs on, with the first batch."""
        return ModelArgs(self.params, self.collections, self.batches[0])


class Setup(NamedTuple):
    """A user's model, ready to be traced and run."""

    objective: Objective
    arrays: Arrays


def setup(
    model: Model,
    params: Any,
    input_fn: Any,
    loss_fn: Callable,
    *,
    key: jax.Array | None = None,
    batch_size: int | None = None,
    method: str | Callable | None = None,
    rngs: Sequence[str] | Mapping[str, jax.Array] = (),
    collections: Mapping[str, Any] | None = None,
    axis_name: str | None = None,
    draws: int = 1,
) -> Setup:
    """The arguments that verbs share (see `tune`), checked as far as they can be.

    Verbs that need no loss pass `sum_of_means`, for a trace wants one.

    Raises:
        TypeError, ValueError: what is no model, loss, method or function of inputs.
    """
    objective = bind(model, loss_fn, method, axis_name)
    key = jax.random.key(0) if key is None else key
    batches = draw_batches(input_fn, key, rngs=rngs, batch_size=batch_size, draws=draws)
    return Setup(objective, Arrays(params, dict(collections or {}), batches, key))


def sum_of_means(outputs: Any) -> Float[Array, ""]:
    """A loss that depends on every floating output of a model."""
    means = [jnp.mean(jnp.real(t).astype(jnp.float32)) for t in float_leaves(outputs)]
    return sum(means, jnp.float32(0))
