"""What a row of the model table is, and the inputs and losses the rows share."""

import itertools
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

import einit_jax as ei

NONE: frozenset[str] = frozenset()
# Compiling the initializers of convolutions takes seconds at the usual level.
QUICK = {"xla_backend_optimization_level": 0}


class Job(NamedTuple):
    """A model ready to tune: what a test passes to the package."""

    model: nn.Module
    params: Any  # variables["params"], as `model.init` made them
    input_fn: Callable  # input_fn(key) -> array | pytree | tuple | ei.Inputs
    loss_fn: Callable  # loss_fn(outputs) or loss_fn(outputs, key=...) -> scalar
    options: dict[str, Any] = {}  # noqa: RUF012 - method, rngs, collections, axis_name


@dataclass(frozen=True)
class Case:
    """One row: how to build the job, and what must be found in its model."""

    name: str
    build: Callable[[], Job]
    units: frozenset[str]
    shared: frozenset[str] = NONE  # units called more than once per model run
    loose: frozenset[str] = NONE  # parameters that belong to no unit
    zeros: frozenset[str] = NONE  # arrays that start at zero, biases aside
    idle: frozenset[str] = NONE  # units, in branches the inputs never take
    unreached: frozenset[str] = NONE  # modules with parameters, never called

    def __post_init__(self):
        """A job is built once: compiling its initialization takes most of that."""
        object.__setattr__(self, "build", cache(self.build))


def paths(text: str) -> frozenset[str]:
    """The set of paths in `text`, with braces as in a shell: `mlp/{up,down}`."""
    return frozenset(path for word in text.split() for path in _expand(word))


def _expand(word: str) -> list[str]:
    parts = re.split(r"\{([^{}]*)\}", word)
    choices = [p.split(",") if i % 2 else [p] for i, p in enumerate(parts)]
    return ["".join(choice) for choice in itertools.product(*choices)]


def make(
    model: nn.Module,
    input_fn: Callable,
    loss_fn: Callable | None = None,
    init: Any = None,
    **options: Any,
) -> Job:
    """Initialize `model` on a first batch; `init` is a method only `init` uses."""
    names = ("params", *options.get("rngs", ()))
    rngs = dict(
        zip(names, jax.random.split(jax.random.key(0), len(names)), strict=True)
    )
    batch = as_inputs(input_fn(jax.random.key(1)))
    method = init or options.get("method")

    @partial(jax.jit, compiler_options=QUICK)
    def variables_of(rngs, batch):
        return model.init(rngs, *batch.args, method=method, **batch.kwargs)

    variables = dict(variables_of(rngs, batch))
    params = variables.pop("params")
    if variables:
        options["collections"] = variables
    return Job(model, params, input_fn, loss_fn or squared_error, options)


def as_inputs(batch: Any) -> ei.Inputs:
    """A plain tuple holds positional arguments; anything else is the one argument."""
    if isinstance(batch, ei.Inputs):
        return batch
    return ei.Inputs(*batch) if type(batch) is tuple else ei.Inputs(batch)


# Inputs: functions of a key.


def normal(*shape: int) -> Callable:
    return lambda key: jax.random.normal(key, shape)


def integers(high: int, *shape: int, dtype: Any = jnp.int32) -> Callable:
    return lambda key: jax.random.randint(key, shape, 0, high, dtype)


def constant(value: Any) -> Callable:
    return lambda key: jnp.asarray(value)


def batches(*input_fns: Callable, **keywords: Any) -> Callable:
    """Several positional arguments, each from its own key, and fixed keywords."""

    def input_fn(key):
        keys = jax.random.split(key, len(input_fns))
        args = tuple(f(k) for f, k in zip(input_fns, keys, strict=True))
        return ei.Inputs(*args, **keywords) if keywords else args

    return input_fn


vectors = normal(16, 8)
series = normal(16, 5, 8)  # (batch, time, features)
images = normal(16, 8, 8, 3)


# Losses: smooth, with a gradient that is zero for no generic output.


def squared_error(outputs: Any, key: jax.Array) -> jax.Array:
    """The distance of every output to targets drawn from the key."""
    leaves = jax.tree.leaves(outputs)
    keys = jax.random.split(key, len(leaves))
    errors = [
        jnp.mean((leaf.astype(jnp.float32) - jax.random.normal(k, leaf.shape)) ** 2)
        for leaf, k in zip(leaves, keys, strict=True)
    ]
    return jnp.stack(errors).sum()


def cross_entropy(outputs: jax.Array, key: jax.Array) -> jax.Array:
    """The output as logits, for labels drawn from the key."""
    labels = jax.random.randint(key, outputs.shape[:-1], 0, outputs.shape[-1])
    logits = outputs.astype(jnp.float32)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def to_one(outputs: jax.Array) -> jax.Array:
    """A loss that needs no key: the distance to one."""
    return jnp.mean((outputs - 1.0) ** 2)
