"""The one hook into Flax: calls of modules, intercepted by `nn.intercept_methods`."""

from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float

from ..core import (
    Partition,
    Path,
    float_leaves,
    is_float,
    multiply,
    plain,
    shaped_like,
)
from ..graph import transposed
from ..units import Interception, UnitKey
from ._carrying import Carried, Found, run_carrying
from ._checks import check_unit
from ._entries import CARRIED, COLLECTION, path_of, resting_params

_depth: ContextVar[int] = ContextVar("depth", default=0)
"""How many intercepted runs are under way. Where a model applies a scaled one, calls of
that pass the interceptors of both, which tell their entries by the name."""


@dataclass(frozen=True)
class ModuleCall:
    """One call of a module's method, about to run."""

    module: nn.Module
    method: str
    entries: Mapping[str, Any]
    function: Callable
    """The method as the class defines it."""
    proceed: Callable
    """The method as interceptors further in see it."""
    args: tuple
    kwargs: Mapping[str, Any]

    @property
    def path(self) -> Path:
        assert self.module.scope is not None, "no call of an unbound module is seen"
        return path_of(self.module.scope)


def intercept_calls(
    read: Callable[[nn.Module], Mapping[str, Any] | None],
    handle: Callable[[ModuleCall], Any],
) -> Callable:
    """An interceptor that hands `handle` the outermost call of each module at a time.

    `read` returns what is carried to the module, or None to let its calls pass.
    `super().__call__`, `__call__` that calls `self.encode`, and the clones that lifted
    transforms make run the interceptor again for a path whose call is being handled
    already: those calls pass.
    """
    active: list[Path] = []

    def intercept(proceed, args, kwargs, context):
        module, method = context.module, context.method_name
        if module.scope is None or method == "setup":
            return proceed(*args, **kwargs)
        path = path_of(module.scope)
        if path in active:
            return proceed(*args, **kwargs)
        if not hasattr(type(module), method):  # a function that Flax lifts, not ours
            return proceed(*args, **kwargs)
        entries = read(module)
        if entries is None:
            return proceed(*args, **kwargs)
        function = context.orig_method.func
        call = ModuleCall(module, method, entries, function, proceed, args, kwargs)
        active.append(path)
        try:
            return handle(call)
        finally:
            active.pop()

    return intercept


def run_intercepted(
    apply: Callable[[Carried], Any],
    interceptions: Sequence[Interception],
    data_of: Callable[[UnitKey], frozenset[int]],
    found: Found,
) -> Any:
    """`apply(carried)` with calls of units intercepted, the first one outermost.

    `data_of` tells which of a unit's floating outputs are mere data; it is asked where
    there are several. `found` is from `found_of` the model.
    """
    depth = _depth.get()
    name_of = lambda one: CARRIED + one.name + "'" * depth
    entries: dict[Path, dict] = {}
    for one in interceptions:
        for (path, method), entry in one.entries.items():
            entries.setdefault((*path, name_of(one)), {})[method] = entry
    if not entries:
        return apply(Carried({}))
    hooks = [intercept_units(one, name_of(one), data_of) for one in interceptions]
    deeper = _depth.set(depth + 1)
    try:
        return run_carrying(apply, hooks, entries, found)
    finally:
        _depth.reset(deeper)


def intercept_units(
    interception: Interception,
    name: str,
    data_of: Callable[[UnitKey], frozenset[int]],
) -> Callable:
    """The interceptor of the modules to which an entry of a name is carried."""

    def read(module: nn.Module) -> Mapping[str, Any] | None:
        if not module.has_variable(COLLECTION, name):
            return None
        # whatever container a transform made of it: custom rules return dicts
        return plain(module.get_variable(COLLECTION, name))

    def handle(call: ModuleCall) -> Any:
        check_unit(call.module)
        unit_call = LinenUnitCall(call, data_of)
        if call.method in call.entries:
            return interception.handle(unit_call, call.entries[call.method])
        interception.otherwise(unit_call)
        return call.proceed(*call.args, **call.kwargs)

    return intercept_calls(read, handle)


