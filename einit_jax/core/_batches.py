"""Batches, each with its random keys, and what draws them."""

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, SupportsIndex

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from ._drawn import (
    Split,
    as_arrays,
    check_drawn,
    generator_hint,
    is_loader,
    split_batch,
    take_batches,
)
from ._placement import on_host
from ._types import (
    Collections,
    Inputs,
    Params,
    as_integer,
    checked_key,
    describe,
    is_concrete,
    is_float,
    user_inputs,
)

DEFAULT_BATCH_SIZE = 64
"""Passed to an `input_fn` that demands a batch size where the user gives none."""


class Draw(NamedTuple):
    """One draw: what the model is called with, and the random keys of that call."""

    inputs: Inputs
    key: jax.Array
    """The key that the loss gets."""
    rngs: Mapping[str, jax.Array]
    """A key for each random stream of the model."""
    for_loss: Inputs = Inputs()
    """Keywords that the loss gets of the batch: "labels", "batch"."""


class ModelArgs(NamedTuple):
    """All arrays that one run of a model takes; a pytree."""

    params: Params
    collections: Collections
    batch: Draw


def stack_batches(batches: Sequence[Draw]) -> Draw:
    """The batches along a new first axis."""
    return jax.tree.map(lambda *x: jnp.stack(x), *batches)


def in_turn(run: Callable, items: Sequence[Any], *, written_out: bool) -> Any:
    """What `run` gives for each of some trees that are alike (batches, say), along a
    new first axis; in a loop or without."""
    stack = lambda trees: jax.tree.map(lambda *x: jnp.stack(x), *trees)
    if len(items) == 1 or written_out:
        return stack(map(run, items))
    return jax.lax.map(run, stack(items))


def default_key() -> jax.Array:
    """`jax.random.key(0)`, made where it is used: no transfer guard minds it."""
    return _key_of_seed(0)


_key_of_seed = jax.jit(jax.random.key, static_argnums=0)


def draw_batches(
    input_fn: Any,
    key: jax.Array,
    *,
    rngs: Sequence[str] | Mapping[str, jax.Array] = (),
    batch_size: SupportsIndex | None = None,
    draws: SupportsIndex = 1,
    split: Split = split_batch,
) -> tuple[Draw, ...]:
    """`draws` batches, each with a key for the loss and one for each random stream.

    Args:
        input_fn: a function of a key (and of `batch_size`, if it names it), a loader,
            from which the first ones are taken, an iterator, or a batch.
        key: the key that all others are folded from.
        rngs: names of random streams, or keys by name.
        batch_size: passed on where `input_fn` names it.
        draws: the number of batches.
        split: `split_batch`, with the names of what the loss takes.

    Raises:
        TypeError: input_fn takes other arguments than a key (and batch_size), or draws
            no arrays, or no labels that the loss wants; rngs are no names and no keys
            by name.
        ValueError: draws or batch_size is no positive integer; batch_size is given and
            input_fn takes none; a batch is empty, there are too few, or they differ in
            shape.
    """
    count = as_integer(draws)
    if count is None or count < 1:
        raise ValueError(f"draws is {draws!r}, expected a positive integer")
    size = None if batch_size is None else as_integer(batch_size)
    if batch_size is not None and (size is None or size < 1):
        raise ValueError(f"batch_size is {batch_size!r}, expected a positive integer")
    own_keys = dict(rngs) if isinstance(rngs, Mapping) else {}
    streams = tuple(dict.fromkeys(("params", *_checked_streams(rngs))))
    keys = _batch_keys(checked_key(key), streams=streams, draws=count)
    if is_loader(input_fn):
        _check_no_size(size, "brings batches of its own")
        drawn, said = take_batches(input_fn, count), "input_fn gave"
    else:
        drawn = [as_arrays(_draw_inputs(input_fn, own.inputs, size)) for own in keys]
        said = "input_fn returned" if callable(input_fn) else "input_fn is"
    batches = []
    for batch, own in zip(drawn, keys, strict=True):
        check_drawn(batch, said)
        inputs, for_loss = split(batch, said)
        batches.append(Draw(inputs, own.loss, own.rngs | own_keys, for_loss))
    _check_one_shape(batches)
    return tuple(batches)


def _check_no_size(batch_size: int | None, why: str) -> None:
    """Raises a ValueError where a batch size is given that nobody takes."""
    if batch_size is not None:
        raise ValueError(f"batch_size is given, but input_fn {why}; leave it out")


