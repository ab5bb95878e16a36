"""An NNX model as a pure function's static part, and its arrays by path."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax
from flax import nnx

from ..core import Collections, Params, Path, flatten, is_float, path_str, put_in_place
from ._hooked_classes import without_hooks
from ._hooks import HOOK
from ._nodes import (
    Keys,
    as_nested,
    at_keys,
    is_node,
    leaves_of,
    nodes_of,
    path_of_keys,
    raw_value,
    user_type,
    with_value,
)

VARIABLES = "variables"
"""The collection of all that is no parameter: statistics, random keys, caches."""


@dataclass(frozen=True)
class Leaf:
    """A variable of the model, or an array that is in none."""

    keys: Keys
    variable_type: type[nnx.Variable] | None
    metadata: tuple[tuple[str, Any], ...]
    is_param: bool

    @property
    def path(self) -> Path:
        return path_of_keys(self.keys)

    def holding(self, value: Any) -> Any:
        """The variable with a value; a value that is in none as it is."""
        if self.variable_type is None:
            return value
        return self.variable_type.from_metadata(value, dict(self.metadata))


@dataclass(frozen=True)
class ModuleSpec:
    """A module of the model."""

    keys: Keys
    module_type: type
    params: tuple[Keys, ...]
    """Where its parameters lie below it, in the order of their paths."""

    @property
    def path(self) -> Path:
        return path_of_keys(self.keys)


@dataclass(frozen=True)
class NnxModel:
    """A model without its arrays: static, equal by value."""

    graphdef: nnx.GraphDef
    leaves: tuple[Leaf, ...]
    modules: tuple[ModuleSpec, ...]

    @property
    def name(self) -> str:
        """The name of the model's class."""
        return self.modules[0].module_type.__name__

    def filled(self, params: Params, collections: Collections) -> nnx.Module:
        """A new module with these arrays, of the trace that runs."""
        variables = collections.get(VARIABLES, {})
        state = {}
        for leaf in self.leaves:
            arrays = params if leaf.is_param else variables
            state[leaf.keys] = leaf.holding(at_keys(arrays, leaf.path))
        return nnx.merge(self.graphdef, nnx.from_flat_state(state))

    def state_of(self, params: Params) -> nnx.State:
        """Parameters as NNX has them, to be put into a model by `nnx.update`."""
        own = (leaf for leaf in self.leaves if leaf.is_param)
        state = {leaf.keys: leaf.holding(at_keys(params, leaf.path)) for leaf in own}
        return nnx.from_flat_state(state)


def functional(
    module: nnx.Module, params: Any = None
) -> tuple[NnxModel, dict[str, Any], dict[str, Any]]:
    """The model, its parameters and its other arrays, nested by the names of paths.

    Args:
        module: any NNX module, tuned or not; it is not changed.
        params: an `nnx.State` or nested dict of what counts as parameters, with the
            values to take; None: the module's own, all of `nnx.Param`, or where it has
            none of these all floating arrays that are in no variable.

    Raises:
        ValueError: params are of another model; the module holds a method or a function
            that is bound to one of its modules.
        NotImplementedError: variables are references (`nnx.var_defaults(ref=True)`).
    """
    if holds_factors(module):
        module = without_hooks(module)
    nodes = nodes_of(module)
    _check_bound(nodes)
    graphdef, state = nnx.split(module, graph=True)
    flat = list(nnx.to_flat_state(state))
    _check_variables(flat)
    given = None if params is None else as_nested(params)
    owned = _param_keys(flat) if given is None else _keys_in(flat, given)
    if given is not None:
        _check_fit(flat, owned, given, type(module).__name__)
    leaves = tuple(_leaf(keys, value, keys in owned) for keys, value in flat)
    own: dict[str, Any] = {}
    others: dict[str, Any] = {}
    for leaf, (_, value) in zip(leaves, flat, strict=True):
        into = own if leaf.is_param else others
        put_in_place(into, {leaf.path: raw_value(value)} if leaf.path else {})
    specs = tuple(_specs(nodes, owned))
    model = NnxModel(graphdef, leaves, specs)
    return model, own if given is None else given, {VARIABLES: others}


def holds_factors(module: nnx.Module) -> bool:
    """Whether a module is a tuned one."""
    return any(HOOK in vars(node) for _, node in nodes_of(module))


def state_like(template: Any, values: Mapping[str, Any] | None = None) -> nnx.State:
    """Parameters of a module, or a state, with other values by the names of paths."""
    state = (
        nnx.state(template, nnx.Param, graph=True) if is_node(template) else template
    )
    if values is None:
        return state
    found = {
        keys: with_value(leaf, at_keys(values, path_of_keys(keys)))
        for keys, leaf in nnx.to_flat_state(state)
    }
    return nnx.from_flat_state(found)


