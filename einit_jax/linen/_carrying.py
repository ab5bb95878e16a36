"""What is carried to units while a model runs, out of sight of the model's own code.

Entries travel in a collection of their own, nested as `params` are. Most lifted
transforms carry every collection that there is. `nn.scan` and `nn.vmap` carry those
that the user lists, nearly always `params` alone: what must pass such a transform is
put among the parameters where it is entered, and taken out again at the first call
inside, split along the axes along which the parameters are.
`nn.map_variables` by default hands all collections to the user's function: entries are
held back before, and taken from where they were behind it. Where any of that is needed
nobody knows before: a call that is seen without its entries makes the run start over.
"""

import contextlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
from flax import linen as nn
from flax.core.scope import Scope

from ..core import Path, insert, is_under, path_str
from ._entries import (
    COLLECTION,
    MAPS_VARIABLES,
    Hidden,
    entries_under,
    find_entries,
    is_entry,
    lifted_by,
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


class Moved(NamedTuple):
    """The modules whose entries are elsewhere while a call runs."""

    to_params: frozenset[Path] = frozenset()
    """Among the parameters."""
    held_back: frozenset[Path] = frozenset()
    """Nowhere."""

    def union(self, other: "Moved") -> "Moved":
        return Moved(*(a | b for a, b in zip(self, other, strict=True)))


class Lost(BaseException):  # no user code is to catch it
    """A call is seen without its entries: a transform has not let them through."""

    def __init__(self, around: Call, moved: Moved):
        self.around, self.moved = around, moved


Found = dict[Call, Moved]
"""What runs of a model have found out."""


CALLER = Call((), (), "")
"""Whoever applies the model."""


class Carried(NamedTuple):
    """What one run carries."""

    entries: Mapping[Path, Any]
    """By path, that of the module with a name that begins with `CARRIED`."""
    moved: Moved = Moved()
    """The modules whose entries start elsewhere: the model itself is lifted."""

    def beside(self, variables: Mapping[str, Any]) -> dict[str, Any]:
        """The variables of the model, with what is carried."""
        if not self.entries:
            return dict(variables)
        held = entries_under(self.entries, self.moved.held_back)
        seen = {path: e for path, e in self.entries.items() if path not in held}
        carried = insert(variables.get(COLLECTION, {}), seen)
        variables = {**variables, COLLECTION: carried}
        lifted = entries_under(seen, self.moved.to_params)
        if lifted:
            variables["params"] = insert(variables.get("params", {}), lifted)
        return variables


def found_of(model: Any, method: Any) -> Found:
    """What runs of a model have found out, for later ones to begin with.

    What a run that is given up has done to the outside (a callback, a message at each
    trace) it has done, so there is to be but one.
    """
    try:
        return _found_of(model, method)
    except TypeError:  # what cannot be hashed
        return {}


@lru_cache
def _found_of(model: Any, method: Any) -> Found:
    return {}


def run_carrying(
    run: Callable[[Carried], Any],
    hooks: Sequence[Callable],
    entries: Mapping[Path, Any],
    found: Found,
) -> Any:
    """`run(carried)` under interceptors, entries handed on from call to call.

    Args:
        run: applies the model to its variables and what is carried beside them.
        hooks: interceptors of calls, the first one outermost.
        entries: what is carried, by path; its last name begins with `CARRIED`.
        found: what earlier runs have found out; what this one does is added.
    """
    while True:
        carrier = Carrier(entries, found)
        with contextlib.ExitStack() as stack:
            for hook in (carrier.intercept, *hooks):
                stack.enter_context(nn.intercept_methods(hook))
            try:
                return run(Carried(entries, found.get(CALLER, Moved())))
            except Lost as lost:
                before = found.get(lost.around, Moved())
                found[lost.around] = before.union(lost.moved)


class _Frame(NamedTuple):
    """A call that runs."""

    call: Call
    arrived: bool
    """Whether the entries of all that is inside have arrived."""
    reads: bool
    """Whether it is a method's, which reads the entries of its own module."""
    entries: Callable[[], Mapping[Path, Any]]
    """What is carried there, by the path below it."""


class Carrier:
    """Hands entries on, from each call to those inside of it, in one run."""

    def __init__(self, entries: Mapping[Path, Any], found: Mapping[Call, Moved]):
        self.found = found
        self._below: dict[Path, list[Path]] = {}
        for path in sorted({path[:-1] for path in entries}):
            for i in range(len(path) + 1):
                self._below.setdefault(path[:i], []).append(path)
        outside = _Frame(CALLER, arrived=True, reads=False, entries=lambda: entries)
        self._running = [outside]

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
        carried = variables_of(scope).get(COLLECTION, {})
        entries = partial(find_entries, carried)
        self._running.append(_Frame(call, arrived, reads, entries))
        moved = self.found.get(call, Moved()) if arrived else Moved()
        hidden = Hidden(scope, *moved)
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
        contains = lambda frame: is_under(call.path, frame.call.path)
        around = next(filter(contains, reversed(self._running)))
        if around.arrived and _is_mapped(call, around.call):
            self._receive_past_map(scope, call, around, inside)
        missing = _missing(variables_of(scope).get(COLLECTION, {}), call.path, inside)
        if not missing:
            return True
        take_from_params(scope)
        missing = _missing(variables_of(scope).get(COLLECTION, {}), call.path, inside)
        if not missing:
            return True
        if not around.arrived or not _is_lifted(call, around.call):
            return False
        if set(missing) <= self.found.get(around.call, Moved()).to_params:
            raise ValueError(
                f"{path_str(call.path)}: nothing can be carried through the lifted "
                f"transforms {'/'.join(call.debug_path)}; let them carry all "
                "collections, or 'params' at least"
            )
        raise Lost(around.call, Moved(to_params=frozenset(missing)))

    def _receive_past_map(
        self, scope: Scope, call: Call, around: _Frame, inside: Sequence[Path]
    ) -> None:
        """Takes entries from the call around, past a function that maps variables.

        Raises:
            Lost: the function has seen them.
        """
        below = call.path[len(around.call.path) :]
        found = find_entries(variables_of(scope).get(COLLECTION, {}))
        entries = entries_under(around.entries(), [below])
        own = {path[len(below) :]: entry for path, entry in entries.items()}
        pairs = zip(*map(jax.tree.leaves, (found, own)), strict=False)
        seen = bool(found) and any(a is not b for a, b in pairs)
        held_back = self.found.get(around.call, Moved()).held_back
        if seen and not set(inside) <= held_back:
            raise Lost(around.call, Moved(held_back=frozenset(inside)))
        variables_of(scope)[COLLECTION] = insert({}, own)


def _is_lifted(call: Call, around: Call) -> bool:
    """Whether a lifted transform lies between two calls, the names of which tell."""
    return bool(_transforms_between(call, around))


def _is_mapped(call: Call, around: Call) -> bool:
    """Whether variables are mapped between two calls, and values stay what they are."""
    between = _transforms_between(call, around)
    return MAPS_VARIABLES in between and between <= {MAPS_VARIABLES, "remat"}


def _transforms_between(call: Call, around: Call) -> set[str]:
    inner, outer = (Counter(lifted_by(c.debug_path)) for c in (call, around))
    return set(inner - outer)


def _missing(carried: Any, at: Path, paths: Iterable[Path]) -> list[Path]:
    """The paths of those modules below `at` that have no entry."""
    return [path for path in paths if not _has_entry(carried, path[len(at) :])]


def _has_entry(carried: Any, path: Path) -> bool:
    for name in path:
        carried = carried.get(name, {})
    return any(map(is_entry, carried))
