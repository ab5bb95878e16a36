"""A model as a function of sizes: each of its arrays is multiplied by a number."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from ...core import (
    Collections,
    Draw,
    ModelArgs,
    Params,
    Path,
    as_patterns,
    broadcast_per_layer,
    flatten,
    is_float,
    layers_first,
    match_patterns,
    multiply,
    owner_of,
    path_str,
    rms,
    unboxed,
    widen,
    with_leaves,
)
from ...units import Objective


class Variables(NamedTuple):
    """A model's parameters and its further collections; a pytree."""

    params: Params
    collections: Collections


@dataclass(frozen=True)
class ScaledArray:
    """An array with a size, or one for each layer, in a vector of all sizes."""

    path: Path
    lifted_axes: tuple[int, ...]
    start: int
    """Where its sizes begin in the vector."""

    @property
    def layers(self) -> tuple[int, ...]:
        """The sizes of the lifted axes."""
        return tuple(n for n in self.lifted_axes if n)

    @property
    def stop(self) -> int:
        """Where its sizes end in the vector."""
        return self.start + int(np.prod(self.layers, dtype=int))

    def sizes_of(self, sizes: Float[Array, " n"], shape: tuple[int, ...]) -> Array:
        """This array's own sizes, shaped to multiply it."""
        carried = tuple(n or 1 for n in self.lifted_axes)
        own = sizes[self.start : self.stop].reshape(carried)
        return broadcast_per_layer(own, shape, self.lifted_axes)


@dataclass(frozen=True)
class Rescaling:
    """A model as a function of factors: all that is static about it."""

    objective: Objective
    scaled_arrays: tuple[ScaledArray, ...]

    def arrays(self, params: Params, factors: Float[Array, " n"]) -> dict[Path, Array]:
        """All floating arrays in at least 32 bits, the scaled ones times their factor.

        A factor of 1 leaves an array as it is, bit for bit.
        """
        arrays = {path: widen(x) for path, x in float_arrays(params).items()}
        for scaled in self.scaled_arrays:
            value = arrays[scaled.path]
            factor = scaled.sizes_of(factors, value.shape)
            arrays[scaled.path] = multiply(value, factor)
        return arrays

    def loss(
        self, arrays: Mapping[Path, Array], variables: Variables, batch: Draw
    ) -> Float[Array, ""]:
        """The loss with other arrays in the variables, in the dtypes of these."""
        params = restore_arrays(variables.params, arrays)
        args = ModelArgs(params, variables.collections, batch)
        outputs, _ = self.objective.run(args)
        return self.objective.loss(outputs, batch).astype(jnp.float32)

    def sizes(self, params: Params) -> Float[Array, " n"]:
        """The norm of each scaled array, one for each layer."""
        arrays = float_arrays(params)
        norms = []
        for scaled in self.scaled_arrays:
            value = layers_first(arrays[scaled.path], scaled.lifted_axes)
            inner = value.size // max(scaled.stop - scaled.start, 1)
            norms.append(rms([value], keep=len(scaled.layers)).ravel() * inner**0.5)
        return jnp.concatenate(norms)


@partial(jax.jit, static_argnums=0)
def rescale(
    rescaling: Rescaling, params: Params, factors: Float[Array, " n"]
) -> PyTree:
    """Params with each scaled array times its factor."""
    return restore_arrays(params, rescaling.arrays(params, factors))


def float_arrays(params: Params) -> dict[Path, Array]:
    """The floating arrays of params by path, without boxes."""
    leaves = flatten(unboxed(params))
    return {path: jnp.asarray(x) for path, x in leaves.items() if is_float(x)}


def restore_arrays(params: Params, arrays: Mapping[Path, Array]) -> Params:
    """Params with other values, in their dtypes and boxes."""
    old = flatten(unboxed(params))
    return with_leaves(params, {p: x.astype(old[p].dtype) for p, x in arrays.items()})


def make_rescaling(
    objective: Objective,
    args: ModelArgs,
    by_default: Callable[[Path, int], bool],
    *,
    include: str | Sequence[str] | None,
    exclude: str | Sequence[str],
) -> Rescaling:
    """The model with a factor for each array that patterns choose.

    Args:
        objective: the model and its loss.
        args: the arrays that the model runs on; it is traced.
        by_default: a function of a path and a number of axes, without lifted ones:
            whether the array gets a factor where `include` is None.
        include, exclude: patterns of array paths.

    Raises:
        TypeError, ValueError: as `Objective.trace`; a pattern matches no array, or no
            array is left.
    """
    units, arrays = objective.trace(args).units, float_arrays(args.params)
    unit_axes = {unit.path: unit.lifted_axes for unit in units}
    lifted_axes = {path: owner_of(path, unit_axes, ()) for path in arrays}
    names = {path_str(path): path for path in arrays}
    if include is None:
        kept = set()
        for name, path in names.items():
            rank = arrays[path].ndim - sum(n > 0 for n in lifted_axes[path])
            if by_default(path, rank):
                kept.add(name)
    else:
        kept = _matching(include, names, "include")
    kept -= _matching(exclude, names, "exclude")
    if not kept:
        raise ValueError(
            "include and exclude leave no array to resize; the arrays are: "
            f"{', '.join(names)}"
        )
    scaled_arrays, start = [], 0
    for name, path in names.items():
        if name in kept:
            scaled_arrays.append(ScaledArray(path, lifted_axes[path], start))
            start = scaled_arrays[-1].stop
    return Rescaling(objective, tuple(scaled_arrays))


def _matching(patterns: Any, names: Mapping[str, Path], argument: str) -> set[str]:
    """The names of arrays that some pattern of an argument matches."""
    values = dict.fromkeys(as_patterns(patterns, argument))
    return set(match_patterns(values, names, what="array"))
