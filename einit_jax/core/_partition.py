"""What of a pytree is traced and what is static."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import update_wrapper
from types import MethodType
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar, cast

import jax

from ._types import is_array, is_float

P = ParamSpec("P")
R = TypeVar("R")


class Partition:
    """A pytree taken apart: floating leaves, other arrays, and static leaves.

    Floating leaves whose numbers are in `data` count among the other arrays. What
    `is_leaf` says so of is not taken apart.
    """

    def __init__(
        self,
        tree: Any,
        data: Collection[int] = (),
        is_leaf: Callable[[Any], bool] | None = None,
    ):
        leaves, self.treedef = jax.tree.flatten(tree, is_leaf)
        self._groups = [_group_of(leaf) for leaf in leaves]
        floats = [i for i, group in enumerate(self._groups) if group == "float"]
        for number, place in enumerate(floats):
            if number in data:
                self._groups[place] = "array"
        self.floats = self._leaves_in("float", leaves)
        self.arrays = self._leaves_in("array", leaves)
        self.static = self._leaves_in("static", leaves)

    def _leaves_in(self, group: str, leaves: list) -> list:
        return [x for x, own in zip(leaves, self._groups, strict=True) if own == group]

    def build(
        self, floats: list, arrays: list | None = None, static: list | None = None
    ) -> Any:
        """The pytree with other leaves in the same places."""
        rest = {
            "float": iter(floats),
            "array": iter(self.arrays if arrays is None else arrays),
            "static": iter(self.static if static is None else static),
        }
        leaves = [next(rest[group]) for group in self._groups]
        return jax.tree.unflatten(self.treedef, leaves)

    def has_data(self) -> bool:
        """Whether there is an array that holds no random keys."""
        return bool(self.floats) or not all(is_key(x) for x in self.arrays)


def _group_of(leaf: Any) -> str:
    if not is_array(leaf):
        return "static"
    return "float" if is_float(leaf) else "array"


def is_key(leaf: Any) -> bool:
    """Whether an array holds typed random keys, which only jax.random can take."""
    return jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.extended)


@dataclass(frozen=True)
class Static:
    """Hashable by identity: lets a jitted function take what cannot be hashed."""

    value: Any

    def __hash__(self) -> int:
        return id(self.value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Static) and self.value is other.value


def as_static(value: Any) -> Any:
    """The value where it can be hashed, else the value hashed by identity."""
    try:
        hash(value)
    except TypeError:
        return Static(value)
    return value


def static_value(value: Any) -> Any:
    """The value that `as_static` was given."""
    return value.value if isinstance(value, Static) else value


class ValueMethod:
    """A method bound to an object; equal by value, and hashed alike, as that is.

    Python's own bound methods are equal where they are bound to one and the same.
    """

    def __init__(self, function: Callable, bound: Any):
        update_wrapper(self, function)
        self.__wrapped__ = MethodType(function, bound)  # has the signature
        self.__func__, self.__self__ = function, bound

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.__func__(self.__self__, *args, **kwargs)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ValueMethod) and (
            (self.__func__, self.__self__) == (other.__func__, other.__self__)
        )

    def __hash__(self) -> int:
        return hash((self.__func__, self.__self__))

    def __repr__(self) -> str:
        return f"<{self.__func__.__qualname__} of {self.__self__!r}>"

    def __reduce__(self) -> tuple:
        return ValueMethod, (self.__func__, self.__self__)


class by_value(Generic[P, R]):
    """Decorates a method: bound to equal objects, it is equal.

    A train state holds `model.apply` in its structure, by which jitted functions know
    it again.
    """

    def __init__(self, function: Callable[Concatenate[Any, P], R]):
        self.function = function

    def __get__(self, instance: Any, owner: Any = None) -> Callable[P, R]:
        method = self.function if instance is None else None
        return cast(Any, method or ValueMethod(self.function, instance))
