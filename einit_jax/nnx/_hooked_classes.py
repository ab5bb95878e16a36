"""Classes whose calls go through hooks, with nothing of Flax changed.

A copy of the model gets hooks. The class of a hooked module is a subclass of the user's
own, one for each class, whose methods hand their calls to the handlers of the module's
hook. Hook and class are part of the graph's definition, so that `nnx.split`, `merge`
and every transform carry them, and no cache takes a model with other hooks for this
one.
"""

import functools
from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import Any

import jax
from flax import nnx

from ..core import path_str
from ._hooks import HOOK, CarriedParam, Hook, is_ours, run_hook
from ._nodes import USER_TYPE, nodes_of, path_of_keys


def put_hook(
    module: Any,
    hook: Hook,
    entries: Mapping[str, Mapping[str, Any]],
    variable_type: type[nnx.Variable] = CarriedParam,
) -> None:
    """Gives a module of our own a hook.

    `entries` has what is carried, by the handler's name and by method; of handlers that
    it had before it is there.
    """
    put = partial(nnx.Module.__setattr__, module)
    for handler in hook.handlers:
        for spec in handler.entries if handler.name in entries else ():
            leaves = jax.tree.leaves(entries[handler.name][spec.method])
            for attribute, leaf in zip(spec.attributes, leaves, strict=True):
                put(attribute, variable_type(leaf))
    put(HOOK, hook)
    object.__setattr__(module, "__class__", hooked_class(type(module)))


@cache
def hooked_class(user_type: Any) -> type:
    """The subclass of a module's class whose calls go through hooks."""
    if hasattr(user_type, USER_TYPE):
        return user_type
    names = {n for c in user_type.__mro__ if c not in BASES for n in vars(c)}
    methods = {
        n: _hooked_method(n, user_type) for n in names if _is_method(n, user_type)
    }
    body = {
        "__module__": user_type.__module__,
        "__qualname__": user_type.__qualname__,
        "__doc__": user_type.__doc__,
        "__reduce__": _reduce,
        USER_TYPE: user_type,
        **methods,
    }
    kind: Any = type(user_type)
    is_pytree = user_type._pytree__is_pytree
    return kind(user_type.__name__, (user_type,), body, pytree=is_pytree)


BASES = frozenset({*nnx.Module.__mro__, *nnx.Object.__mro__})
"""Classes whose own methods are no layer's."""


def _is_method(name: str, user_type: type) -> bool:
    """Whether calls by a name are calls of a layer."""
    if name.startswith("__") and name != "__call__":
        return False
    value = next(vars(c)[name] for c in user_type.__mro__ if name in vars(c))
    other = isinstance(value, staticmethod | classmethod | property | type)
    return callable(value) and not other and not isinstance(value, nnx.Variable)


def _hooked_method(name: str, user_type: type) -> Callable:
    """The method of a hooked class: it asks the module's hook."""
    attribute = next(vars(c)[name] for c in user_type.__mro__ if name in vars(c))
    bind = partial(_bound, attribute)

    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        hook = vars(self).get(HOOK)
        if hook is None:
            return bind(self)(*args, **kwargs)
        return run_hook(self, hook, (name, bind), (args, kwargs))

    return functools.wraps(attribute)(method)


def _bound(attribute: Any, module: nnx.Module) -> Callable:
    """What a class has under a name, bound to a module."""
    getter = getattr(type(attribute), "__get__", None)
    return attribute if getter is None else getter(attribute, module, type(module))


def _reduce(module: Any) -> tuple:
    """How a hooked module is pickled: its class is made again of the user's."""
    return _unpickled, (getattr(type(module), USER_TYPE),), vars(module).copy()


def _unpickled(user_type: type) -> Any:
    return object.__new__(hooked_class(user_type))


def without_hooks(module: nnx.Module) -> nnx.Module:
    """A copy of a model of the user's own classes, without what was carried.

    Raises:
        ValueError: it is no tuned model, but one of its modules is.
    """
    tuned = [keys for keys, node in nodes_of(module) if HOOK in vars(node)]
    if tuned and () not in tuned:
        inner = path_str(path_of_keys(min(tuned, key=len)))
        raise ValueError(
            f"{inner!r} of {type(module).__name__} is a model that ei.scaled has "
            "returned, with scales of its own; put the plain model there, and tune "
            "the whole"
        )
    copy = nnx.clone(module, graph=True)
    for _, node in nodes_of(copy):
        if not hasattr(type(node), USER_TYPE):
            continue
        for name in [n for n in vars(node) if is_ours(n)]:
            nnx.Module.__delattr__(node, name)
        object.__setattr__(node, "__class__", getattr(type(node), USER_TYPE))
    return copy
