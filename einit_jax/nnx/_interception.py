"""Calls of NNX modules as pure functions, handed to whoever measures."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
from flax import nnx
from jaxtyping import Array, Float

from ..core import Partition, float_leaves, is_float, multiply, shaped_like
from ..graph import transposed
from ..units import Interception, Unit, UnitCall, UnitKey
from ._hooked_classes import put_hook
from ._hooks import Handler, Hook, HookedCall, current_trace, entry_specs, unhooked
from ._nodes import Keys, at_keys, is_node, raw_value, with_value


def apart(tree: Any, data: frozenset[int] = frozenset()) -> Partition:
    """Inputs or outputs of a call; modules and random streams count as static."""
    return Partition(tree, data, is_leaf=is_node)


class NnxUnitCall:
    """A call of an NNX module as a pure function: a `units.UnitCall`."""

    def __init__(self, call: HookedCall):
        self.path, self.method, self.entries = call.hook.path, call.method, call.entries
        self._call, self.run = call, call.run
        self._inputs = apart((call.args, dict(call.kwargs)))
        self._nodes = [x for x in self._inputs.static if is_node(x)]
        self._outputs: Partition | None = None
        self._arrays: list[Any] = []
        self._start: _Snapshot | None = None
        self._written: list[Keys] = []
        self.inputs: list[Array] = self._inputs.floats

    @property
    def params(self) -> list[Array]:
        return float_leaves(self._call.hook.own(self._call.module))

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
        here = self._snapshot()
        resting = [jax.lax.stop_gradient(x) for x in here.floats]
        run = partial(self._run, here)
        outputs, transpose, rest = jax.vjp(run, resting, inputs, has_aux=True)
        self._keep(rest)
        return outputs, transpose

    def jvp(
        self, inputs: list[Array], step: list[Array], *, by_transposing: bool
    ) -> tuple[list[Array], list[Array]]:
        here = self._snapshot()
        step = [
            shaped_like(s.astype(x.dtype), x)
            for s, x in zip(step, here.floats, strict=True)
        ]
        if by_transposing:
            return self._transposed_twice(inputs, step)
        along = lambda floats: self._run(here, floats, inputs)
        outputs, moved, rest = jax.jvp(along, (here.floats,), (step,), has_aux=True)
        self._keep(rest)
        return outputs, moved

    def _transposed_twice(
        self, inputs: list[Array], step: list[Array]
    ) -> tuple[list[Array], list[Array]]:
        """Forward mode as the transpose of reverse mode."""
        here = self._snapshot()
        outputs, rest = self._run(here, here.floats, inputs)
        _, transpose = self.vjp([jax.lax.stop_gradient(x) for x in inputs])
        self._keep(rest)
        gradient = lambda cotangents: transpose(cotangents)[0]
        return outputs, transposed(gradient, outputs)(step)

    def rescaled(self, factor: Float[Array, ""]) -> list[Array]:
        self._start = self._start or self._snapshot()
        scaled = [multiply(x, factor) for x in self._start.floats]
        outputs, rest = self._run(self._start, scaled, self.inputs)
        self._keep(rest)
        return outputs

    def finish(self, outputs: list[Array]) -> Any:
        assert self._outputs is not None, "the call has not run"
        return self._outputs.build(outputs, self._arrays)

    def _snapshot(self) -> "_Snapshot":
        module, params = self._call.module, self._call.hook.params
        return _Snapshot([module, *self._nodes], params)

    def _run(
        self, start: "_Snapshot", floats: list[Array], inputs: list[Array]
    ) -> tuple[list[Array], tuple[list[Any], list[Any]]]:
        """The method as a function of its module's floats and its inputs alone.

        Also the outputs that do not float, and what the call has written.
        """
        values, (module, *nodes) = start.filled(floats)
        copies = iter(nodes)
        static = [next(copies) if is_node(x) else x for x in self._inputs.static]
        args, kwargs = self._inputs.build(inputs, static=static)
        with unhooked(module):
            outputs = self._apart(self._call.bind(module)(*args, **kwargs))
        self._outputs = outputs
        after = leaves_below([module, *nodes])
        params = {(0, *keys) for keys in self._call.hook.params}
        written = {
            keys: leaf
            for keys, leaf in after.items()
            if keys not in params
            and (keys not in values or raw_value(leaf) is not values[keys])
        }
        self._written = list(written)
        self._kinds = {k: type(x) for k, x in written.items()}
        return outputs.floats, (outputs.arrays, list(map(raw_value, written.values())))

    def _keep(self, rest: tuple[list[Any], list[Any]]) -> None:
        """Puts what the pure function has written into the module itself."""
        arrays, values = rest
        self._arrays = [jax.lax.stop_gradient(x) if is_float(x) else x for x in arrays]
        nodes = [self._call.module, *self._nodes]
        for keys, value in zip(self._written, values, strict=True):
            owner, name = at_keys(nodes, keys[:-1]), keys[-1]
            try:
                old = at_keys(owner, (name,))
            except (AttributeError, KeyError, IndexError):
                kind: Any = self._kinds[keys]
                new = kind(value) if issubclass(kind, nnx.Variable) else value
                setattr(owner, name, new)
                continue
            if isinstance(old, nnx.Variable):
                old.set_raw_value(value)
            else:
                setattr(owner, name, value)

    def _apart(self, outputs: Any) -> Partition:
        """What the call returns, with mere data among the arrays that do not float."""
        leaves = apart(outputs)
        if len(leaves.floats) < 2:
            return leaves
        data = self._call.run.data_of((self.path, self.method))
        return apart(outputs, data) if data else leaves


class _Snapshot:
    """A call's modules and random streams as they are: what they hold, by path."""

    def __init__(self, nodes: list[Any], params: tuple[Keys, ...]):
        self.graphdef, state = nnx.split(nodes, graph=True)
        self.leaves = dict(nnx.to_flat_state(state))
        self.params = [(0, *keys) for keys in params]
        own = [raw_value(self.leaves[keys]) for keys in self.params]
        self._own = Partition(own)
        self.floats: list[Array] = self._own.floats

    def filled(self, floats: list[Array]) -> tuple[dict[Keys, Any], list[Any]]:
        """What copies of these nodes hold, with other floating parameters; and them."""
        values = {keys: raw_value(leaf) for keys, leaf in self.leaves.items()}
        values |= dict(zip(self.params, self._own.build(floats), strict=True))
        state = {keys: with_value(self.leaves[keys], v) for keys, v in values.items()}
        return values, nnx.merge(self.graphdef, nnx.from_flat_state(state))


