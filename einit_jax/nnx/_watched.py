"""Calls of a user's own NNX module, as it is or tuned, with its units intercepted."""

from collections.abc import Mapping
from typing import Any

import jax
from flax import nnx

from ..core import Draw, Inputs, ModelArgs, default_key
from ..objectives import DataOf, knowing_data
from ..units import Interception, ModelGraph
from ._functional import NnxModel, functional
from ._hooked_classes import put_hook
from ._hooks import HOOK, Hook, Run, running
from ._interception import intercepted
from ._nodes import at_keys, is_node, raw_value
from ._objective import nnx_objective


def trace_nnx_call(
    module: nnx.Module, args: tuple, kwargs: Mapping[str, Any], method: Any = None
) -> ModelGraph:
    """The units of one call of a module."""
    model, params, variables = functional(module)
    objective = nnx_objective(model, lambda outputs: outputs, method, None)
    batch = Draw(Inputs(*args, **kwargs), default_key(), {})
    return objective.trace_run(ModelArgs(params, variables, batch))


def call_intercepted(
    module: nnx.Module,
    interception: Interception,
    args: tuple,
    kwargs: Mapping[str, Any],
    *,
    method: Any = None,
) -> Any:
    """A call of a module with its units intercepted.

    What it writes to its variables stays written: a copy runs that shares them.
    """
    model, _, _ = functional(module)
    state = Snapshot([module, *nodes_in((args, kwargs))])

    def run(data_of: DataOf) -> Any:
        state.restore()
        copy = nnx.merge(*nnx.split(module, graph=True))
        _add_handlers(copy, model, interception)
        with running(Run(data_of)):
            if method is None or isinstance(method, str):
                return getattr(copy, method or "__call__")(*args, **kwargs)
            return method(copy, *args, **kwargs)

    return knowing_data(run, lambda: trace_nnx_call(module, args, kwargs, method))


def _add_handlers(copy: Any, model: NnxModel, interception: Interception) -> None:
    """Adds an interception's handlers, outside of those that a tuned model has."""
    handlers, carried = intercepted((interception,), ())
    for spec in model.modules:
        if spec.path in handlers:
            module = at_keys(copy, spec.keys)
            old = vars(module).get(HOOK)
            own = handlers[spec.path] + (old.handlers if old else ())
            hook = Hook(spec.path, spec.params, own, old.around if old else None)
            put_hook(module, hook, carried[spec.path])


class Snapshot:
    """What modules and random streams hold, to be put back."""

    def __init__(self, nodes: list[Any]):
        found = [x for node in nodes for _, x in nnx.iter_graph(node)]
        self._nodes = [(x, vars(x).copy()) for x in found if is_node(x)]
        self._values = [(x, raw_value(x)) for x in found if isinstance(x, nnx.Variable)]
        self._fresh = True

    def restore(self) -> None:
        """Puts everything back, after a first call that has nothing to put back."""
        if self._fresh:
            self._fresh = False
            return
        for node, attributes in self._nodes:
            vars(node).clear()
            vars(node).update(attributes)
        for variable, value in self._values:
            object.__setattr__(variable, "_raw_value", value)


def nodes_in(tree: Any) -> list[Any]:
    """The modules and random streams among inputs."""
    return [x for x in jax.tree.leaves(tree, is_leaf=is_node) if is_node(x)]