class LinenUnitCall:
    """A call of a Linen module as a pure function: a `units.UnitCall`."""

    def __init__(self, call: ModuleCall, data_of: Callable[[UnitKey], frozenset[int]]):
        self.path, self.method, self.entries = call.path, call.method, call.entries
        self._call, self._data_of = call, data_of
        self._inputs = Partition((call.args, dict(call.kwargs)))
        self._outputs: Partition | None = None
        self._arrays: list[Any] = []
        self._key_counts: list[dict] | None = None
        self.inputs: list[Array] = self._inputs.floats

    @property
    def params(self) -> list[Array]:
        return float_leaves(self._call.module.variables["params"])

    def has_method(self, name: str) -> bool:
        return hasattr(type(self._call.module), name)

    def has_data(self) -> bool:
        return self._inputs.has_data()

    def proceed(self, inputs: list[Array]) -> list[Array]:
        args, kwargs = self._inputs.build(inputs)
        outputs = self._apart(self._call.proceed(*args, **kwargs))
        self._outputs, self._arrays = outputs, outputs.arrays
        return outputs.floats

    def vjp(self, inputs: list[Array]) -> tuple[list[Array], Callable]:
        module = self._call.module
        with resting_params(_scopes(module)):
            outputs, transpose, arrays = nn.vjp(  # pyright: ignore[reportAssignmentType]
                self._function(), module, *inputs, has_aux=True, multi_scope=True
            )
        self._arrays = _still(arrays)
        return outputs, jax.tree_util.Partial(_split_gradients, transpose)

    def jvp(
        self, inputs: list[Array], step: list[Array], *, by_transposing: bool
    ) -> tuple[list[Array], list[Array]]:
        if by_transposing or _has_modules(self._call.module):
            return self._transposed_twice(inputs, step)
        numbered = iter(step)

        def tangent(value: Any) -> Any:
            if is_float(value):
                return shaped_like(next(numbered), value)
            return np.zeros(jnp.shape(value), jax.dtypes.float0)

        own = self._call.module.variables["params"]
        tangents = {"params": jax.tree.map(tangent, own)}
        function = self._function()
        bound = lambda module: function(module, *inputs)
        lifted: Any = nn.jvp(bound, self._call.module, (), (), tangents)
        (outputs, arrays), (moved, _) = lifted
        self._arrays = _still(arrays)
        return outputs, moved

    def _transposed_twice(
        self, inputs: list[Array], step: list[Array]
    ) -> tuple[list[Array], list[Array]]:
        """Forward mode as the transpose of reverse mode."""
        outputs, arrays = self._function()(self._call.module, *inputs)
        _, transpose = self.vjp([jax.lax.stop_gradient(x) for x in inputs])
        self._arrays = arrays

        def gradient(cotangents: list[Array]) -> list[Array]:
            own, _ = transpose(cotangents)
            return [shaped_like(g, s) for g, s in zip(own, step, strict=True)]

        return outputs, transposed(gradient, outputs)(step)

    def rescaled(self, factor: Float[Array, ""]) -> list[Array]:
        self._rewind_keys()
        scale = partial(_scale_own, factor)
        lifted = nn.map_variables(self._function(), "params", scale, mutable=True)
        outputs, self._arrays = lifted(self._call.module, *self.inputs)
        return outputs

    def finish(self, outputs: list[Array]) -> Any:
        assert self._outputs is not None, "the call has not run"
        return self._outputs.build(outputs, self._arrays)

    def _function(self) -> Callable[..., tuple[list, list]]:
        """The method as a function of its module and its floating inputs alone."""
        call = self._call

        def run(module: nn.Module, *floats: Any) -> tuple[list, list]:
            args, kwargs = self._inputs.build(list(floats))
            outputs = call.function(module, *args, **kwargs)
            self._outputs = self._apart(outputs)
            return self._outputs.floats, self._outputs.arrays

        return nn.compact(run) if hasattr(call.function, "compact") else run

    def _apart(self, outputs: Any) -> Partition:
        """What the call returns, with mere data among the arrays that do not float."""
        leaves = Partition(outputs)
        several = len(leaves.floats) > 1
        data = self._data_of((self.path, self.method)) if several else ()
        return Partition(outputs, data) if data else leaves

    def _rewind_keys(self) -> None:
        """Sets the counts of random keys back to where the first run began."""
        counters = [scope.rng_counters for scope in _scopes(self._call.module)]
        if self._key_counts is None:
            self._key_counts = [dict(counts) for counts in counters]
        for counts, first in zip(counters, self._key_counts, strict=True):
            counts.update(first)


def _still(arrays: list[Any]) -> list[Any]:
    """Arrays that are mere data, such that no gradient is taken through them."""
    return [jax.lax.stop_gradient(x) if is_float(x) else x for x in arrays]


def _split_gradients(transpose: Any, cotangents: list) -> tuple[list, list]:
    """The gradients of a unit's own floating parameters, and of its floating inputs.

    What `nn.vjp` returns would nest them by modules, and fails at that where several
    have one scope in common; the function inside of it does not.
    """
    (by_scope,) = transpose.args
    of_variables, *of_inputs = by_scope(cotangents)
    return float_leaves(of_variables), list(of_inputs)


def _has_modules(module: nn.Module) -> bool:
    """Whether a module has others among its fields, with scopes of their own or its.

    `nn.jvp` takes no such module.
    """
    values = [getattr(module, f.name) for f in fields(module) if f.name != "parent"]
    is_module = lambda x: isinstance(x, nn.Module)
    return any(map(is_module, jax.tree.leaves(values, is_leaf=is_module)))


def _scale_own(factor: Array, variables: Any) -> Any:
    """A unit's own floating parameters times a factor."""

    scale = lambda value: multiply(value, factor) if is_float(value) else value
    return jax.tree.map(scale, variables)


def _scopes(module: nn.Module) -> list[Any]:
    """The scopes of a module and of what it has set up, where keys are counted."""
    inner = [value for name, value in vars(module).items() if name != "parent"]
    is_module = lambda x: isinstance(x, nn.Module) and x.scope is not None
    modules = [x for x in jax.tree.leaves(inner, is_leaf=is_module) if is_module(x)]
    below = [x for x in modules if len(x.path) > len(module.path)]
    return [module.scope] + [scope for x in below for scope in _scopes(x)]
