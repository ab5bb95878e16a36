"""A Linen model, how it is called, and its loss: a `units.Objective`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import flax
import jax
from flax import linen as nn
from jaxtyping import Array, Float

from ..core import (
    Collections,
    Draw,
    Inputs,
    ModelArgs,
    Params,
    Partition,
    Path,
    as_static,
    flatten,
    path_str,
    static_value,
    unboxed,
)
from ..objectives import (
    WRITTEN,
    check_call_options,
    check_traced,
    checked_loss,
    data_in_run,
    loss_arguments,
    run_over_axis,
    with_keywords,
)
from ..units import Interception, ModelGraph, Unit, UnitKey
from ._carrying import Found, found_of
from ._checks import check_module
from ._entries import COLLECTION, MAPS_VARIABLES, lifted_by, path_of
from ._explanations import explained_call
from ._interception import run_intercepted
from ._tracing import called_types, trace_marked

FIXED = ("params", "scales", "intermediates", COLLECTION)
"""Collections that a run does not write."""


@dataclass(frozen=True)
class LinenObjective:
    """A pure function of parameters, collections and a batch; hashable.

    Model, loss and method are static: wrapped where they cannot be hashed.
    """

    model: Any
    loss_fn: Any
    method: Any
    axis_name: str | None
    loss_arguments: tuple[str, ...]
    """The parameters besides the outputs that loss_fn wants."""

    convolution_transposes = (nn.ConvTranspose,)

    @property
    def model_type(self) -> str:
        return type(static_value(self.model)).__name__

    def run(
        self,
        args: ModelArgs,
        *interceptions: Interception,
        capture: tuple[Unit, ...] = (),
    ) -> tuple[Any, dict[UnitKey, list[list[Array]]]]:
        keys = {unit.key for unit in capture}

        def wanted(module: nn.Module, method: str) -> bool:
            scope = module.scope
            assert scope is not None, "a module that is called is bound"
            # what is captured is among the variables that are mapped in a later call
            mapped = MAPS_VARIABLES in lifted_by(scope.debug_path)
            return not mapped and (path_of(scope), method) in keys

        variables = {**args.collections, "params": args.params}
        apply = lambda carried: self._apply(
            carried.beside(variables), args.batch, wanted if capture else False
        )
        data_of = data_in_run(self, args)
        outputs, written = run_intercepted(apply, interceptions, data_of, self._found())
        captured = _captured(written.get("intermediates", {}), capture)
        if self._reads_collections:
            outputs = outputs, {n: written[n] for n in written if n not in FIXED}
        return outputs, captured

    def _found(self) -> Found:
        return found_of(static_value(self.model), static_value(self.method))

    def _apply(self, variables: Mapping, batch: Draw, capture: Any) -> Any:
        """Outputs and written collections; errors speak of params and inputs."""
        inputs, model = batch.inputs, static_value(self.model)
        method = static_value(self.method)
        with explained_call(model, method, inputs):
            return model.apply(
                variables,
                *inputs.args,
                rngs=dict(batch.rngs),
                method=method,
                mutable=flax.core.DenyList(FIXED),
                capture_intermediates=capture,
                **inputs.kwargs,
            )

    @property
    def _reads_collections(self) -> bool:
        """Whether the loss takes what is written: `run` returns that, too."""
        return WRITTEN in self.loss_arguments

    def loss(self, outputs: Any, batch: Draw) -> Float[Array, ""]:
        loss_fn, names = static_value(self.loss_fn), self.loss_arguments
        if self._reads_collections:
            outputs, written = outputs
            kwargs = {**batch.for_loss.kwargs, WRITTEN: written}
            batch = batch._replace(for_loss=Inputs(**kwargs))
        return checked_loss(loss_fn, names, outputs, batch)

    def over_axis(self, run: Callable[[], Any]) -> Any:
        return run_over_axis(self.axis_name, run)

    def trace_run(self, args: ModelArgs) -> ModelGraph:
        return trace_marked(self._watched_run, {}, *args)

    def _watched_run(
        self, watched: Callable, params: Params, collections: Collections, batch: Draw
    ) -> Any:
        """The outputs of a run that `trace_marked` watches."""
        apply = lambda params, rest: self.run(ModelArgs(params, rest, batch))[0]
        return watched(apply, params, collections)

    def trace(self, args: ModelArgs, estimated: tuple[type, ...] = ()) -> ModelGraph:
        """The units of the model.

        Raises:
            ValueError: params of another model, no parameters, no units, inputs that
                the model cannot take, a loss that is no floating scalar or that does
                not depend on the outputs. Errors of the model's and the loss's own
                code pass as they are, with a note.
        """
        params = args.params
        if isinstance(params, Mapping) and set(params) == {"params"}:
            raise ValueError("params hold an entry 'params'; pass variables['params']")
        if not isinstance(params, Mapping) or not flatten(params):
            raise ValueError(
                "params are empty: pass model.init(key, inputs)['params'] of a model "
                "that has parameters"
            )

        def run(watched: Callable, *args: Any) -> Any:
            *_, batch = args
            with_loss = lambda: self.loss(self._watched_run(watched, *args), batch)
            return self.over_axis(with_loss)

        graph = trace_marked(run, self._found(), *args, estimated=estimated)
        if self._reads_collections and graph.escaping:
            names = ", ".join(map(path_str, graph.escaping))
            raise ValueError(
                f"loss_fn reads collections that {names} wrote, a unit, where no "
                "factor scales the gradient with that of its output; sow in the module "
                "around it, of what the unit returns"
            )
        check_traced(graph, self.model_type)
        self._check_params(args.batch, graph)
        return graph

    def _check_params(self, batch: Draw, graph: ModelGraph) -> None:
        """Raises where params have entries that the model itself would not make.

        Parameters that no unit of this call uses are asked of `model.init`; those that
        it makes too are merely unreached.
        """
        if self.method is not None or not graph.raw_parameters:
            return
        try:
            params, _ = jax.eval_shape(lambda batch: self.init(None, batch), batch)
        except Exception:  # a model that is initialized in another way than called
            return
        known = set(flatten(unboxed(params)))
        foreign = [path_str(p) for p in graph.raw_parameters if p not in known]
        if foreign:
            raise ValueError(
                f"params have entries that {self.model_type} has not: "
                f"{', '.join(foreign[:8])}; pass model.init(key, inputs)['params']"
            )

    def module_types(self, args: ModelArgs) -> dict[Path, type]:
        run = lambda *args: self.over_axis(lambda: self.run(ModelArgs(*args))[0])
        return called_types(run, self._found(), *args)

    def init(
        self,
        key: jax.Array | None,
        batch: Draw,
        init_fn: Callable | None = None,
    ) -> tuple[Params, Collections]:
        """New parameters, and further collections.

        The key is that of the parameters; None: the batch has one. `init_fn(model, key,
        inputs)` returns variables in the place of `model.init`.
        """
        inputs, model = batch.inputs, static_value(self.model)
        keys = dict(batch.rngs) if key is None else {**batch.rngs, "params": key}

        def variables() -> Any:
            if init_fn is not None:
                return init_fn(model, key, inputs)
            method = static_value(self.method)
            with explained_call(model, method, inputs):
                return model.init(keys, *inputs.args, method=method, **inputs.kwargs)

        collections = dict(self.over_axis(variables))
        if "params" not in collections:
            raise ValueError(
                f"init_fn returned {sorted(collections)}, expected variables with "
                "'params', as model.init returns"
            )
        return collections.pop("params"), collections

    def with_loss_keywords(self, keywords: Mapping[str, Any]) -> "LinenObjective":
        """The objective with some keywords of its loss bound.

        Raises:
            TypeError: the loss does not take them.
        """
        if not keywords:
            return self
        loss_fn = with_keywords(static_value(self.loss_fn), keywords)
        arguments = loss_arguments(loss_fn)
        return replace(self, loss_fn=as_static(loss_fn), loss_arguments=arguments)


def linen_objective(
    model: nn.Module, loss_fn: Callable, method: Any, axis_name: str | None
) -> LinenObjective:
    """Checks what can be checked before any batch is drawn.

    Raises:
        TypeError: model is no Linen module, loss_fn takes other arguments, or method
            or axis_name is no name.
        ValueError: the model has no such method.
    """
    check_module(model)
    if isinstance(method, str) and not callable(getattr(model, method, None)):
        raise ValueError(
            f"{type(model).__name__} has no method {method!r}; pass the name of one of "
            "its methods, or a function of the module as in model.apply"
        )
    check_call_options(method, axis_name)
    return LinenObjective(
        model=as_static(model),
        loss_fn=as_static(loss_fn),
        method=as_static(method),
        axis_name=axis_name,
        loss_arguments=loss_arguments(loss_fn),
    )


def _captured(
    tree: Mapping, units: tuple[Unit, ...]
) -> dict[UnitKey, list[list[Array]]]:
    """The floating outputs, call by call, of the units whose calls were all captured.

    A `super().__call__` chain captures the inner outputs of a call before its own.
    """
    captured = {}
    for unit in units:
        node: Any = tree
        for name in (*unit.path, unit.method):
            node = node.get(name, {}) if isinstance(node, Mapping) else {}
        if unit.lifted_axes or not node or len(node) % unit.calls:
            continue
        chain = len(node) // unit.calls
        own = lambda outputs, unit=unit: Partition(outputs, unit.data_outputs).floats
        calls = [own(outputs) for outputs in node[chain - 1 :: chain]]
        if all(tuple(t.shape for t in outputs) == unit.shape for outputs in calls):
            captured[unit.key] = calls
    return captured
