"""An NNX model, how it is called, and its loss: a `units.Objective`."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from ..core import (
    OF_MODEL,
    Collections,
    Draw,
    Inputs,
    ModelArgs,
    Params,
    Path,
    as_static,
    flatten,
    float_leaves,
    static_value,
    user_inputs,
)
from ..graph import coupled_units
from ..objectives import (
    WRITTEN,
    check_call_options,
    check_traced,
    checked_loss,
    data_in_run,
    run_over_axis,
    with_keywords,
)
from ..units import Interception, ModelGraph, Unit, UnitKey
from ._explanations import explained_call
from ._functional import NnxModel
from ._hooks import Hook, Run, running
from ._interception import captured_outputs, hook_modules, intercepted
from ._loss_of_model import call_loss, wanted_by_loss, with_root
from ._nodes import is_node
from ._tracing import check_unread, marking_hooks, passing_hooks, trace_marked


@dataclass(frozen=True)
class NnxObjective:
    """A pure function of parameters, other variables and a batch; hashable."""

    model: Any
    """An `NnxModel`; static, wrapped where it cannot be hashed."""
    loss_fn: Any
    method: Any
    axis_name: str | None
    loss_arguments: tuple[str, ...]
    """The parameters besides the outputs that loss_fn wants; or that it is a function
    of the model and a batch: `OF_MODEL`."""

    convolution_transposes = (nnx.ConvTranspose,)

    @property
    def model_type(self) -> str:
        return self._model.name

    @property
    def _model(self) -> NnxModel:
        return static_value(self.model)

    @property
    def _calls_model(self) -> bool:
        """Whether the loss calls the model itself."""
        return self.loss_arguments == (OF_MODEL,)

    def run(
        self,
        args: ModelArgs,
        *interceptions: Interception,
        capture: tuple[Unit, ...] = (),
    ) -> tuple[Any, dict[UnitKey, list[list[Array]]]]:
        handlers, carried = intercepted(interceptions, capture)
        hooks = {
            spec.keys: Hook(spec.path, spec.params, handlers[spec.path])
            for spec in self._model.modules
            if spec.path in handlers
        }
        module = self._model.filled(args.params, args.collections)
        if self._calls_model:
            hooks = with_root(hooks, self._model)
        hook_modules(module, hooks, carried)
        with running(Run(data_in_run(self, args))) as run:
            outputs = self._call(module, args.batch, run)
        return outputs, captured_outputs(run.captured, capture)

    def _call(self, module: nnx.Module, batch: Draw, run: Run) -> Any:
        """The outputs of the user's call; errors speak of inputs."""
        inputs, method = batch.inputs, static_value(self.method)
        args, kwargs = fresh_copies((inputs.args, dict(inputs.kwargs)))
        if self._calls_model:
            own = user_inputs(Inputs(*args, **kwargs))
            return call_loss(static_value(self.loss_fn), module, own, run.captured)
        if method is None or isinstance(method, str):
            function = getattr(module, method or "__call__")
        else:
            function = partial(method, module)
        # the stream that Linen's models fall back on
        keys = {name: key for name, key in batch.rngs.items() if name != "params"}
        if keys:
            kwargs |= _streams(module, function, keys)
        with explained_call(self.model_type, function, inputs):
            return function(*args, **kwargs)

    def loss(self, outputs: Any, batch: Draw) -> Float[Array, ""]:
        if self._calls_model:
            return checked_loss(lambda each: each.loss, (), outputs, batch)
        loss_fn = static_value(self.loss_fn)
        return checked_loss(loss_fn, self.loss_arguments, outputs, batch)

    def over_axis(self, run: Callable[[], Any]) -> Any:
        return run_over_axis(self.axis_name, run)

    def trace(self, args: ModelArgs, estimated: tuple[type, ...] = ()) -> ModelGraph:
        """The units of the model.

        Raises:
            ValueError: no parameters, no units, inputs that the model cannot take, a
                loss that is no floating scalar or that does not depend on the outputs.
                Errors of the model's and the loss's own code pass as they are, with a
                note.
        """
        if not flatten(args.params):
            raise ValueError(
                f"{self.model_type} has no parameters: no nnx.Param and no floating "
                "array"
            )

        def run(mark: Callable, args: ModelArgs) -> Any:
            def inside():
                outputs = self._run_marked(args, estimated)
                if self._calls_model:
                    outputs = replace(mark(outputs), loss=mark(outputs.loss))
                else:
                    outputs = mark(outputs)
                return self.loss(outputs, args.batch)

            return self.over_axis(inside)

        graph = trace_marked(run, args, lambda args: self._plain_loss(args))
        check_traced(graph, self.model_type)
        self._check_unread(args, graph)
        return graph

    def _check_unread(self, args: ModelArgs, graph: ModelGraph) -> None:
        """Looks whether what is carried to units is read, where parameters of units are
        read outside of them, or the loss has the model in its hands, or whoever takes
        parameters by their dtype may pass by a unit's (complex, bfloat16)."""
        unlike = any(p.dtype != jnp.float32 for p in float_leaves(args.params))
        if not (self._calls_model or unlike or coupled_units(graph)):
            return
        hooks, carried = passing_hooks(self._model, graph.units)

        def run(args: ModelArgs) -> Any:
            outputs = lambda: self._run_hooked(args, hooks, carried)
            return self.over_axis(lambda: self.loss(outputs(), args.batch))

        check_unread(run, args, graph.jaxpr, self.model_type)

    def trace_run(self, args: ModelArgs) -> ModelGraph:
        run = lambda mark, args: mark(self._run_marked(args, ()))
        return trace_marked(run, args, lambda args: self.run(args)[0])

    def _plain_loss(self, args: ModelArgs) -> Any:
        """The loss of a run without hooks."""
        return self.over_axis(lambda: self.loss(self.run(args)[0], args.batch))

    def _run_marked(self, args: ModelArgs, estimated: tuple[type, ...]) -> Any:
        return self._run_hooked(args, marking_hooks(self._model, estimated), {})

    def _run_hooked(
        self, args: ModelArgs, hooks: dict[Any, Hook], carried: Mapping[Path, Any]
    ) -> Any:
        module = self._model.filled(args.params, args.collections)
        if self._calls_model:
            hooks = with_root(hooks, self._model)
        hook_modules(module, hooks, carried)
        with running(Run(lambda key: frozenset())) as run:
            return self._call(module, args.batch, run)

    def module_types(self, args: ModelArgs) -> dict[Path, type]:
        return {s.path: s.module_type for s in self._model.modules if s.params}

    def init(
        self,
        key: jax.Array | None,
        batch: Draw,
        init_fn: Callable | None = None,
    ) -> tuple[Params, Collections]:
        """New parameters; an NNX model cannot make any.

        Raises:
            ValueError: always, unless `init_fn` returns variables.
        """
        if init_fn is None:
            raise ValueError(
                f"{self.model_type} is a module of flax.nnx, which is made with its "
                "parameters: pass them, or init_fn"
            )
        variables = dict(init_fn(self._model, key, batch.inputs))
        return variables.pop("params"), variables

    def with_loss_keywords(self, keywords: Mapping[str, Any]) -> "NnxObjective":
        """The objective with some keywords of its loss bound.

        Raises:
            TypeError: the loss does not take them.
        """
        if not keywords:
            return self
        loss_fn = with_keywords(static_value(self.loss_fn), keywords)
        arguments = wanted_by_loss(loss_fn)
        return replace(self, loss_fn=as_static(loss_fn), loss_arguments=arguments)


