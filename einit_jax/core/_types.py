"""Types that signatures share: arguments, numbers, keys; how messages show them."""

import operator
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.extend.core import JaxprEqn as JaxprEqn
from jaxtyping import PyTree

Params = Mapping[str, Any]
"""A model's parameters: nested mappings of arrays, or of boxes that hold them."""
Collections = Mapping[str, Any]
"""A model's variables besides its parameters, by collection: `{"batch_stats": ...}`."""


def as_integer(value: object) -> int | None:
    """An integer of Python, numpy or jax as that of Python; None for anything else."""
    if isinstance(value, bool | Tracer):
        return None
    try:
        return operator.index(value)  # pyright: ignore[reportArgumentType]
    except TypeError:
        return None


def as_number(value: object) -> float | None:
    """A real number of Python, numpy or jax as a float; None for anything else."""
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        real = jnp.issubdtype(value.dtype, jnp.floating)
        real |= jnp.issubdtype(value.dtype, jnp.integer)
        known = real and not value.shape and not isinstance(value, Tracer)
        return float(value) if known else None
    if isinstance(value, bool) or not isinstance(value, Real):
        return None
    return float(value)


def checked_key(key: Any, name: str = "key") -> jax.Array:
    """A single random key, typed or raw.

    Raises:
        TypeError: it is none.
        ValueError: there are several.
    """
    dtype, shape = getattr(key, "dtype", None), getattr(key, "shape", ())
    typed = dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)
    raw = dtype == jnp.uint32 and bool(shape) and shape[-1] in (2, 4)
    if not (typed or raw):
        raise TypeError(
            f"{name} is {describe(key)}, expected a random key: jax.random.key(0)"
        )
    several = shape if typed else shape[:-1]
    if several:
        raise ValueError(
            f"{name} holds keys of shape {tuple(several)}, expected a single one, such "
            f"as {name}[0]; jax.vmap maps over keys"
        )
    return key


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


def is_array(leaf: object) -> bool:
    """Whether a leaf is traced as an array; any other leaf is static."""
    return isinstance(leaf, jax.Array | np.ndarray | np.generic | jax.ShapeDtypeStruct)


def is_float(leaf: object) -> bool:
    """Whether a leaf carries a cotangent: a real or complex floating array."""
    dtype = getattr(leaf, "dtype", None)
    return dtype is not None and jnp.issubdtype(dtype, jnp.inexact)


def is_concrete(x: object) -> bool:
    """Whether the values of an array are known: it is not traced."""
    return not isinstance(x, Tracer)


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


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Batch:
    """A batch that says what of it the model takes and what its loss.

    A function that draws batches may return it, and a loader give it. The model is
    called with `inputs`; a loss that names `labels` gets `labels`, one that names
    `batch` gets all of it. A pytree.

    Example:
        >>> import flax.linen as nn, jax, jax.numpy as jnp, einit_jax as ei
        >>> model, x = nn.Dense(3), jnp.eye(6, 4)
        >>> params = model.init(jax.random.key(0), x)["params"]
        >>> def loss_fn(logits, labels):
        ...     return -jnp.mean(jax.nn.log_softmax(logits)[jnp.arange(6), labels])
        >>> rows = [{"image": x, "label": jnp.arange(6) % 3}]
        >>> loader = (ei.Batch(row["image"], row["label"]) for row in rows)
        >>> list(ei.tune(model, params, loader, loss_fn))
        ['input_grad', 'output', 'output_grad']
    """

    inputs: Any
    """An array or pytree, the single argument; a tuple, several of them; `Inputs`."""
    labels: Any = None
    """What the loss compares outputs with: any pytree of arrays."""


def as_inputs(drawn: Any) -> Inputs:
    """What was drawn, as the arguments of one call: a plain tuple holds several."""
    if isinstance(drawn, Inputs):
        return drawn
    if type(drawn) is tuple:
        return Inputs(*drawn)
    return Inputs(drawn)


def user_inputs(inputs: Inputs) -> Any:
    """The inputs as the user draws them: the single argument, a tuple, or Inputs."""
    if inputs.kwargs:
        return inputs
    return inputs.args[0] if len(inputs.args) == 1 else tuple(inputs.args)