def leaves_below(nodes: list[Any]) -> dict[Keys, Any]:
    """The variables below some nodes, and arrays that are in none, by path."""
    return dict(nnx.to_flat_state(nnx.state(nodes, graph=True)))


@dataclass(frozen=True)
class UnitHandler:
    """Hands calls that have entries to an interception."""

    handle: Callable[[UnitCall, Any], Any]
    otherwise: Callable[[UnitCall], None]

    def __call__(self, call: HookedCall) -> Any:
        unit_call = NnxUnitCall(call)
        if call.method in call.entries:
            return self.handle(unit_call, call.entries[call.method])
        self.otherwise(unit_call)
        return call.proceed(*call.args, **call.kwargs)


@dataclass(frozen=True)
class CaptureHandler:
    """Lets the floating outputs of calls out, of those that the run's trace knows."""

    data_outputs: tuple[tuple[str, frozenset[int]], ...]
    """By method, which of them are mere data."""

    def __call__(self, call: HookedCall) -> Any:
        outputs = call.proceed(*call.args, **call.kwargs)
        data = dict(self.data_outputs).get(call.method)
        if data is not None:
            floats = apart(outputs, data).floats
            outside = call.run.trace == current_trace()
            key = (call.hook.path, call.method)
            call.run.captured.setdefault(key, []).append(floats if outside else None)
        return outputs


def intercepted(
    interceptions: Sequence[Interception], capture: Sequence[Unit]
) -> tuple[dict[Any, tuple[Handler, ...]], dict[Any, dict[str, dict[str, Any]]]]:
    """The handlers of each module, and what is carried to it, by path."""
    carried: dict[Any, dict[str, dict[str, Any]]] = {}
    for one in interceptions:
        for (path, method), entry in one.entries.items():
            carried.setdefault(path, {}).setdefault(one.name, {})[method] = entry
    captured: dict[Any, list[Unit]] = {}
    for unit in capture:
        captured.setdefault(unit.path, []).append(unit)
    handlers: dict[Any, list[Handler]] = {}
    for path, units in captured.items():
        data = tuple((unit.method, unit.data_outputs) for unit in units)
        handlers[path] = [Handler("capture", CaptureHandler(data))]
    for one in interceptions:
        handle = UnitHandler(one.handle, one.otherwise)
        for path, own in carried.items():
            if one.name in own:
                specs = entry_specs(one.name, own[one.name])
                handler = Handler(one.name, handle, specs)
                handlers.setdefault(path, []).append(handler)
    return {path: tuple(own) for path, own in handlers.items()}, carried


def captured_outputs(
    calls: Mapping[UnitKey, list[Any]], units: Sequence[Unit]
) -> dict[UnitKey, list[list[Array]]]:
    """The outputs, call by call, of the units all of whose calls were let out."""
    found = {}
    for unit in units:
        own = calls.get(unit.key, [])
        if unit.lifted_axes or len(own) != unit.calls or None in own:
            continue
        if all(tuple(t.shape for t in floats) == unit.shape for floats in own):
            found[unit.key] = own
    return found


def hook_modules(
    model: nnx.Module,
    hooks: Mapping[Keys, Hook],
    carried: Mapping[Any, Mapping[str, Mapping[str, Any]]],
) -> None:
    """Gives the modules of a model of our own their hooks."""
    for keys, hook in hooks.items():
        put_hook(at_keys(model, keys), hook, carried.get(hook.path, {}))
