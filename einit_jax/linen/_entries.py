"""Entries for units beside a model's variables, and among them: put, found, hidden."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import jax
from flax.core import DenyList, FrozenDict
from flax.core.scope import Scope

from ..core import Path, insert, is_under, plain, put_in_place

CARRIED = "einit:"
"""Prefix of every reserved entry; no Flax module can be named so."""
WATCHED = CARRIED + "@"
"""Prefix of the entries of a trace, which what intercepts a run has not."""
COLLECTION = "einit"
"""The collection that entries travel in."""
MAPS_VARIABLES = "map_variables"
"""What Flax calls the transform that shows variables to a function of the user's."""


def path_of(scope: Scope) -> Path:
    """Where the variables of a scope lie.

    `scope.path` tells it too, but for what is below a module that has given its scope
    to another one (`nn.share_scope`).
    """
    names: list[str] = []
    while scope.parent is not None:
        names.append(str(scope.name))
        scope = scope.parent
    return (*scope.path, *reversed(names))


def lifted_by(debug_path: Path) -> list[str]:
    """The names of the lifted transforms around a scope, by its `debug_path`."""
    return [name for part in debug_path for name in part.split("(")[:-1]]


def variables_of(scope: Scope) -> dict[str, Any]:
    """A scope's own variables by collection, to be changed in place.

    No public way leads there: what a transform takes up when it is entered, and what
    a call finds that a transform has made, is what lies in these dicts.
    """
    scope._populate_collections()
    return scope._variables  # pyright: ignore[reportReturnType]


@contextmanager
def resting_params(scopes: Iterable[Scope]) -> Iterator[None]:
    """The parameters of some scopes as constants to whoever differentiates outside.

    What is differentiated inside would be so once more for nothing, and jax 0.10.2
    fails at some of it: a scan that hands on and returns the same array.
    """
    every = [variables_of(scope) for scope in scopes]
    before = [variables.get("params") for variables in every]
    for variables, params in zip(every, before, strict=True):
        if params is not None and not find_entries(params):
            variables["params"] = jax.lax.stop_gradient(params)
    try:
        yield
    finally:
        for variables, params in zip(every, before, strict=True):
            if params is not None:
                variables["params"] = params


def take_from_params(scope: Scope) -> None:
    """Takes entries out of the parameters that a transform has handed on."""
    variables = variables_of(scope)
    params = variables.get("params", {})
    entries = find_entries(params)
    if not entries:
        return
    variables[COLLECTION] = insert(variables.get(COLLECTION, {}), entries)
    if scope.is_mutable_collection("params"):
        _drop_entries(params)
    else:
        variables["params"] = without_carried(params)


class Hidden:
    """What is carried, out of sight of a module while it runs.

    The entries of some modules are among its parameters meanwhile, or nowhere.
    """

    def __init__(
        self, scope: Scope, to_params: Iterable[Path], held_back: Iterable[Path]
    ):
        variables = variables_of(scope)
        self._carried = variables.get(COLLECTION)
        carried = find_entries(self._carried) if to_params or held_back else {}
        below = lambda paths: [path[len(path_of(scope)) :] for path in paths]
        held = entries_under(carried, below(held_back))
        if held:
            kept = {path: e for path, e in carried.items() if path not in held}
            variables[COLLECTION] = insert({}, kept)
        entries = entries_under(carried, below(to_params))
        self._scope, self._before = scope, variables.get("params")
        self._in_place = bool(entries) and scope.is_mutable_collection("params")
        seen = self._before
        if entries:
            seen = without_carried(self._before)
            if self._in_place:
                put_in_place(variables["params"], entries)
            else:
                variables["params"] = insert(self._before or {}, entries)
        self._seen = scope.__dict__.get("variables")
        scope.variables = lambda: _in_sight(variables, seen)

    def remove(self) -> None:
        """Leaves the scope as it was."""
        if self._carried is not None:
            variables_of(self._scope)[COLLECTION] = self._carried
        if self._in_place:
            _drop_entries(self._before)
        if self._before is not None:
            variables_of(self._scope)["params"] = self._before
        if self._seen is None:
            del self._scope.variables
        else:
            self._scope.variables = self._seen


def _in_sight(variables: Mapping[str, Any], params: Any) -> dict[str, Any]:
    """The variables that a module is to see, of those that its scope has."""
    shown = {name: tree for name, tree in variables.items() if name != COLLECTION}
    return shown if params is None else {**shown, "params": params}


def is_entry(name: Any) -> bool:
    """Whether a name in a tree of variables is a reserved entry's."""
    return str(name).startswith(CARRIED)


def is_watched(scope: Scope | None) -> bool:
    """Whether the module of a scope is one of the model that is being traced."""
    carried = {} if scope is None else variables_of(scope).get(COLLECTION, {})
    return any(str(name).startswith(WATCHED) for name in carried)


def find_entries(tree: Any, path: Path = ()) -> dict[Path, Any]:
    """The entries in a tree, by their paths."""
    if not isinstance(tree, Mapping):
        return {}
    found = {}
    for name, child in tree.items():
        if is_entry(name):
            found[(*path, name)] = plain(child)
        else:
            found |= find_entries(child, (*path, name))
    return found


def entries_under(
    entries: Mapping[Path, Any], paths: Iterable[Path]
) -> dict[Path, Any]:
    """The entries of modules at or below some paths."""
    within = lambda path: any(is_under(path, root) for root in paths)
    return {path: entry for path, entry in entries.items() if within(path)}


def _drop_entries(tree: Any) -> None:
    for name in list(tree) if isinstance(tree, dict) else ():
        if is_entry(name):
            del tree[name]
        else:
            _drop_entries(tree[name])


def without_carried(tree: Any) -> Any:
    """The tree without its reserved entries."""
    if isinstance(tree, Mapping):
        kept = {k: v for k, v in tree.items() if not is_entry(k)}
        inner = {k: without_carried(v) for k, v in kept.items()}
        return FrozenDict(inner) if isinstance(tree, FrozenDict) else inner
    return tree


def immutable_entries(mutable: Any) -> Any:
    """A filter of collections that a run may write, without what is carried."""
    if mutable is True:
        return DenyList(COLLECTION)
    if not isinstance(mutable, DenyList) or isinstance(mutable.deny, DenyList):
        return mutable
    denied = mutable.deny
    if isinstance(denied, bool):
        return False if denied else DenyList(COLLECTION)
    several = (denied,) if isinstance(denied, str) else tuple(denied)
    return DenyList((*several, COLLECTION))
