"""TODO."""

from dataclasses import dataclass
from typing import Any

import jax

from ._batches import is_array
from ._numerics import is_float


class Partition:
    """A pytree taken apart: floating leaves, other arrays, and what is static."""

    def __init__(self, tree: Any):
        leaves, self.treedef = jax.tree.flatten(tree)
        self.kinds = [
            "float" if is_array(leaf) and is_float(leaf) else
            "array" if is_array(leaf) else "static"
            for leaf in leaves
        ]  # fmt: skip
        self.floats = self._of("float", leaves)
        self.arrays = self._of("array", leaves)
        self.static = self._of("static", leaves)

    def _of(self, kind: str, leaves: list) -> list:
        return [x for x, k in zip(leaves, self.kinds, strict=True) if k == kind]

    def build(self, floats: list, arrays: list | None = None) -> Any:
        """The pytree with other floating (and other) arrays in the same places."""
        rest = {
            "float": iter(floats),
            "array": iter(self.arrays if arrays is None else arrays),
            "static": iter(self.static),
        }
        return jax.tree.unflatten(self.treedef, [next(rest[k]) for k in self.kinds])


def is_key(leaf: Any) -> bool:
    """Whether an array holds typed random keys, which only jax.random can take."""
    return jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.extended)


def has_data(tree: Any) -> bool:
    """Whether a pytree has an array that is no random key."""
    leaves = Partition(tree)
    return bool(leaves.floats) or not all(is_key(x) for x in leaves.arrays)


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


def static_value(static_value: Any) -> Any:
    return static_value.value if isinstance(static_value, Static) else static_value
