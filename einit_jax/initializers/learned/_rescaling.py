"""Parameter arrays times a number each, and the loss of the model that has them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ...core import (
    Batch,
    Path,
    as_patterns,
    broadcast_per_layer,
    describe,
    flatten,
    is_float,
    layers_first,
    match_patterns,
    multiply,
    owner_of,
    path_str,
    rms,
    stack_batches,
    unboxed,
    widen,
    with_leaves,
)
from ...linen import Objective, checked_loss, outputs_of, trace_model


@dataclass(frozen=True)
class ScaledArray:
    """An array that has a size, or one for each layer, in a vector of sizes."""

    path: Path
    lift: tuple[int, ...]
    start: int

    @property
    def layers(self) -> tuple[int, ...]:
        return tuple(n for n in self.lift if n)

    @property
    def stop(self) -> int:
        return self.start + int(np.prod(self.layers, dtype=int))

    def of(self, sizes: Float[Array, " n"], shape: tuple[int, ...]) -> Array:
        """This array's own sizes, shaped to multiply it."""
        ride = tuple(n or 1 for n in self.lift)
        return broadcast_per_layer(
            sizes[self.start : self.stop].reshape(ride), shape, self.lift
        )


@dataclass(frozen=True)
class Rescaling:
    """A model as a function of factors: all that is static about it."""

    task: Objective
    slots: tuple[ScaledArray, ...]

    def arrays(self, params: Any, factors: Float[Array, " n"]) -> dict[Path, Array]:
        """All floating arrays, at least float32, those with a slot times their factor.

        A factor of 1 leaves them bit for bit.
        """
        arrays = {path: widen(v) for path, v in float_arrays(params).items()}
        for slot in self.slots:
            value = arrays[slot.path]
            arrays[slot.path] = multiply(value, slot.of(factors, value.shape))
        return arrays

    def loss(
        self, arrays: Mapping[Path, Array], given: tuple[Any, Mapping], batch: Batch
    ) -> Float[Array, ""]:
        """The loss of params and collections with other arrays, in the same dtypes."""
        params, collections = given
        params = restore_arrays(params, arrays)
        outputs, _ = outputs_of(self.task, params, collections, batch)
        return checked_loss(self.task, outputs, batch).astype(jnp.float32)

    def sizes(self, params: Any) -> Float[Array, " n"]:
        """The norm of each array that has a slot, of each layer by itself."""
        arrays = float_arrays(params)
        norms = []
        for slot in self.slots:
            value = layers_first(arrays[slot.path], slot.lift)
            inner = value.size // max(slot.stop - slot.start, 1)
            norms.append(rms([value], keep=len(slot.layers)).ravel() * inner**0.5)
        return jnp.concatenate(norms)


@partial(jax.jit, static_argnums=0)
def rescale(how: Rescaling, params: Any, factors: Float[Array, " n"]) -> Any:
    """Params with each array that has a slot times its factor."""
    return restore_arrays(params, how.arrays(params, factors))


def pool_batches(batches: Sequence[Batch]) -> Batch:
    """The batches along a new first axis.

    Raises:
        ValueError: they differ in shape.
    """
    seen = [_batch_shapes(batch) for batch in batches]
    for i, look in enumerate(seen):
        if look != seen[0]:
            raise ValueError(
                f"input_fn drew {describe(batches[i].inputs)} after "
                f"{describe(batches[0].inputs)}; batches take turns in one compiled "
                "loop, so draw them all of one shape (drop the last, short one)"
            )
    return stack_batches(batches)


def _batch_shapes(batch: Batch) -> tuple:
    leaves, tree = jax.tree.flatten(batch)
    return tree, [(jnp.shape(x), jnp.result_type(x)) for x in leaves]


def float_arrays(params: Any) -> dict[Path, Array]:
    """The floating arrays of params by path, without boxes."""
    leaves = flatten(unboxed(params))
    return {path: jnp.asarray(v) for path, v in leaves.items() if is_float(v)}


def restore_arrays(params: Any, arrays: Mapping[Path, Array]) -> Any:
    """Params with other values, in their dtypes and boxes."""
    own = flatten(unboxed(params))
    return with_leaves(params, {p: v.astype(own[p].dtype) for p, v in arrays.items()})


def make_rescaling(
    task: Objective,
    params: Any,
    collections: Mapping,
    batch: Batch,
    wanted: Callable[[Path, int], bool],
    include: str | Sequence[str] | None,
    exclude: str | Sequence[str],
) -> Rescaling:
    """The model with a factor for each array that patterns choose.

    Args:
        wanted: of a path and a number of axes, without lifted ones: whether the array
            is meant where `include` is None.

    Raises:
        TypeError, ValueError: as `plan`; a pattern without a match, no array left.
    """
    units = trace_model(task, params, collections, batch).units
    lifts = {unit.path: unit.lift for unit in units}
    own = {path: owner_of(path, lifts, ()) for path in float_arrays(params)}
    axes = {
        p: v.ndim - sum(n > 0 for n in own[p]) for p, v in float_arrays(params).items()
    }
    names = {path_str(path): path for path in own}
    kept = {name for name, path in names.items() if wanted(path, axes[path])}
    if include is not None:
        kept = set(
            match_patterns(dict.fromkeys(as_patterns(include)), names, what="array")
        )
    kept -= set(
        match_patterns(dict.fromkeys(as_patterns(exclude)), names, what="array")
    )
    if not kept:
        raise ValueError(
            "include and exclude leave no array to resize; the arrays are: "
            f"{', '.join(names)}"
        )
    slots, start = [], 0
    for path in (path for name, path in names.items() if name in kept):
        slots.append(ScaledArray(path, own[path], start))
        start = slots[-1].stop
    return Rescaling(task, tuple(slots))
