"""Every trace of a Linen model is made here: with marks, and read by `graph`.

One trace with every module's inputs and outputs marked shows, through `pjit`, `scan`,
`remat`, `cond` and `custom_vjp` alike, which calls turn activations into activations
with parameters of their own. Nothing runs and nothing is compiled.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import flax
import jax
import numpy as np
from flax import linen as nn

from ..core import (
    Collections,
    Inputs,
    Params,
    Partition,
    Path,
    flatten,
    path_str,
    unboxed,
)
from ..graph import Mark, discover
from ..units import ModelGraph, UnitKey
from ._carrying import Carried, Found, found_of, run_carrying
from ._entries import COLLECTION, WATCHED, is_watched
from ._interception import ModuleCall, intercept_calls

RULED = "custom_vjp("
"""What Flax puts into the debugging paths of scopes inside of `nn.custom_vjp`."""
_numbers = itertools.count()
"""Numbers calls and traces, and never starts over: `nn.jit` may take the trace of a
call from its cache, with the marks of an earlier one."""


def trace_marked(
    run: Callable,
    found: Found,
    params: Params,
    collections: Collections,
    *rest: Any,
    estimated: tuple[type, ...] = (),
) -> ModelGraph:
    """The units of a model.

    Args:
        run: `run(watched, params, collections, *rest)` runs the model, and its loss if
            it is to be in the trace: `watched(apply, params, collections)` is what
            `apply(params, collections)` returns, and is to run the model alone. A loss
            may apply others, whose modules have the same paths.
        found: from `found_of` the model; what is found is added.
        params: the model's parameters; arrays or shapes.
        collections: its further collections.
        rest: further arguments of `run`, pytrees of arrays or shapes.
        estimated: classes of modules whose calls are marked, too.
    """
    shapes = {path: leaf.shape for path, leaf in flatten(unboxed(params)).items()}

    def traced(params: Params, collections: Collections, *rest: Any) -> Any:
        outer = intercept_calls(lambda m: _if_among(estimated, m), _mark_estimated)
        inner = intercept_calls(_own_variables, _call_marker())

        def watched(apply: Callable, params: Params, collections: Collections) -> Any:
            run_named = _run_beside(apply, params, collections)
            outputs = run_carrying(run_named, [outer, inner], _names(params), found)
            return Mark("result").on(outputs)

        return run(watched, params, collections, *rest)

    known = dict(found)
    # a new function each time, or jax would take the trace from its cache
    trace = lambda: jax.make_jaxpr(partial(traced))(params, collections, *rest)
    closed = trace()
    if found != known:  # calls of a run that was given up are in the trace
        closed = trace()
    return discover(closed.jaxpr, closed.consts, shapes)


def trace_call(
    model: nn.Module, variables: Mapping, args: tuple, how: Any
) -> ModelGraph:
    """The units of one call `model.apply(variables, *args, **how)`."""
    how = {
        k: v for k, v in how.items() if k not in ("mutable", "capture_intermediates")
    }
    method, rngs = how.pop("method", None), how.pop("rngs", None)

    def run(watched: Callable, params: Params, *others: Any) -> Any:
        rest, inputs, rngs = others

        def apply(params: Params, collections: Collections) -> Any:
            outputs, _ = model.apply(
                {**collections, "params": params},
                *inputs.args,
                rngs=rngs,
                method=method,
                mutable=flax.core.DenyList(("params", "intermediates", COLLECTION)),
                **inputs.kwargs,
            )
            return outputs

        return watched(apply, params, rest)

    rest = {k: v for k, v in variables.items() if k not in ("params", "scales")}
    params = variables.get("params", {})
    found = found_of(model, method)
    return trace_marked(run, found, params, rest, Inputs(*args, **how), rngs)


def called_types(
    run: Callable,
    found: Found,
    params: Params,
    collections: Collections,
    *rest: Any,
) -> dict[Path, type]:
    """The class of each module that is called and has parameters at or below it.

    `run(params, collections, *rest)` runs the model.
    """
    types: dict[Path, type] = {}

    def handle(call: ModuleCall) -> Any:
        types.setdefault(call.path, type(call.module))
        return call.proceed(*call.args, **call.kwargs)

    def traced(params: Params, collections: Collections, *rest: Any) -> Any:
        # a trace with a new number among what is carried is taken from no cache
        names = _names(params, f"{next(_numbers)} ")
        hook = intercept_calls(_own_variables, handle)
        run_named = _run_beside(run, params, collections, *rest)
        return run_carrying(run_named, [hook], names, found)

    jax.eval_shape(traced, params, collections, *rest)
    return types


def _run_beside(
    run: Callable, params: Params, collections: Collections, *rest: Any
) -> Callable[[Carried], Any]:
    """`run(params, collections, *rest)`, with what is carried among the collections."""

    def run_named(carried: Carried) -> Any:
        named = carried.beside({**collections, "params": params})
        return run(named.pop("params"), named, *rest)

    return run_named


def _names(params: Params, prefix: str = "") -> dict[Path, dict]:
    """An entry without arrays for each module that has parameters at or below it.

    It tells the modules of this run from those of another `apply` inside of it. A trace
    that `nn.jit` caches for one path is not taken for another.
    """
    name = lambda path: f"{WATCHED}{prefix}{path_str(path)}"
    return {(*path, name(path)): {} for path in _owners(params)}


def _owners(params: Any, path: Path = ()) -> Iterator[Path]:
    """The modules with parameters at or below them, by path."""
    if isinstance(params, Mapping) and flatten(params):
        yield path
        for name, child in params.items():
            yield from _owners(child, (*path, name))


def _own_variables(module: nn.Module) -> Mapping[str, Any] | None:
    """The parameters of a module of this run."""
    if not is_watched(module.scope):
        return None
    return module.variables.get("params") or None


def _call_marker() -> Callable[[ModuleCall], Any]:
    """What runs calls with their inputs and outputs marked."""
    running: list[UnitKey] = []

    def run_marked(call: ModuleCall) -> Any:
        running.append((call.path, call.method))
        try:
            return _mark_call(call, tuple(running[:-1]))
        finally:
            running.pop()

    return run_marked


def _mark_call(call: ModuleCall, enclosing: tuple[UnitKey, ...]) -> Any:
    """Runs a call with its inputs and outputs marked."""
    own = flatten(unboxed(call.entries))
    scope = call.module.scope
    ruled = scope is not None and any(RULED in name for name in scope.debug_path)
    mark = Mark(
        role="input",
        call=next(_numbers),
        path=call.path,
        method=call.method,
        ruled=ruled,
        enclosing=enclosing,
    )
    args, kwargs = mark.on((call.args, dict(call.kwargs)))
    outputs = call.proceed(*args, **kwargs)
    outputs = mark._replace(role="derivative").where_differentiated(outputs)
    mark = mark._replace(
        role="output",
        module_type=type(call.module).__name__,
        output_shapes=tuple(leaf.shape for leaf in Partition(outputs).floats),
        param_shapes={"/".join(path): np.shape(v) for path, v in own.items()},
    )
    return mark.on(outputs)


def _if_among(classes: tuple[type, ...], module: nn.Module) -> Mapping[str, Any] | None:
    """The number of the class that a module is of, for `_mark_estimated`."""
    numbers = (i for i, c in enumerate(classes) if isinstance(module, c))
    number = next(numbers, None)
    return None if number is None else {"estimator": number}


def _mark_estimated(call: ModuleCall) -> Any:
    """Runs a call of a module that has an estimator, inputs and outputs marked."""
    number = call.entries["estimator"]
    mark = Mark("estimated_input", next(_numbers), call.path, estimator=number)
    args, kwargs = mark.on((call.args, dict(call.kwargs)))
    outputs = call.proceed(*args, **kwargs)
    return mark._replace(role="estimated_output").on(outputs)
