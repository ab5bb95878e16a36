"""What a row of the table of NNX models is, and the losses the rows share."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from tests.support.cases import integers, normal

TAGS = {
    "buffer": "arrays or variables that are no parameters, which no call changes",
    "cell": "a recurrent cell, called once per time step",
    "complex": "complex parameters",
    "cond": "nnx.cond or nnx.switch: one branch is taken",
    "dtype": "computation in another type than float32",
    "idle": "parameters that these inputs do not reach",
    "inputs": "several positional arguments",
    "integers": "an input of integers",
    "jit": "nnx.jit inside the model",
    "linen": "a Linen module inside, by nnx.bridge",
    "loop": "nnx.fori_loop or nnx.while_loop",
    "outputs": "a dict or a tuple of outputs",
    "overwrites": "a call writes to parameters",
    "raw": "an nnx.Param, or an array, of a module that has submodules too",
    "remat": "nnx.remat",
    "rng": "a call draws random numbers",
    "rngs_input": "an nnx.Rngs among the positional arguments",
    "scan": "nnx.scan or jax.lax.scan over stacked parameters",
    "shared": "a module, or a parameter, used more than once in a call",
    "state": "a call changes variables that are no parameters",
    "vmap": "nnx.vmap over members or over inputs",
    "wide": "hidden layers 32 wide",
    "zeros": "weights or gains that start at zero",
}


def to_ones(outputs: Any) -> jax.Array:
    """The mean squared distance to one of each floating output, summed."""
    leaves = [jnp.asarray(leaf) for leaf in jax.tree.leaves(outputs)]
    floats = [leaf for leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.floating)]
    errors = [jnp.mean((leaf.astype(jnp.float32) - 1.0) ** 2) for leaf in floats]
    return jnp.stack(errors).sum()


def to_labels(outputs: jax.Array) -> jax.Array:
    """The cross-entropy of logits, for the labels 0, 1, 2, ... along the batch."""
    logits = nnx.log_softmax(outputs.astype(jnp.float32))
    logits = logits.reshape(-1, logits.shape[-1])
    labels = jnp.arange(len(logits)) % logits.shape[-1]
    return -jnp.take_along_axis(logits, labels[:, None], axis=-1).mean()


@dataclass(frozen=True, eq=False)
class NnxCase:
    """One row: how to build a model, and what to run it on."""

    build: Callable[[nnx.Rngs], nnx.Module]
    inputs: Callable[[jax.Array], Any]  # inputs(key) -> array | positional arguments
    loss: Callable[[Any], jax.Array] = to_ones
    kwargs: dict[str, Any] = field(default_factory=dict)  # keywords of the call
    tags: frozenset[str] = frozenset()

    def __post_init__(self):
        assert self.tags <= TAGS.keys(), self.tags - TAGS.keys()

    def args(self, key: jax.Array) -> tuple:
        """The positional arguments of a call."""
        return as_args(self.inputs(key))


def as_args(batch: Any) -> tuple:
    """A plain tuple holds positional arguments; anything else is the one argument."""
    return batch if type(batch) is tuple else (batch,)


def row(
    build: Callable[[nnx.Rngs], nnx.Module],
    inputs: Callable[[jax.Array], Any],
    tags: str = "",
    loss: Callable[[Any], jax.Array] = to_ones,
    **kwargs: Any,
) -> NnxCase:
    """A case; `kwargs` are the keywords of the call."""
    return NnxCase(build, inputs, loss, kwargs, frozenset(tags.split()))


vectors = normal(8, 8)
series = normal(4, 5, 8)  # (batch, time, features)
images = normal(4, 8, 8, 3)
tokens = integers(11, 4, 6)
