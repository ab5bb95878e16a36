"""Where arrays lie on a mesh, in the modes in which their types tell.

With explicit axes an array's type has its sharding, and operations that cannot tell
that of their result refuse it. Inside of `jax.shard_map` the type tells over which axes
a value varies, and derivatives are to vary as what they are of does.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jaxtyping import Array, PyTree

from ._types import is_array


def vary_with(tree: PyTree, like: PyTree) -> PyTree:
    """The arrays of a tree, each varying over all axes that any one of `like` does.

    A cotangent passes as if the values had been different everywhere from the start.
    Outside of `jax.shard_map`, and inside without `check_vma`, nothing varies.
    """
    axes = frozenset().union(*map(_varying, jax.tree.leaves(like)))
    if not axes:
        return tree
    return jax.tree.map(lambda x: _vary(x, axes) if is_array(x) else x, tree)


def varies(tree: PyTree) -> bool:
    """Whether any array of a tree varies over some axis."""
    return any(map(_varying, jax.tree.leaves(tree)))


def _vary(array: Any, axes: frozenset[str]) -> Any:
    """The array, varying over these axes, too."""
    missing = tuple(sorted(axes - _varying(array)))
    return jax.lax.pcast(array, missing, to="varying") if missing else array


def _varying(leaf: Any) -> frozenset[str]:
    """The axes over which an array varies."""
    return type_of(leaf).varying if isinstance(leaf, jax.Array) else frozenset()


class ArrayType(NamedTuple):
    """What tells one array from another to whom the values are the same; hashable."""

    shape: tuple[int, ...]
    dtype: Any
    sharding: Any
    varying: frozenset[str]


def type_of(array: Array) -> ArrayType:
    """The type of an array."""
    kind: Any = jax.typeof(array)
    varying = kind.manual_axis_type.varying
    return ArrayType(kind.shape, kind.dtype, kind.sharding, varying)


def zeros_of(kind: ArrayType) -> Array:
    """Zeros of a type."""
    return _placed(jnp.zeros(kind.shape, kind.dtype), kind)


def shaped_like(array: Array, like: Array) -> Array:
    """The array in the shape of another one, split and varying as that is."""
    if array.shape != like.shape:
        array = gathered(array).reshape(like.shape)
    return _placed(array, type_of(like))


def _placed(array: Array, kind: ArrayType) -> Array:
    """The array, split and varying as a type tells."""
    if AxisType.Explicit in kind.sharding.mesh.axis_types:
        array = jax.sharding.reshard(array, kind.sharding)
    return _vary(array, kind.varying)


def on_host(array: Array) -> bool:
    """Whether numpy can read an array where it lies."""
    platforms = {device.platform for device in array.devices()}
    return platforms == {"cpu"} and array.is_fully_addressable


def gathered(array: Array) -> Array:
    """The array whole on every device, where its type tells that it is split."""
    whole = _whole(array)
    return array if whole is None else jax.sharding.reshard(array, whole)


def taken(array: Array, index: tuple[Any, ...]) -> Array:
    """`array[index]`, whole on every device."""
    whole = _whole(array)
    return array[index] if whole is None else array.at[index].get(out_sharding=whole)


def _whole(array: Array) -> NamedSharding | None:
    """Whole on the mesh of an array that is split; None where it is whole already."""
    sharding: Any = jax.typeof(array).sharding
    explicit = AxisType.Explicit in sharding.mesh.axis_types
    split = explicit and any(axis is not None for axis in sharding.spec)
    return NamedSharding(sharding.mesh, PartitionSpec()) if split else None
