"""Hooks: what a module of a model carries for whoever handles its calls.

What handlers need of arrays lies in variables beside the module's own, of a type that
is an `nnx.Param`: transforms slice them per layer as they do parameters. While the
module's own code runs they are out of its sight.
"""

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import jax
from flax import nnx
from jax.extend.core import get_opaque_trace_state

from ..core import Path, key_path
from ..units import UnitKey
from ._nodes import Keys, at_keys, raw_value

OURS = "einit:"
"""Prefix of every attribute that is ours."""
HOOK = "_" + OURS + "hook"
"""Of a name that NNX does not show."""


def is_ours(name: str) -> bool:
    """Whether an attribute of a module is of that kind."""
    return name.startswith((OURS, "_" + OURS))


class CarriedParam(nnx.Param):
    """An array that is carried to a module's handlers."""


@dataclass(frozen=True)
class Handler:
    """What is done with the calls of a module; equal by value."""

    name: str
    handle: Callable[["HookedCall"], Any]
    entries: tuple[Any, ...] = ()
    """An `EntrySpec` for each method for which something is carried."""

    def read(self, module: nnx.Module) -> dict[str, Any]:
        """What is carried to a module, by method."""
        found = {}
        for spec in self.entries:
            leaves = [raw_value(vars(module)[name]) for name in spec.attributes]
            found[spec.method] = jax.tree.unflatten(spec.treedef, leaves)
        return found


class EntrySpec(NamedTuple):
    """Where the arrays of what is carried for a method lie."""

    method: str
    attributes: tuple[str, ...]
    treedef: Any
    """Of the entry."""


def entry_specs(name: str, own: Mapping[str, Any]) -> tuple[EntrySpec, ...]:
    """What a handler of a name has to know of the entries of a module, by method."""
    specs = []
    for method, entry in own.items():
        leaves, treedef = jax.tree.flatten_with_path(entry)
        prefix = (name,) if method == "__call__" else (name, method)
        names = (OURS + ":".join((*prefix, *key_path(path))) for path, _ in leaves)
        specs.append(EntrySpec(method, tuple(names), treedef))
    return tuple(specs)


@dataclass(frozen=True)
class Hook:
    """What a module is known by, and who handles its calls."""

    path: Path
    params: tuple[Keys, ...]
    """Where its parameters lie, in the order of their paths."""
    handlers: tuple[Handler, ...]
    """The first one outermost."""
    around: Callable[[Any, str, tuple, dict], Any] | None = None
    """Runs the outermost call of a user's tuned model; None: a verb runs the model."""

    def own(self, module: nnx.Module) -> list[Any]:
        """The values of the module's parameters."""
        return [raw_value(at_keys(module, keys)) for keys in self.params]


@dataclass
class Run:
    """What runs of a model share while they run."""

    data_of: Callable[[UnitKey], frozenset[int]]
    active: list[Path] = field(default_factory=list)
    """The modules whose calls are being handled."""
    enclosing: list[UnitKey] = field(default_factory=list)
    captured: dict[UnitKey, list[Any]] = field(default_factory=dict)
    unseen: set[UnitKey] = field(default_factory=set)
    """Units of a tuned model that are called through methods without factors."""
    trace: Any = field(default_factory=lambda: current_trace())
    """Where the run began; arrays of other traces do not leave."""


def current_trace() -> Any:
    """What tells the trace that runs from others."""
    return get_opaque_trace_state(convention="nnx")


class _Runs(threading.local):
    def __init__(self):
        self.own: list[Run] = []
        self.users: list[Run] = []


_RUNS = _Runs()


@contextmanager
def running(run: Run, *, users: bool = False) -> Iterator[Run]:
    """Meanwhile calls of hooked modules belong to a run.

    With `users` those of a user's tuned modules do.
    """
    runs = _RUNS.users if users else _RUNS.own
    runs.append(run)
    try:
        yield run
    finally:
        runs.pop()


@dataclass(frozen=True)
class HookedCall:
    """One call of a module's method, about to run."""

    module: nnx.Module
    method: str
    hook: Hook
    entries: Mapping[str, Any]
    bind: Callable[[nnx.Module], Callable]
    """The method as the user's class defines it, bound to a module."""
    proceed: Callable
    """The method as handlers further in see it."""
    args: tuple
    kwargs: Mapping[str, Any]
    run: Run


def run_hook(
    module: nnx.Module,
    hook: Hook,
    method: tuple[str, Callable],
    inputs: tuple[tuple, dict],
) -> Any:
    """Runs a call through the handlers of a hook.

    `super().__call__`, and `__call__` that calls `self.encode`, come here again for a
    module whose call is being handled already: those calls pass.
    """
    (name, bind), (args, kwargs) = method, inputs
    runs = _RUNS.own if hook.around is None else _RUNS.users
    if hook.around is not None and not runs:
        return hook.around(module, name, args, kwargs)
    if not runs or hook.path in runs[-1].active:
        return bind(module)(*args, **kwargs)
    run = runs[-1]

    def step(level: int, *args: Any, **kwargs: Any) -> Any:
        if level == len(hook.handlers):
            with unhooked(module):
                return bind(module)(*args, **kwargs)
        handler, further = hook.handlers[level], partial(step, level + 1)
        entries = handler.read(module)
        call = HookedCall(module, name, hook, entries, bind, further, args, kwargs, run)
        return handler.handle(call)

    run.active.append(hook.path)
    try:
        return step(0, *args, **kwargs)
    finally:
        run.active.pop()


@contextmanager
def unhooked(module: Any) -> Iterator[None]:
    """Meanwhile a module has no attributes but those of its own, for it to look at."""
    names = [name for name in vars(module) if is_ours(name)]
    hidden = {name: vars(module).pop(name) for name in names}
    try:
        yield
    finally:
        vars(module).update(hidden)