def _check_one_shape(batches: Sequence[Draw]) -> None:
    """Raises a ValueError where batches differ in shape."""
    types = [_types_of(batch) for batch in batches]
    for batch, own in zip(batches, types, strict=True):
        if own != types[0]:
            raise ValueError(
                f"input_fn drew {describe(batch.inputs)} after "
                f"{describe(batches[0].inputs)}; batches take turns in one compiled "
                "loop, so draw them all of one shape (drop the last, short one)"
            )


def _types_of(batch: Draw) -> tuple:
    """The structure of a batch, and the shapes and dtypes of its arrays."""
    leaves, tree = jax.tree.flatten(batch)
    return tree, [(jnp.shape(x), jnp.result_type(x)) for x in leaves]


def _checked_streams(rngs: Any) -> tuple[str, ...]:
    """The names of random streams.

    Raises:
        TypeError: they are no names, or what has them holds no keys.
        ValueError: several keys are given in the place of one.
    """
    names = (rngs,) if isinstance(rngs, str) else rngs
    if not isinstance(names, Iterable) or not all(isinstance(n, str) for n in names):
        raise TypeError(
            f"rngs is {describe(rngs)}, expected names of random streams, such as "
            "('dropout',), or keys by name, {'dropout': key}"
        )
    for name in rngs if isinstance(rngs, Mapping) else ():
        checked_key(rngs[name], f"rngs[{name!r}]")
    return tuple(names)


def only_zeros(inputs: Inputs) -> bool:
    """Whether a batch is of floating arrays, all of them known and zero throughout."""
    leaves = [leaf for leaf in jax.tree.leaves(inputs) if leaf.size]
    known = bool(leaves) and all(
        is_float(leaf) and _has_values(leaf) for leaf in leaves
    )
    with jax.ensure_compile_time_eval():
        return known and not any(_any_nonzero(leaf) for leaf in leaves)


def _has_values(leaf: Any) -> bool:
    return is_concrete(leaf) and not isinstance(leaf, jax.ShapeDtypeStruct)


def _any_nonzero(leaf: Any) -> bool:
    """Whether some element is not zero; on the host nothing is compiled for it."""
    if isinstance(leaf, jax.Array) and not on_host(leaf):
        return bool(jax.device_get(jax.jit(jnp.any)(leaf)))
    return bool(np.any(jax.device_get(leaf)))


def check_not_zero(batches: Sequence[Draw]) -> None:
    """Raises where a batch is known to be of zeros alone."""
    for batch in batches:
        if only_zeros(batch.inputs):
            raise ValueError(
                f"input_fn drew {describe(user_inputs(batch.inputs))}, all zeros, of "
                "which no scale can be told; pass inputs as the model will see them "
                "(zeros will do for model.init alone)"
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
        _check_no_size(batch_size, "is a concrete batch")
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
            f"(key, batch_size): {error}{generator_hint(input_fn)}"
        ) from None
    return input_fn(key, **keywords)


def or_all(counted: Bool[Array, "draws ..."]) -> Bool[Array, "draws ..."]:
    """Which draws count; all of them where none does."""
    return counted | ~jnp.any(counted, 0)


def geometric_mean(
    draws: Float[Array, "draws ..."], counted: Bool[Array, "draws ..."] | None = None
) -> Float[Array, "..."]:
    """Over the first axis, of those that count (None: all), or of all where none does.

    The value itself of a single one.
    """
    if len(draws) == 1:
        return draws[0]
    return jnp.exp(jnp.mean(jnp.log(draws), 0, where=_counting(draws, counted)))


def log_deviation(
    draws: Float[Array, "draws ..."], counted: Bool[Array, "draws ..."] | None = None
) -> Float[Array, "..."]:
    """The standard deviation of the natural logarithm, over those as above."""
    if len(draws) == 1:
        return jnp.zeros_like(draws[0])
    return jnp.std(jnp.log(draws), 0, where=_counting(draws, counted))


def _counting(
    draws: Float[Array, "draws ..."], counted: Bool[Array, "draws ..."] | None
) -> Bool[Array, "draws ..."]:
    """Which count, in the shape of all."""
    if counted is None:
        return jnp.ones(draws.shape, bool)
    rest = (1,) * (draws.ndim - counted.ndim)
    some = or_all(counted).reshape(*counted.shape, *rest)
    return jnp.broadcast_to(some, draws.shape)
