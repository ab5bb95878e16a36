"""Losses as users give them: what they take, what they are to return."""

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from ..core import OF_BATCH, OF_MODEL, Draw, describe, user_inputs
from ._explanations import add_note

OF_DRAW = ("key", "inputs")
"""What a loss may take besides the outputs; of the batch, `OF_BATCH`."""
WRITTEN = "collections"
"""What the run of a model of Linen has written, by collection."""
NAMES = (*OF_DRAW, *OF_BATCH, WRITTEN, "params")
"""What tells a loss of outputs; the last one is refused."""
NO_PARAMS = (
    "the gradient of a penalty on params reaches each parameter past its unit, where "
    "no factor scales it along with the rest; leave it out, and decay weights in the "
    "optimizer: optax.add_decayed_weights"
)


def checked_loss(
    loss_fn: Callable, arguments: tuple[str, ...], outputs: Any, batch: Draw
) -> Float[Array, ""]:
    """The loss of a model's outputs.

    Args:
        loss_fn: the user's own.
        arguments: from `loss_arguments`.
        outputs: its first argument.
        batch: where the others are from.

    Raises:
        ValueError: it is no floating scalar. An error of the loss's own code passes as
            it is, with a note.
    """
    known = {"key": batch.key, "inputs": user_inputs(batch.inputs)}
    known |= batch.for_loss.kwargs
    try:
        loss = loss_fn(outputs, **{name: known[name] for name in arguments})
    except Exception as error:
        shown = describe(outputs)
        add_note(error, f"This was raised while loss_fn got the outputs {shown}.")
        raise
    dtype, shape = getattr(loss, "dtype", None), getattr(loss, "shape", None)
    real = dtype is not None and jnp.issubdtype(dtype, jnp.floating)
    if shape != () or not real:
        hint = "; take the mean over the batch" if real else " that depends on outputs"
        raise ValueError(
            f"loss_fn returned {describe(loss)}, expected a floating scalar{hint}"
        )
    return loss


def loss_arguments(loss_fn: Callable) -> tuple[str, ...]:
    """Which of "key", "inputs", "labels", "batch" and "collections" a loss names.

    The latter three only where they have no default: that binds labels of one's own.

    Raises:
        TypeError: it is no function, or demands other arguments.
    """
    if not callable(loss_fn):
        raise TypeError(
            f"loss_fn is {describe(loss_fn)}, expected a function of the outputs"
        )
    try:
        parameters = list(inspect.signature(loss_fn).parameters.values())
    except ValueError:
        return ()
    variadic = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    named = [p for p in parameters[1:] if p.kind not in variadic]
    bound = getattr(loss_fn, "keywords", {})  # by functools.partial
    named = [p for p in named if p.name not in bound]
    demanded = [p.name for p in named if p.default is p.empty]
    wanted = [p.name for p in named if p.name in OF_DRAW]
    wanted += [name for name in demanded if name in (*OF_BATCH, WRITTEN)]
    extra = [name for name in demanded if name not in wanted]
    shown = ", ".join(p.name for p in parameters)
    if "params" in extra:
        raise TypeError(f"loss_fn takes ({shown}); {NO_PARAMS}")
    if extra or not parameters or parameters[0].name in OF_BATCH:
        raise TypeError(
            f"loss_fn takes ({shown}), expected (outputs) and, if it needs them, "
            "arguments named labels, batch, key, inputs and collections; bind others "
            "with functools.partial"
        )
    if parameters[0].name == OF_MODEL and "batch" in wanted:
        raise TypeError(
            f"loss_fn takes ({shown}), as losses of flax.nnx do that call the model; "
            "expected (outputs, batch), and outputs are those of the model"
        )
    return tuple(wanted)


def check_loss_keywords(loss_fn: Callable, keywords: Mapping[str, Any]) -> None:
    """Raises a TypeError where a loss does not take some keywords."""
    try:
        parameters = inspect.signature(loss_fn).parameters
    except ValueError:
        return
    variadic = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    foreign = [name for name in keywords if name not in parameters]
    if foreign and not variadic:
        raise TypeError(
            f"loss_fn takes ({', '.join(parameters)}) and no {', '.join(foreign)}, an "
            "unexpected keyword; train is to return inputs and keywords of loss_fn"
        )


def with_keywords(loss_fn: Callable, keywords: Mapping[str, Any]) -> Callable:
    """The loss with some keywords bound.

    Raises:
        TypeError: it does not take them.
    """
    check_loss_keywords(loss_fn, keywords)
    return partial(loss_fn, **keywords)
