"""What a model is called with: batches of inputs, each with its random keys."""

import inspect
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from ._types import Collections, Params

DEFAULT_BATCH_SIZE = 64
"""Passed to an `input_fn` that demands a batch size where the user gives none."""


def is_array(leaf: object) -> bool:
    """Whether a leaf is traced as an array; any other leaf is static."""
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

    def tree_flatten(self) -> tuple[tuple[Any, ...], tuple[Any, tuple]]:
        """The arrays, and what is static: the structure and the other leaves."""
        leaves = self._treedef.flatten_up_to((self.args, self.kwargs))
        pairs = zip(leaves, self._static, strict=True)
        arrays = tuple(leaf for leaf, static in pairs if static is None)
        return arrays, (self._treedef, self._static)

    @classmethod
    def tree_unflatten(cls, aux: tuple[Any, tuple], arrays: Iterable[Any]) -> "Inputs":
        """Inputs of arrays, or of what a transformation puts in the place of arrays."""
        treedef, static = aux
        rest = iter(arrays)
        leaves = [next(rest) if pair is None else pair[1] for pair in static]
        inputs = object.__new__(cls)
        inputs._treedef, inputs._static = treedef, static
        inputs.args, inputs.kwargs = jax.tree.unflatten(treedef, leaves)
        return inputs


class Batch(NamedTuple):
    """One draw: what the model is called with, and the random keys of that call."""

    inputs: Inputs
    key: jax.Array
    """The key that the loss gets."""
    rngs: Mapping[str, jax.Array]
    """A key for each random stream of the model."""


class ModelArgs(NamedTuple):
    """All arrays that one run of a model takes; a pytree."""

    params: Params
    collections: Collections
    batch: Batch


def stack_batches(batches: Sequence[Batch]) -> Batch:
    """The batches along a new first axis."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *batches)


def user_inputs(inputs: Inputs) -> Any:
    """The inputs as the user draws them: the single argument, a tuple, or Inputs."""
    if inputs.kwargs:
        return inputs
    return inputs.args[0] if len(inputs.args) == 1 else tuple(inputs.args)


def draw_batches(
    input_fn: Any,
    key: jax.Array,
    *,
    rngs: Sequence[str] | Mapping[str, jax.Array] = (),
    batch_size: int | None = None,
    draws: int = 1,
) -> tuple[Batch, ...]:
    """`draws` batches, each with a key for the loss and one for each random stream.

    Args:
        input_fn: a function of a key (and of `batch_size`, if it names it), or a batch.
        key: the key that all others are folded from.
        rngs: names of random streams, or keys by name.
        batch_size: passed on where `input_fn` names it.
        draws: the number of batches.

    Raises:
        TypeError: input_fn takes other arguments than a key (and batch_size).
        ValueError: draws is no positive integer; batch_size is given and input_fn
            takes none.
    """
    if not isinstance(draws, int) or draws < 1:
        raise ValueError(f"draws is {draws!r}, expected a positive integer")
    own_keys = dict(rngs) if isinstance(rngs, Mapping) else {}
    names = (rngs,) if isinstance(rngs, str) else tuple(rngs)
    streams = tuple(dict.fromkeys(("params", *names)))
    keys = _batch_keys(key, streams=streams, draws=draws)
    drawn = [_draw_inputs(input_fn, own.inputs, batch_size) for own in keys]
    return tuple(
        Batch(as_inputs(inputs), own.loss, own.rngs | own_keys)
        for inputs, own in zip(drawn, keys, strict=True)
    )


class _BatchKeys(NamedTuple):
    """The keys of one draw."""

    inputs: jax.Array
    loss: jax.Array
    rngs: dict[str, jax.Array]
    """A key for each random stream."""


@partial(jax.jit, static_argnames=("streams", "draws"))
def _batch_keys(
    key: jax.Array, *, streams: tuple[str, ...], draws: int
) -> list[_BatchKeys]:
    """The keys of all draws, folded from one."""

    def keys_of_draw(i: int) -> _BatchKeys:
        inputs, loss, rngs = (
            jax.random.fold_in(jax.random.fold_in(key, i), j) for j in range(3)
        )
        by_stream = {
            name: jax.random.fold_in(rngs, j) for j, name in enumerate(streams)
        }
        return _BatchKeys(inputs, loss, by_stream)

    return [keys_of_draw(i) for i in range(draws)]


def _draw_inputs(input_fn: Any, key: jax.Array, batch_size: int | None) -> Any:
    """What `input_fn` returns for a key, or itself where it is a batch."""
    if not callable(input_fn):
        if batch_size is not None:
            raise ValueError(
                "batch_size is given, but input_fn is a concrete batch; leave it out"
            )
        return input_fn
    try:
        parameters = inspect.signature(input_fn).parameters
    except ValueError:
        return input_fn(key)
    takes_size = "batch_size" in parameters
    if batch_size is not None and not takes_size:
        raise ValueError(
            "batch_size is given, but input_fn has no parameter of that name; add it: "
            "input_fn(key, batch_size)"
        )
    keywords = {"batch_size": batch_size} if batch_size is not None else {}
    if takes_size and batch_size is None:
        required = parameters["batch_size"].default is inspect.Parameter.empty
        keywords = {"batch_size": DEFAULT_BATCH_SIZE} if required else {}
    try:
        inspect.signature(input_fn).bind(key, **keywords)
    except TypeError as error:
        raise TypeError(
            f"input_fn takes ({', '.join(parameters)}), expected (key) or "
            f"(key, batch_size): {error}"
        ) from None
    return input_fn(key, **keywords)


def as_inputs(drawn: Any) -> Inputs:
    """What was drawn, as the arguments of one call: a plain tuple holds several."""
    if isinstance(drawn, Inputs):
        return drawn
    if type(drawn) is tuple:
        return Inputs(*drawn)
    return Inputs(drawn)


def describe(tree: PyTree) -> str:
    """The text of a pytree in which each array is told by dtype and shape."""
    return repr(jax.tree.map(_describe_leaf, tree))


def _describe_leaf(leaf: Any) -> "_Unquoted":
    """Dtype and shape of an array; of anything else its `repr`."""
    is_typed = hasattr(leaf, "dtype")
    return _Unquoted(f"{leaf.dtype}{list(leaf.shape)}" if is_typed else repr(leaf))


class _Unquoted(str):
    """A string whose `repr` has no quotes."""

    def __repr__(self) -> str:
        return str(self)
