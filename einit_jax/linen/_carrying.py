"""What is carried to units while a model runs, out of sight of the model's own code.

Entries travel in a collection of their own, nested as `params` are. Most lifted
transforms carry every collection that there is. `nn.scan` and `nn.vmap` carry those
that the user lists, nearly always `params` alone: what must pass such a transform is
put among the parameters where it is entered, and taken out again at the first call
inside, split along the axes along which the parameters are. Where that is needed nobody
knows before: a call that is seen without its entries makes the run start over.
"""

import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from flax import linen as nn
from flax.core.scope import Scope

from ..core import Path, insert, is_under, path_str
from ._entries import (
    COLLECTION,
    Hidden,
    entries_under,
    is_entry,
    path_of,
    take_from_params,
    variables_of,
)


class Call(NamedTuple):
    """Where in a run a call of a module is; the same in every run."""

    path: Path
    debug_path: Path
    """The path, with the names of the lifted transforms around."""
    method: str


class Lost(BaseException):  # no user code is to catch it
    """A call is seen without its entries: a transform has not let them through."""

    def __init__(self, around: Call, paths: Sequence[Path]):
        self.around, self.paths = around, paths


CALLER = Call((), (), "")
"""Whoever applies the model."""


class Carried(NamedTuple):
    """What one run carries."""

    entries: Mapping[Path, Any]
    """By path, that of the module with a name that begins with `CARRIED`."""
    among_params: frozenset[Path] = frozenset()
    """The modules whose entries start among the parameters: the model is lifted."""

    def beside(self, variables: Mapping[str, Any]) -> dict[str, Any]:
        """The variables of the model, with what is carried."""
        if not self.entries:
            return dict(variables)
        carried = insert(variables.get(COLLECTION, {}), self.entries)
        variables = {**variables, COLLECTION: carried}
        lifted = entries_under(self.entries, self.among_params)
        if lifted:
            variables["params"] = insert(variables.get("params", {}), lifted)
        return variables


AmongParams = dict[Call, frozenset[Path]]
"""At which calls the entries of which modules are put among the parameters."""


def found_of(model: Any, method: Any) -> AmongParams:
    """What runs of a model have found out, for later ones to begin with.

    What a run that is given up has done to the outside (a callback, a message at each
    trace) it has done, so there is to be but one.
    """
    try:
        return _found_of(model, method)
    except TypeError:  # what cannot be hashed
        return {}


@lru_cache
def _found_of(model: Any, method: Any) -> AmongParams:
    return {}


def run_carrying(
    run: Callable[[Carried], Any],
    hooks: Sequence[Callable],
    entries: Mapping[Path, Any],
    among_params: AmongParams,
) -> Any:
    """`run(carried)` under interceptors, entries handed on from call to call.

    Args:
        run: applies the model to its variables and what is carried beside them.
        hooks: interceptors of calls, the first one outermost.
        entries: what is carried, by path; its last name begins with `CARRIED`.
        among_params: what earlier runs have found out; what this one does is added.
    """
    while True:
        carrier = Carrier({path[:-1] for path in entries}, among_params)
        with contextlib.ExitStack() as stack:
            for hook in (carrier.intercept, *hooks):
                stack.enter_context(nn.intercept_methods(hook))
            try:
                return run(Carried(entries, among_params.get(CALLER, frozenset())))
            except Lost as lost:
                before = among_params.get(lost.around, frozenset())
                among_params[lost.around] = before.union(lost.paths)


class _Frame(NamedTuple):
    """A call that runs."""

    call: Call
    arrived: bool
    """Whether the entries of all that is inside have arrived."""
    reads: bool
    """Whether it is a method's, which reads the entries of its own module."""


class Carrier:
    """Hands entries on, from each call to those inside of it, in one run."""

    def __init__(
        self, paths: Iterable[Path], among_params: Mapping[Call, frozenset[Path]]
    ):
        self.among_params = among_params
        self._below: dict[Path, list[Path]] = {}
        for path in sorted(set(paths)):
            for i in range(len(path) + 1):
                self._below.setdefault(path[:i], []).append(path)
        self._running = [_Frame(CALLER, arrived=True, reads=False)]

    def intercept(self, proceed: Callable, args: Any, kwargs: Any, context: Any) -> Any:
        """The interceptor, for `nn.intercept_methods`."""
        module, method = context.module, context.method_name
        scope = module.scope
        inside = self._inside(scope)
        if not inside:
            return proceed(*args, **kwargs)
        call = Call(path_of(scope), scope.debug_path, method)
        arrived = self._receive(scope, call, inside)
        reads = arrived and method != "setup" and hasattr(type(module), method)
        self._running.append(_Frame(call, arrived, reads))
        moved = self.among_params.get(call, ()) if arrived else ()
        hidden = Hidden(scope, moved)
        try:
            return proceed(*args, **kwargs)
        finally:
            self._running.pop()
            hidden.remove()

    def _inside(self, scope: Scope | None) -> list[Path]:
        """The modules at or below a scope that have not read their entries yet."""
        below = self._below.get(path_of(scope), []) if scope is not None else []
        read = {frame.call.path for frame in self._running if frame.reads}
        return [path for path in below if path not in read]

    def _receive(self, scope: Scope, call: Call, inside: Sequence[Path]) -> bool:
        """Whether the entries of all that is inside are there, after they are put so.

        A module of another `apply` inside of the model has none, and needs none.

        Raises:
            Lost: a transform has kept them back.
        """
        missing = _missing(variables_of(scope).get(COLLECTION, {}), call.path, inside)
        if not missing:
            return True
        take_from_params(scope)
        missing = _missing(variables_of(scope).get(COLLECTION, {}), call.path, inside)
        if not missing:
            return True
        contains = lambda frame: is_under(call.path, frame.call.path)
        around = next(filter(contains, reversed(self._running)))
        if not around.arrived or not _is_lifted(call, around.call):
            return False
        if set(missing) <= self.among_params.get(around.call, frozenset()):
            raise ValueError(
                f"{path_str(call.path)}: nothing can be carried through the lifted "
                f"transforms {'/'.join(call.debug_path)}; let them carry all "
                "collections, or 'params' at least"
            )
        raise Lost(around.call, missing)


def _is_lifted(call: Call, around: Call) -> bool:
    """Whether a lifted transform lies between two calls, the names of which tell."""
    inner, outer = ("/".join(c.debug_path).count("(") for c in (call, around))
    return inner > outer


def _missing(carried: Any, at: Path, paths: Iterable[Path]) -> list[Path]:
    """The paths of those modules below `at` that have no entry."""
    return [path for path in paths if not _has_entry(carried, path[len(at) :])]


def _has_entry(carried: Any, path: Path) -> bool:
    for name in path:
        carried = carried.get(name, {})
    return any(map(is_entry, carried))
