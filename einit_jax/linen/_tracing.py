"""The units of a problem, found and checked while the problem is traced."""

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax
import jax
import numpy as np
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name

from ..core import (
    Batch,
    Inputs,
    Partition,
    Path,
    flatten,
    insert,
    is_key,
    is_under,
    path_str,
    static_value,
    unboxed,
)
from ..graph import ESTIMATED, DependenceWalk, units_from
from ..units import ModelGraph
from ._carrying import RIDE, without_carried
from ._interception import Call, intercept_calls
from ._objective import Objective, checked_loss, outputs_of, over_mapped_axis


def discover(apply: Callable, params: Any, *args: Any) -> ModelGraph:
    """The units of a model.

    Args:
        apply: `apply(params, interceptor, mark, *args)` runs model and loss, passing
            the model's outputs through `mark`.
        params: the model's parameters; arrays or shapes.
        args: further arguments of `apply`, pytrees of arrays or shapes.
    """
    shapes = {path: leaf.shape for path, leaf in flatten(unboxed(params)).items()}
    paths = list(shapes)
    owners = {(): None} | {p[:i]: None for p in paths for i in range(len(p))}
    rides = {(*o, f"{RIDE}{path_str(o)}"): {} for o in owners}

    def traced(params, *args):
        def mark(outputs):
            return _mark_tree(outputs, ["outputs"])

        return apply(
            insert(params, rides), intercept_calls(_has_params, _mark_call), mark, *args
        )

    jaxpr = jax.make_jaxpr(traced)(params, *args)
    walk = DependenceWalk()
    seeds = [frozenset({("own", p), ("leaf", p)}) for p in paths]
    rest = len(jaxpr.jaxpr.invars) - len(seeds)
    results = walk.run(jaxpr.jaxpr, [*seeds, *[frozenset()] * rest], 1, True)
    units = units_from(walk.calls, shapes)
    loose = [p for p in paths if not any(is_under(p, u.path) for u in units)]
    used = any(("outputs",) in tokens for tokens in results)
    about = (walk.factors, used, jaxpr.jaxpr, shapes, tuple(jaxpr.consts))
    return ModelGraph(tuple(units), tuple(loose), *about)


def _has_params(module: nn.Module) -> Mapping[str, Any] | None:
    return module.variables.get("params") or None


_call_ids = itertools.count()
"""Never starts over: the trace of a call may come from a cache of an earlier one."""


def _mark_call(call: Call) -> Any:
    """Runs a call with its inputs and outputs marked by what must be known of it."""
    own = flatten(unboxed(without_carried(call.ride)))
    shapes = {"/".join(path): list(np.shape(v)) for path, v in own.items()}
    ident = next(_call_ids)
    where = ["in", ident, list(call.path), call.method]
    args, kwargs = _mark_tree((call.args, dict(call.kwargs)), where)
    y = call.proceed(*args, **kwargs)
    leaves = Partition(y)
    sizes = [list(leaf.shape) for leaf in leaves.floats]
    kind = type(call.module).__name__
    about = ["out", ident, list(call.path), call.method, kind, sizes, shapes]
    return _mark_tree(y, about)


def _mark_tree(tree: Any, about: list) -> Any:
    """The tree with every array named in the jaxpr; typed random keys excepted."""
    leaves = Partition(tree)
    names = [json.dumps([i, *about]) for i in range(len(leaves.floats))]
    other = json.dumps([-1, *about])
    return leaves.build(
        [
            checkpoint_name(x, name)
            for x, name in zip(leaves.floats, names, strict=True)
        ],
        [x if is_key(x) else checkpoint_name(x, other) for x in leaves.arrays],
    )


def trace_model(
    problem: Objective, params: Any, collections: Mapping, batch: Batch
) -> ModelGraph:
    """The units of a problem, or an error that says what does not fit.

    Raises:
        ValueError: params of another model, no parameters, no units, inputs that the
            model cannot take, a loss that is no floating scalar or that does not depend
            on the outputs.
    """
    if isinstance(params, Mapping) and set(params) == {"params"}:
        raise ValueError("params hold an entry 'params'; pass variables['params']")
    if not isinstance(params, Mapping) or not flatten(params):
        raise ValueError(
            "params are empty: pass model.init(key, inputs)['params'] of a model that "
            "has parameters"
        )

    def run(params, hook, mark, collections, batch):
        def inside():
            with nn.intercept_methods(hook):
                out, _ = outputs_of(problem, params, collections, batch)
                outputs = mark(out)
            return checked_loss(problem, outputs, batch)

        return over_mapped_axis(problem.axis_name, inside)

    graph = discover(run, params, collections, batch)
    if not graph.units:
        raise ValueError(
            f"{type(static_value(problem.model)).__name__} has no units: no module "
            "turns inputs into outputs with parameters of its own; parameters that "
            f"belong to no unit: {', '.join(path_str(p) for p in graph.loose)}"
        )
    if not graph.uses_outputs:
        raise ValueError(
            "the loss does not depend on the model's outputs; loss_fn receives them as "
            "its first argument"
        )
    _check_params(problem, params, batch, graph)
    return graph


