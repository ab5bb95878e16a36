"""What a model is called with: one batch as positional and keyword arguments."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np


def is_array(leaf: Any) -> bool:
    """Whether a leaf travels as an array: anything else stays static."""
    return isinstance(leaf, jax.Array | np.ndarray | np.generic | jax.ShapeDtypeStruct)


@jax.tree_util.register_pytree_node_class
class Inputs:
    """The arguments of one call of a model, `model(*args, **kwargs)`.

    Array leaves are the pytree's children, of any shape and dtype. Leaves that are no
    arrays (`train=True`, `None`, strings, Python numbers) are static: they belong to
    the tree's structure, so a jitted function sees them as the plain values they are.

    Example:
        >>> import jax, jax.numpy as jnp, einit_jax as ei
        >>> batch = ei.Inputs(jnp.ones((8, 3)), mask=None, train=True)
        >>> [leaf.shape for leaf in jax.tree.leaves(batch)]
        [(8, 3)]
        >>> jax.jit(lambda inputs: inputs.kwargs["train"] is True)(batch)
        Array(True, dtype=bool)
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    def __init__(self, *args: Any, **kwargs: Any):
        leaves, self._treedef = jax.tree.flatten((args, kwargs))
        # decided here, not when flattened: a transformation may put anything in the
        # place of an array, and it must stay a child
        self._static = tuple(None if is_array(x) else (type(x), x) for x in leaves)
        self.args, self.kwargs = args, kwargs

    def __repr__(self) -> str:
        parts = [repr(a) for a in self.args]
        parts += [f"{name}={value!r}" for name, value in self.kwargs.items()]
        return f"Inputs({', '.join(parts)})"

    def tree_flatten(self):
        leaves = self._treedef.flatten_up_to((self.args, self.kwargs))
        slots = zip(leaves, self._static, strict=True)
        arrays = tuple(leaf for leaf, slot in slots if slot is None)
        return arrays, (self._treedef, self._static)

    @classmethod
    def tree_unflatten(cls, aux, arrays):
        made = object.__new__(cls)
        made._treedef, made._static = aux
        rest = iter(arrays)
        leaves = [next(rest) if slot is None else slot[1] for slot in made._static]
        made.args, made.kwargs = jax.tree.unflatten(made._treedef, leaves)
        return made
