"""What all verbs do first: bind the model, draw batches, settle keys."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, SupportsIndex

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..core import (
    OF_MODEL,
    Collections,
    Draw,
    ModelArgs,
    check_arrays,
    checked_key,
    default_key,
    describe,
    draw_batches,
    flatten,
    float_leaves,
    is_float,
    path_str,
    split_batch,
    unboxed,
    vary_with,
)
from ..units import Objective
from ._bind import Model, bind, is_model_type, unscaled


class Arrays(NamedTuple):
    """What a verb's compiled function takes; a pytree."""

    params: Any
    """As the user gave them, not yet checked: boxed, frozen, or none at all."""
    collections: Collections
    batches: tuple[Draw, ...]
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
    batch_size: SupportsIndex | None = None,
    method: str | Callable | None = None,
    rngs: Sequence[str] | Mapping[str, jax.Array] = (),
    collections: Mapping[str, Any] | None = None,
    axis_name: str | None = None,
    draws: SupportsIndex = 1,
    like: Callable | None = None,
    shapes: bool = False,
) -> Setup:
    """The arguments that verbs share (see `tune`), checked as far as they can be.

    Verbs that need no loss pass `sum_of_means`, for a trace wants one; the user's own,
    which tells labels from inputs, is `like`. Those that only trace the model take the
    `shapes` of params, too.

    Raises:
        TypeError, ValueError: what is no model, loss, method or function of inputs, or
            params that hold no floating arrays.
    """
    _check_order(model, params, input_fn)
    _check_collections(collections)
    objective = bind(model, loss_fn, method, axis_name)
    key = default_key() if key is None else checked_key(key)
    _check_params(params, input_fn, shapes)
    told_by = objective if like is None else bind(model, like, method, axis_name)
    names = tuple(n for n in told_by.loss_arguments if like is None or n != OF_MODEL)
    batches = draw_batches(
        input_fn,
        key,
        rngs=rngs,
        batch_size=batch_size,
        draws=draws,
        split=partial(split_batch, names=names),
    )
    arrays = Arrays(params, dict(collections or {}), batches, key)
    return Setup(objective, vary_with(arrays, arrays))


def _check_order(model: Any, params: Any, input_fn: Any) -> None:
    """Raises a TypeError where the model is given in the place of another argument."""
    others = {"params": params, "input_fn": input_fn}
    name = next((n for n, v in others.items() if is_model_type(type(v))), None)
    if name is not None and not is_model_type(type(unscaled(model))):
        raise TypeError(
            f"model is a {type(model).__name__} and {name} is the model, a "
            f"{type(others[name]).__name__}; pass the model first: (model, params, ...)"
        )


def _check_collections(collections: Any) -> None:
    """Raises a TypeError for what are no collections."""
    if not isinstance(collections, Mapping | None):
        raise TypeError(
            f"collections are {describe(collections)}, expected variables by "
            "collection, such as {'batch_stats': ...}"
        )


def _check_params(params: Any, input_fn: Any, shapes: bool) -> None:
    """Raises where params are none that can be tuned; what is empty the trace tells.

    Raises:
        TypeError: params are no mapping, or hold what is no array.
        ValueError: none of them is floating.
    """
    if not isinstance(params, Mapping):
        swapped = isinstance(input_fn, Mapping)
        raise TypeError(
            f"params are a {type(params).__name__}, expected the nested dict of arrays "
            "model.init(key, inputs)['params']"
            + ("; params and input_fn have changed places" if swapped else "")
        )
    check_arrays(params, shapes=shapes)
    leaves = flatten(unboxed(params))
    if leaves and not shapes and not any(map(is_float, leaves.values())):
        path, leaf = next(iter(leaves.items()))
        raise ValueError(
            f"params hold no floating array ({path_str(path)!r} is {describe(leaf)}), "
            "so nothing can be scaled; pass them in float32, say"
        )


def sum_of_means(outputs: Any) -> Float[Array, ""]:
    """A loss that depends on every floating output of a model."""
    means = [jnp.mean(jnp.real(t).astype(jnp.float32)) for t in float_leaves(outputs)]
    return sum(means, jnp.float32(0))