def _leaf(keys: Keys, value: Any, is_param: bool) -> Leaf:
    if isinstance(value, nnx.Variable):
        metadata = tuple(value.get_metadata().items())
        return Leaf(keys, value.var_type, metadata, is_param)
    return Leaf(keys, None, (), is_param)


def _param_keys(flat: list[tuple[Keys, Any]]) -> set[Keys]:
    """What trains: `nnx.Param`; where there is none, what is a mere floating array."""
    params = {keys for keys, leaf in flat if isinstance(leaf, nnx.Param)}
    return params or {keys for keys, leaf in flat if is_float(leaf)}


def _keys_in(flat: list[tuple[Keys, Any]], given: Mapping) -> set[Keys]:
    """Those of the model's leaves for which something is given."""

    def has(keys: Keys) -> bool:
        node: Any = given
        for key in map(str, keys):
            if not isinstance(node, Mapping) or key not in node:
                return False
            node = node[key]
        return True

    return {keys for keys, _ in flat if has(keys)}


def _check_fit(
    flat: list[tuple[Keys, Any]], owned: set[Keys], given: Any, name: str
) -> None:
    """Raises a ValueError where params are of another model."""
    if not owned:
        raise ValueError(
            f"params have nothing that {name} has; pass nnx.state(model, nnx.Param), "
            "or None for the model's own"
        )
    shapes = {
        (*path_of_keys(keys), *below): jax.numpy.shape(leaf)
        for keys, value in flat
        if keys in owned
        for below, leaf in leaves_of(raw_value(value))
    }
    got = {path: jax.numpy.shape(leaf) for path, leaf in flatten(given).items()}
    for path in got.keys() ^ shapes.keys():
        raise ValueError(
            f"params have {'an entry' if path in got else 'no entry'} "
            f"{path_str(path)!r}, other than {name}; pass nnx.state(model, nnx.Param), "
            "or None for the model's own"
        )
    for path, shape in got.items():
        if shape != shapes[path]:
            raise ValueError(
                f"params at {path_str(path)!r} have the shape {shape}, expected "
                f"{shapes[path]} as in {name}"
            )


def _specs(nodes: list[tuple[Keys, Any]], owned: set[Keys]) -> Iterator[ModuleSpec]:
    """The modules of a graph, each at its first path, outer ones first.

    Lists and dicts of modules are called by nobody.
    """
    below: dict[Keys, list[Keys]] = {}
    for keys in sorted(owned, key=path_of_keys):
        for i in range(len(keys) + 1):
            below.setdefault(keys[:i], []).append(keys[i:])
    for keys, node in sorted(nodes, key=lambda pair: path_of_keys(pair[0])):
        if keys and isinstance(node, nnx.List | nnx.Dict):
            continue
        yield ModuleSpec(keys, user_type(node), tuple(below.get(keys, ())))


def _check_variables(flat: list[tuple[Keys, Any]]) -> None:
    """Raises a NotImplementedError of variables that are references of JAX's."""
    for keys, leaf in flat:
        if isinstance(leaf, nnx.Variable) and (leaf.hijax or leaf.ref):
            raise NotImplementedError(
                f"{path_str(path_of_keys(keys))!r} is a variable of hijax or a "
                "reference (nnx.var_defaults), an experiment of Flax that its own "
                "transforms do not take yet; make the model without"
            )


def _check_bound(nodes: list[tuple[Keys, Any]]) -> None:
    """Raises where attributes hold methods or functions bound to modules of the graph.

    Copies of the model, which every transform makes, still call the modules of before.
    """
    paths = {id(node): path_str(path_of_keys(keys)) for keys, node in nodes}
    for keys, node in nodes:
        for name, value in vars(node).items():
            if is_node(value) or not callable(value):
                continue
            cells = getattr(value, "__closure__", None) or ()
            bound = [getattr(value, "__self__", None)]
            bound += [cell.cell_contents for cell in cells if _is_filled(cell)]
            held = next((paths[id(b)] for b in bound if id(b) in paths), None)
            if held is not None:
                where = path_str(path_of_keys((*keys, name)))
                raise ValueError(
                    f"{where!r} is a function bound to the module {held!r}, which "
                    "every copy of the model goes on calling (nnx.jit and nnx.grad "
                    "make copies); keep the module and call it by a method of the class"
                )


def _is_filled(cell: Any) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:
        return False
