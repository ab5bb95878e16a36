"""Tuned NNX models: modules of the user's own classes, with factors in each unit."""

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, cast

import jax
import jax.numpy as jnp
from flax import nnx

from ..core import Path, path_str
from ..objectives import DataOf, knowing_data
from ..units import (
    ModelGraph,
    UnitCall,
    UnitKey,
    check_methods,
    from_tree,
    may_lack,
    raw_from_tree,
    scale_raw_gradient,
    scaling,
)
from ._functional import NnxModel, functional
from ._hooked_classes import put_hook, without_hooks
from ._hooks import (
    HOOK,
    OURS,
    CarriedParam,
    Handler,
    Hook,
    Run,
    entry_specs,
    running,
)
from ._interception import NnxUnitCall, UnitHandler
from ._nodes import Keys, as_nested, at_keys, is_node, path_of_keys, raw_value
from ._watched import Snapshot, nodes_in, trace_nnx_call

RAW = OURS + "raw:"
"""Prefix of the attributes that hold factors of raw parameters."""


class Scale(nnx.Variable):
    """A scale factor: no parameter, so that no optimizer trains it."""


class ScaleInForce(CarriedParam):
    """What a `Scale` is while its model runs: transforms slice it as parameters."""


def nnx_scaled(module: nnx.Module, scales: Mapping[str, Any]) -> nnx.Module:
    """A copy of a model, with the factors of `scales` in its units.

    Raises:
        TypeError, ValueError: scales are of another model.
    """
    copy = without_hooks(module)
    model, params, _ = functional(copy)
    nested = as_nested(scales)
    factors = from_tree(nested, params)
    by_path: dict[Path, dict[str, Any]] = {}
    for (path, method), own in factors.items():
        forward = {name: jnp.asarray(own[name]) for name in own if name != "update"}
        by_path.setdefault(path, {})[method] = forward
    _check_modules(model, factors)
    handle = UnitHandler(scaling({}).handle, _note_unseen)
    outermost = Outermost(frozenset(factors), may_lack(params, factors))
    for spec in model.modules:
        own = by_path.get(spec.path)
        handlers = ()
        if own is not None:
            handlers = (Handler("scale", handle, entry_specs("scale", own)),)
        if spec.params or not spec.keys:
            hook = Hook(spec.path, spec.params, handlers, outermost)
            put_hook(at_keys(copy, spec.keys), hook, {"scale": own or {}}, Scale)
    for path, own in raw_from_tree(nested, params).items():
        if "output_grad" in own:
            _put_raw(copy, model, path, jnp.asarray(own["output_grad"]))
    return copy


def _check_modules(model: NnxModel, factors: Collection[UnitKey]) -> None:
    """Raises a ValueError where factors are of no module, or of no method of one."""
    types = {spec.path: spec.module_type for spec in model.modules}
    foreign = [
        path_str(path, method)
        for path, method in factors
        if not hasattr(types.get(path), method)
    ]
    if foreign:
        raise ValueError(
            f"scales have entries of no module of {model.name}, and of no method of "
            f"one: {', '.join(foreign[:8])}; they were tuned for another model; tune "
            "this one"
        )


def _put_raw(copy: nnx.Module, model: NnxModel, path: Path, factor: Any) -> None:
    """Puts the factor of a raw parameter into the module that it lies in."""
    keys = next(leaf.keys for leaf in model.leaves if leaf.path == path)
    around = range(len(keys) - 1, -1, -1)
    owner = next(n for n in around if HOOK in vars(at_keys(copy, keys[:n])))
    below = keys[owner:]
    name = RAW + path_str(path_of_keys(below))
    factor = Scale(factor, of=below)
    nnx.Module.__setattr__(at_keys(copy, keys[:owner]), name, factor)


@dataclass(frozen=True)
class Outermost:
    """Runs a call of a tuned module that none of its model's other modules makes."""

    tuned: frozenset[UnitKey]
    """The units that have factors."""
    may_lack: bool
    """Whether some module owns parameters, and no unit with factors is near it."""

    def __call__(self, module: Any, name: str, args: tuple, kwargs: dict) -> Any:
        prefix = vars(module)[HOOK].path
        traced = cache(lambda: trace_nnx_call(module, args, kwargs, name))
        if self.may_lack:
            self._check_missing(traced(), prefix)
        state, unseen = Snapshot([module, *nodes_in((args, kwargs))]), set()

        def call(data_of: DataOf) -> Any:
            of_whole = lambda key: data_of((key[0][len(prefix) :], key[1]))
            state.restore()
            with running(Run(of_whole, unseen=unseen), users=True), _in_force(module):
                return getattr(module, name)(*args, **kwargs)

        outputs = knowing_data(call, traced)
        if unseen:
            state.restore()
            self._check_missing(traced(), prefix)
            return knowing_data(call, traced)
        return outputs

    def _check_missing(self, graph: ModelGraph, prefix: Path) -> None:
        """Raises a ValueError where a unit of this call has no factors."""
        keys = [((*prefix, *unit.path), unit.method) for unit in graph.units]
        lacking = [path_str(*key) for key in keys if key not in self.tuned]
        if lacking:
            raise ValueError(
                f"scales are missing for {', '.join(lacking[:8])}: they were tuned for "
                "another model or another method; tune with the method that is called"
            )


def _note_unseen(call: UnitCall) -> None:
    """Notes a call of a unit through a method that has no factors."""
    check_methods(call)
    if call.has_data():
        cast(NnxUnitCall, call).run.unseen.add((call.path, call.method))


@contextmanager
def _in_force(module: Any) -> Iterator[None]:
    """Meanwhile transforms slice the factors below a module as its parameters, and the
    gradients of raw parameters are multiplied by theirs, which no transform sees: one
    factor may be of a parameter that is mapped over."""
    nodes = [node for _, node in nnx.iter_graph(module)]
    factors = [node for node in nodes if type(node) is Scale]
    raw = [
        (node, name) for node in nodes if is_node(node) for name in vars(node)
        if name.startswith(RAW)
    ]  # fmt: skip
    before = [_multiply_gradient(node, name) for node, name in raw]
    for factor in factors:
        object.__setattr__(factor, "__class__", ScaleInForce)
    try:
        yield
    finally:
        for factor in factors:
            object.__setattr__(factor, "__class__", Scale)
        for put_back in before:
            put_back()


def _multiply_gradient(node: Any, name: str) -> Callable[[], None]:
    """Puts a raw parameter's factor into force; returns what takes it back."""
    hidden = vars(node).pop(name)
    keys: Keys = hidden.get_metadata("of")
    factor = raw_value(hidden)
    owner, last = at_keys(node, keys[:-1]), keys[-1]
    leaf = at_keys(owner, (last,))
    value = raw_value(leaf)

    if isinstance(leaf, nnx.Variable):
        put = lambda new: object.__setattr__(leaf, "_raw_value", new)
    else:
        put = lambda new: object.__setattr__(owner, last, new)

    def put_back() -> None:
        put(value)
        vars(node)[name] = hidden

    put(jax.tree.map(lambda x: scale_raw_gradient(x, factor), value))
    return put_back
