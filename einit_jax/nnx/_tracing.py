"""Every trace of an NNX model is made here: with marks, and read by `graph`."""

import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Jaxpr

from ..core import Collections, ModelArgs, Params, Path, flatten, unboxed
from ..graph import Mark, bodies, discover
from ..units import ModelGraph, Unit
from ._explanations import READS_ALL
from ._functional import ModuleSpec, NnxModel
from ._hooks import Handler, Hook, HookedCall, entry_specs
from ._interception import apart
from ._nodes import leaves_of, path_of_keys

_numbers = itertools.count()
"""Numbers calls, and never starts over: `nnx.jit` may take the trace of a call from its
cache, with the marks of an earlier one."""


def trace_marked(
    run: Callable[[Callable, ModelArgs], Any],
    args: ModelArgs,
    plain: Callable[[ModelArgs], Any],
) -> ModelGraph:
    """The units of a model.

    Args:
        run: `run(mark, args)` runs the model (and its loss), its modules hooked by
            `marking_hooks`, and passes the model's outputs through `mark`.
        args: what it runs on; arrays or shapes.
        plain: runs the same without any hook.

    Raises:
        ValueError: the model computes something else when its modules have hooks.
    """
    shapes = {p: np.shape(leaf) for p, leaf in flatten(unboxed(args.params)).items()}

    def traced(params: Params, collections: Collections, batch: Any) -> Any:
        return run(Mark("result").on, ModelArgs(params, collections, batch))

    # a new function each time, or jax would take the trace from its cache
    closed = jax.make_jaxpr(partial(traced))(*args)
    unmarked = jax.make_jaxpr(lambda *args: plain(ModelArgs(*args)))(*args)
    _check_alike(operations(closed.jaxpr), operations(unmarked.jaxpr))
    return discover(closed.jaxpr, closed.consts, shapes)


def operations(jaxpr: Jaxpr) -> Counter[str]:
    """How often each primitive occurs, those of marks and calls aside."""
    found: Counter[str] = Counter()
    for eqn in jaxpr.eqns:
        name = eqn.primitive.name
        found.update([] if name in AROUND else [name])
        for body in bodies(eqn):
            found.update(operations(body))
    return found


AROUND = {"name", "custom_jvp_call", "jit", "pjit", "closed_call"}
AROUND |= {"convert_element_type", "copy", "copy_p"}
"""Primitives that marks are, that lie around others, or that types alone ask for."""


def _check_alike(marked: Counter[str], plain: Counter[str]) -> None:
    """Raises a ValueError where a trace with hooks has lost operations.

    It may have more: what numpy has computed beforehand is traced behind a mark.
    """
    lost = sorted(plain - marked)
    if lost:
        raise ValueError(
            "the model computes something else when its modules are watched, without "
            f"{', '.join(lost[:6])}: they are of subclasses of their classes then, and "
            "something asks for a class by type(module) is ...; ask by isinstance"
        )


HANDING_ON = {
    "broadcast_in_dim",
    "transpose",
    "reshape",
    "squeeze",
    "slice",
    "concatenate",
}
HANDING_ON |= {"dynamic_slice", "dynamic_update_slice", "stop_gradient"}
"""Primitives by which transforms hand on what a module holds."""


def check_unread(
    run: Callable[[ModelArgs], Any], args: ModelArgs, seen: Jaxpr, name: str
) -> None:
    """Raises a ValueError where a model or its loss computes with what is carried.

    Args:
        run: runs the model and its loss, its modules hooked by `passing_hooks`.
        args: what it runs on.
        seen: the trace of the same with nothing carried.
        name: of the model's class.
    """
    carried = jax.make_jaxpr(lambda *args: run(ModelArgs(*args)))(*args)
    added = operations(carried.jaxpr) - operations(seen)
    if added.keys() - HANDING_ON:
        raise ValueError(READS_ALL.format(name))


def passing_hooks(
    model: NnxModel, units: Sequence[Unit]
) -> tuple[dict[Any, Hook], dict[Path, dict[str, dict[str, Any]]]]:
    """Hooks by which something is carried to each unit, and nothing done; and that."""
    own: dict[Path, dict[str, Any]] = {}
    for unit in units:
        one = jnp.ones(unit.carried_shape, jnp.float32)
        own.setdefault(unit.path, {})[unit.method] = one
    hooks = {}
    for spec in model.modules:
        if spec.path in own:
            handler = Handler("passed", _pass, entry_specs("passed", own[spec.path]))
            hooks[spec.keys] = Hook(spec.path, spec.params, (handler,))
    return hooks, {path: {"passed": entries} for path, entries in own.items()}


def _pass(call: HookedCall) -> Any:
    return call.proceed(*call.args, **call.kwargs)


def marking_hooks(model: NnxModel, estimated: tuple[type, ...] = ()) -> dict[Any, Hook]:
    """The hooks that mark all calls of modules with parameters at or below them.

    Calls of modules of the classes `estimated` are marked, too.
    """
    hooks = {}
    for spec in model.modules:
        handlers = []
        number = _number_of(spec, estimated)
        if number is not None:
            handlers.append(Handler("estimated", partial(_mark_estimated, number)))
        if spec.params:
            handlers.append(Handler("mark", _mark_call))
        if handlers:
            hooks[spec.keys] = Hook(spec.path, spec.params, tuple(handlers))
    return hooks


def _number_of(spec: ModuleSpec, classes: tuple[type, ...]) -> int | None:
    numbers = (i for i, c in enumerate(classes) if issubclass(spec.module_type, c))
    return next(numbers, None)


def _mark_call(call: HookedCall) -> Any:
    """Runs a call with its inputs and outputs marked."""
    key = (call.hook.path, call.method)
    mark = Mark(
        role="input",
        call=next(_numbers),
        path=call.hook.path,
        method=call.method,
        enclosing=tuple(call.run.enclosing),
    )
    args, kwargs = _marked(mark, (call.args, dict(call.kwargs)))
    shapes = {
        "/".join((*path_of_keys(keys), *below)): np.shape(leaf)
        for keys, value in zip(
            call.hook.params, call.hook.own(call.module), strict=True
        )
        for below, leaf in leaves_of(value)
    }
    call.run.enclosing.append(key)
    try:
        outputs = call.proceed(*args, **kwargs)
    finally:
        call.run.enclosing.pop()
    leaves = apart(outputs)
    derivative = mark._replace(role="derivative")
    leaves.floats = derivative.where_differentiated(leaves.floats)
    mark = mark._replace(
        role="output",
        module_type=type(call.module).__name__,
        output_shapes=tuple(leaf.shape for leaf in leaves.floats),
        param_shapes=shapes,
    )
    return _marked(mark, leaves.build(leaves.floats))


def _marked(mark: Mark, tree: Any) -> Any:
    """The tree with its arrays marked; modules and random streams are left alone."""
    leaves = apart(tree)
    floats, arrays = mark.on((leaves.floats, leaves.arrays))
    return leaves.build(floats, arrays)


def _mark_estimated(number: int, call: HookedCall) -> Any:
    """Runs a call of a module that has an estimator, inputs and outputs marked."""
    path = call.hook.path
    mark = Mark("estimated_input", next(_numbers), path, estimator=number)
    args, kwargs = _marked(mark, (call.args, dict(call.kwargs)))
    outputs = call.proceed(*args, **kwargs)
    return _marked(mark._replace(role="estimated_output"), outputs)
