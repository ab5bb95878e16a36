"""Losses of NNX's own kind, `loss_fn(model, batch)`: they call the model themselves."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
from flax import nnx

from ..objectives import loss_arguments
from ..units import UnitKey
from ._functional import NnxModel
from ._hooks import Handler, Hook, HookedCall, current_trace
from ._nodes import Keys

OF_MODEL = "model"
"""What `wanted_by_loss` says of a loss that calls the model itself."""
ROOT: UnitKey = ((), "")
"""The key of what the model's own calls return."""


def wanted_by_loss(loss_fn: Any) -> tuple[str, ...]:
    """What a loss wants besides the outputs; `OF_MODEL` where it is NNX's own kind.

    That one has two arguments without defaults, of which the second has no name that we
    give: `key`, `inputs`.
    """
    try:
        parameters = list(inspect.signature(loss_fn).parameters.values())
    except (TypeError, ValueError):
        return loss_arguments(loss_fn)
    bound = getattr(loss_fn, "keywords", {})
    free = [p for p in parameters if p.default is p.empty and p.name not in bound]
    names = [p.name for p in free if p.kind < p.VAR_POSITIONAL]
    if len(names) == 2 and names[1] not in ("key", "inputs"):
        return (OF_MODEL,)
    return loss_arguments(loss_fn)


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
