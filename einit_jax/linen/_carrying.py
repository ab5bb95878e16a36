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
from typing import Any, NamedTuple

from flax import linen as nn
from flax.core import DenyList, FrozenDict
from flax.core.scope import Scope

from ..core import Path, insert, is_under, path_str, plain

CARRIED = "einit:"
"""Prefix of every reserved entry; no Flax module can be named so."""
COLLECTION = "einit"
"""The collection that entries travel in."""


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
        variables = {**variables, COLLECTION: insert({}, self.entries)}
        lifted = _under(self.entries, self.among_params)
        if lifted:
            variables["params"] = insert(variables.get("params", {}), lifted)
        return variables


def run_carrying(
    run: Callable[[Carried], Any],
    hooks: Sequence[Callable],
    entries: Mapping[Path, Any],
) -> Any:
    """`run(carried)` under interceptors, entries handed on from call to call.

    Args:
        run: applies the model to its variables and what is carried beside them.
        hooks: interceptors of calls, the first one outermost.
        entries: what is carried, by path; its last name begins with `CARRIED`.
    """
    among_params: dict[Call, frozenset[Path]] = {}
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
        hidden = _Hidden(scope, moved)
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
        missing = _missing(_variables(scope).get(COLLECTION, {}), call.path, inside)
        if not missing:
            return True
        _take_from_params(scope)
        missing = _missing(_variables(scope).get(COLLECTION, {}), call.path, inside)
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
    return any(str(name).startswith(CARRIED) for name in carried)


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


def _variables(scope: Scope) -> dict[str, Any]:
    """A scope's own variables by collection, to be changed in place.

    No public way leads there: what a transform takes up when it is entered, and what
    a call finds that a transform has made, is what lies in these dicts.
    """
    scope._populate_collections()
    return scope._variables  # pyright: ignore[reportReturnType]


def _take_from_params(scope: Scope) -> None:
    """Takes entries out of the parameters that a transform has handed on."""
    variables = _variables(scope)
    params = variables.get("params", {})
    entries = _entries(params)
    if not entries:
        return
    variables[COLLECTION] = insert(variables.get(COLLECTION, {}), entries)
    if scope.is_mutable_collection("params"):
        _drop_entries(params)
    else:
        variables["params"] = without_carried(params)


class _Hidden:
    """What is carried, out of sight of a module while it runs.

    The entries of the modules at `paths` are among its parameters meanwhile.
    """

    def __init__(self, scope: Scope, paths: Iterable[Path]):
        variables = _variables(scope)
        below = [path[len(path_of(scope)) :] for path in paths]
        entries = _under(_entries(variables.get(COLLECTION, {})), below)
        self._scope, self._before = scope, variables.get("params")
        self._in_place = bool(entries) and scope.is_mutable_collection("params")
        seen = self._before
        if entries:
            seen = without_carried(self._before)
            if self._in_place:
                _put_entries(variables["params"], entries)
            else:
                variables["params"] = insert(self._before or {}, entries)
        self._seen = scope.__dict__.get("variables")
        scope.variables = lambda: _in_sight(variables, seen)

    def remove(self) -> None:
        """Leaves the scope as it was."""
        if self._in_place:
            _drop_entries(self._before)
        if self._before is not None:
            _variables(self._scope)["params"] = self._before
        if self._seen is None:
            del self._scope.variables
        else:
            self._scope.variables = self._seen


def _in_sight(variables: Mapping[str, Any], params: Any) -> dict[str, Any]:
    """The variables that a module is to see, of those that its scope has."""
    shown = {name: tree for name, tree in variables.items() if name != COLLECTION}
    return shown if params is None else {**shown, "params": params}


def entries_of(scope: Scope | None) -> list[str]:
    """The names of what is carried to the module of a scope."""
    carried = {} if scope is None else _variables(scope).get(COLLECTION, {})
    return [name for name in carried if str(name).startswith(CARRIED)]


def _entries(tree: Any, path: Path = ()) -> dict[Path, Any]:
    """The entries in a tree, by their paths."""
    if not isinstance(tree, Mapping):
        return {}
    found = {}
    for name, child in tree.items():
        if str(name).startswith(CARRIED):
            found[(*path, name)] = plain(child)
        else:
            found |= _entries(child, (*path, name))
    return found


def _under(entries: Mapping[Path, Any], paths: Iterable[Path]) -> dict[Path, Any]:
    """The entries of modules at or below some paths."""
    within = lambda path: any(is_under(path, root) for root in paths)
    return {path: entry for path, entry in entries.items() if within(path)}


def _put_entries(tree: dict, entries: Mapping[Path, Any]) -> None:
    for path, entry in entries.items():
        node = tree
        for name in path[:-1]:
            node = node.setdefault(name, {})
        node[path[-1]] = entry


def _drop_entries(tree: Any) -> None:
    for name in list(tree) if isinstance(tree, dict) else ():
        if str(name).startswith(CARRIED):
            del tree[name]
        else:
            _drop_entries(tree[name])


def without_carried(tree: Any) -> Any:
    """The tree without its reserved entries."""
    if isinstance(tree, Mapping):
        kept = {k: v for k, v in tree.items() if not str(k).startswith(CARRIED)}
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