def _check_params(
    problem: Objective, params: Any, batch: Batch, graph: ModelGraph
) -> None:
    """Raises where params have entries that the model itself would not make.

    Parameters that no unit of this call uses are asked of `model.init`; those that it
    makes too are merely unreached.
    """
    if problem.method is not None or not graph.loose:
        return

    def init(batch):
        model, inputs = static_value(problem.model), batch.inputs
        return over_mapped_axis(
            problem.axis_name,
            lambda: model.init(dict(batch.rngs), *inputs.args, **inputs.kwargs)[
                "params"
            ],
        )

    try:
        made = jax.eval_shape(init, batch)
    except Exception:  # a model that is initialized in another way than it is called
        return
    known = set(flatten(unboxed(made)))
    foreign = [path_str(p) for p in graph.loose if p not in known]
    if foreign:
        raise ValueError(
            f"params have entries that {type(static_value(problem.model)).__name__} "
            f"has not: {', '.join(foreign[:8])}; pass model.init(key, inputs)['params']"
        )


def graph_of(model: nn.Module, variables: dict, args: tuple, how: dict) -> ModelGraph:
    """The units of one call of the model."""
    how = {k: v for k, v in how.items() if k != "mutable"}
    method, rngs = how.pop("method", None), how.pop("rngs", None)
    how.pop("capture_intermediates", None)

    def run(params, hook, mark, rest, inputs, rngs):
        with nn.intercept_methods(hook):
            out, _ = model.apply(
                {**rest, "params": params}, *inputs.args, rngs=rngs, method=method,
                mutable=flax.core.DenyList(("params", "intermediates")),
                **inputs.kwargs,
            )  # fmt: skip
        return mark(out)

    rest = {k: v for k, v in variables.items() if k not in ("params", "scales")}
    params = variables.get("params", {})
    return discover(run, params, rest, Inputs(*args, **how), rngs)


_type_ids = itertools.count()
"""A trace with another name in its parameters is taken from no cache."""


def module_types(
    task: Objective, params: Any, collections: Mapping, batch: Batch
) -> dict[Path, type]:
    """The class of each module that is called and has parameters at or below it."""
    types: dict[Path, type] = {}
    owners = {path[:i] for path in flatten(params) for i in range(len(path))}
    number = next(_type_ids)
    rides = {(*owner, f"{RIDE}{number} {path_str(owner)}"): {} for owner in owners}

    def act(call):
        types.setdefault(call.path, type(call.module))
        return call.proceed(*call.args, **call.kwargs)

    def run(params, collections, batch):
        hook = intercept_calls(lambda m: m.variables.get("params") or None, act)
        with nn.intercept_methods(hook):
            return over_mapped_axis(
                task.axis_name,
                lambda: outputs_of(task, params, collections, batch)[0],
            )

    jax.eval_shape(run, insert(params, rides), collections, batch)
    return types


_estimator_ids = itertools.count()
"""Never starts over: the trace of a call may come from a cache of an earlier one."""


def _mark_estimated(classes: Sequence[type], met: set[type]) -> Callable:
    """An interceptor that marks the inputs and outputs of modules of some classes."""

    def which(module: nn.Module) -> int | None:
        kinds = (i for i, c in enumerate(classes) if isinstance(module, c))
        return next(kinds, None)

    def read(module: nn.Module) -> Mapping | None:
        return None if which(module) is None else {}

    def act(call: Any) -> Any:
        kind = which(call.module)
        assert kind is not None
        met.add(classes[kind])
        name = f"{ESTIMATED} {kind} {next(_estimator_ids)}"
        args, kwargs = _name_arrays((call.args, dict(call.kwargs)), f"{name} in")
        return _name_arrays(call.proceed(*args, **kwargs), f"{name} out")

    return intercept_calls(read, act)


def _name_arrays(tree: Any, name: str) -> Any:
    leaves = Partition(tree)
    return leaves.build([checkpoint_name(x, name) for x in leaves.floats])