def nnx_objective(
    model: NnxModel, loss_fn: Callable, method: Any, axis_name: str | None
) -> NnxObjective:
    """Checks what can be checked before any batch is drawn.

    Raises:
        TypeError: loss_fn takes other arguments, or method or axis_name is no name.
        ValueError: the model has no such method.
    """
    root = model.modules[0].module_type
    if isinstance(method, str) and not callable(getattr(root, method, None)):
        raise ValueError(
            f"{root.__name__} has no method {method!r}; pass the name of one of its "
            "methods, or a function of the module"
        )
    check_call_options(method, axis_name)
    arguments = wanted_by_loss(loss_fn)
    if WRITTEN in arguments:
        raise TypeError(
            "loss_fn takes collections, which models of Linen have; of flax.nnx pass a "
            "loss_fn(model, batch), and read there what the model's call has written"
        )
    return NnxObjective(
        model=as_static(model),
        loss_fn=as_static(loss_fn),
        method=as_static(method),
        axis_name=axis_name,
        loss_arguments=arguments,
    )


def fresh_copies(tree: Any) -> Any:
    """Inputs with copies of the modules and random streams among them.

    The trace that runs may change these.
    """
    copied = lambda x: nnx.clone(x, graph=True) if is_node(x) else x
    return jax.tree.map(copied, tree, is_leaf=is_node)


def _streams(
    module: nnx.Module, function: Callable, keys: Mapping[str, jax.Array]
) -> dict[str, nnx.Rngs]:
    """Random keys as the model takes them: its call's `rngs`, or its own streams'.

    Raises:
        ValueError: it has neither.
    """
    try:
        takes = "rngs" in inspect.signature(function).parameters
    except (TypeError, ValueError):
        takes = False
    if takes:
        return {"rngs": nnx.Rngs(**keys)}
    streams = {
        node.tag: node
        for _, node in nnx.iter_graph(module)
        if isinstance(node, nnx.RngStream)
    }
    lacking = [name for name in keys if name not in streams]
    if lacking:
        raise ValueError(
            f"rngs name the streams {', '.join(lacking)}, which "
            f"{type(module).__name__} has not, nor does its call take rngs; its "
            f"streams are: {', '.join(streams) or 'none'}"
        )
    nnx.reseed(module, graph=True, policy="match_shape", **keys)
    return {}


def is_nnx_type(value: Any) -> bool:
    """Whether a value is a class of NNX modules, or what verbs make of a model."""
    return isinstance(value, type) and issubclass(value, nnx.Module | NnxModel)
