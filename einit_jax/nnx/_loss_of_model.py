"""Losses of NNX's own kind, `loss_fn(model, batch)`: they call the model themselves."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, get_type_hints

import jax
from flax import nnx

from ..core import OF_MODEL
from ..objectives import NAMES, loss_arguments
from ..units import UnitKey
from ._functional import NnxModel
from ._hooks import Handler, Hook, HookedCall, current_trace
from ._nodes import Keys

MODELS = ("model", "module", "net", "network")
OUTPUTS = ("outputs", "output", "out", "logits", "predictions", "preds", "y", "y_pred")
"""Names of the first argument of a loss that tell what it is."""
ROOT: UnitKey = ((), "")
"""The key of what the model's own calls return."""


def wanted_by_loss(loss_fn: Any) -> tuple[str, ...]:
    """What a loss wants besides the outputs; `OF_MODEL` where it is NNX's own kind.

    That one has two arguments without defaults, of which the second has no name that we
    give (`key`, `inputs`, `labels`), or is `batch` and the first one is a model, by its
    name or annotation.

    Raises:
        TypeError: nothing tells whether the first one is the model or its outputs.
    """
    try:
        parameters = list(inspect.signature(loss_fn).parameters.values())
    except (TypeError, ValueError):
        return loss_arguments(loss_fn)
    bound = getattr(loss_fn, "keywords", {})
    free = [p for p in parameters if p.default is p.empty and p.name not in bound]
    free = [p for p in free if p.kind < p.VAR_POSITIONAL]
    if len(free) != 2:
        return loss_arguments(loss_fn)
    first, second = free
    of_model = _is_model(first, loss_fn)
    shown = f"loss_fn takes ({first.name}, {second.name})"
    if second.name not in NAMES:
        if of_model is False:
            raise TypeError(
                f"{shown}, expected ({first.name}, labels) or ({first.name}, batch), "
                "by these names, or a first argument named model"
            )
        return (OF_MODEL,)
    if second.name != "batch":
        if of_model:
            raise TypeError(
                f"{shown}, expected (model, batch), or (outputs, {second.name}): what "
                "calls the model gets the whole batch"
            )
        return loss_arguments(loss_fn)
    if of_model is None:
        raise TypeError(
            f"{shown}, which does not tell whether it calls the model; name the first "
            "argument model or outputs: (model, batch) or (outputs, batch)"
        )
    return (OF_MODEL,) if of_model else loss_arguments(loss_fn)


def _is_model(parameter: inspect.Parameter, loss_fn: Any) -> bool | None:
    """Whether a loss takes a model there, and no outputs; None: nothing tells."""
    try:
        annotation = get_type_hints(loss_fn).get(parameter.name)
    except Exception:  # of names that are not to be found, of a partial
        annotation = None
    if isinstance(annotation, type):
        return issubclass(annotation, nnx.Module)
    if parameter.name in MODELS:
        return True
    return False if parameter.name in OUTPUTS or annotation else None


@partial(
    jax.tree_util.register_dataclass, data_fields=["outputs"], meta_fields=["loss"]
)
@dataclass(frozen=True, eq=False)
class OutputsWithLoss:
    """What the model returned while the loss called it; the loss is no output."""

    outputs: list[Any]
    loss: Any


def with_root(hooks: Mapping[Keys, Hook], model: NnxModel) -> dict[Keys, Hook]:
    """The hooks, with one more handler for calls of the model itself."""
    root = model.modules[0]
    own = hooks.get(root.keys) or Hook(root.path, root.params, ())
    handlers = (Handler("root", _note_outputs), *own.handlers)
    return {**hooks, root.keys: replace(own, handlers=handlers)}


def _note_outputs(call: HookedCall) -> Any:
    """Notes what a call of the model returns, where the run's own trace knows it."""
    outputs = call.proceed(*call.args, **call.kwargs)
    if call.run.trace == current_trace():
        call.run.captured.setdefault(ROOT, []).append(outputs)
    return outputs


def call_loss(
    loss_fn: Callable, module: nnx.Module, batch: Any, captured: Mapping[UnitKey, Any]
) -> OutputsWithLoss:
    """The loss of a module and a batch, and what the module returned meanwhile."""
    returned = loss_fn(module, batch)
    loss = returned[0] if isinstance(returned, tuple) else returned
    return OutputsWithLoss(captured.get(ROOT) or [loss], loss)
