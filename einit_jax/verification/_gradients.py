"""Whether the gradients that factors carry are true ones times a positive number."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ..core import (
    ModelArgs,
    Partition,
    flatten,
    float_leaves,
    inverse,
    is_concrete,
    is_float,
    layers_first,
    path_str,
    plain,
    rms,
    unboxed,
    widen,
)
from ..units import Objective, Unit, UnitKey, outputs_alone, owners, scaling

NEAR = 1e-3
"""How far the direction of a carried gradient may be from the true one: the rms of the
difference of both at rms 1. What rounding does is added, by the coarsest dtype of the
parameters and the outputs."""
SPREAD = 10
"""How many times as far as the true gradient's as parameters are nudged by their last
digit: the bias of attention keys, and of a layer before a norm, have gradients that are
nothing but rounding."""


@partial(jax.tree_util.register_dataclass, data_fields=["apart"], meta_fields=["names"])
@dataclass(frozen=True)
class Alignment:
    """How far each parameter's carried gradient is from the true one, in tolerances."""

    names: tuple[str, ...]
    apart: list[Array]

    def check(self) -> None:
        """Raises where a gradient is not true; under an outer trace, nothing.

        Raises:
            ValueError: names the parameters.
        """
        if not all(map(is_concrete, self.apart)):
            return
        wrong = self.missed()
        if wrong:
            raise ValueError(
                f"the scaled gradients of {', '.join(wrong[:8])} are not the true ones "
                "times a positive number: the parameters are read in a way that is not "
                "seen; leave their units out: tune(..., exclude=...), or ask for "
                "gradients='unit'"
            )

    def missed(self) -> list[str]:
        """The parameters whose gradients are not true."""
        apart = np.array(jax.device_get(self.apart))
        return np.array(self.names)[~(apart <= 1)].tolist()


def align_gradients(
    objective: Objective,
    units: Sequence[Unit],
    factors: Mapping[UnitKey, Mapping[str, Array]],
    args: ModelArgs,
) -> Alignment:
    """The gradients of the parameters of units, beside those at b = c = 1.

    Each layer's are compared by themselves: it has factors of its own.
    """
    leaves = Partition(plain(args.params))
    dtypes = {x.dtype for x in leaves.floats}

    def gradient(factors: Any, floats: list[Array]) -> list[Array]:
        def loss(floats: list[Array]) -> Array:
            filled = args._replace(params=leaves.build(floats))
            outputs, _ = objective.run(filled, scaling(factors))
            dtypes.update(x.dtype for x in float_leaves(outputs))
            return objective.loss(outputs, args.batch)

        return objective.over_axis(lambda: jax.grad(loss)(floats))

    forward = outputs_alone(factors)
    carried, true = (gradient(each, leaves.floats) for each in (factors, forward))
    rounding = max(float(jnp.finfo(dtype).eps) for dtype in dtypes)
    nudged = gradient(forward, [_nudged(x, rounding) for x in leaves.floats])
    paths = [path for path, x in flatten(unboxed(args.params)).items() if is_float(x)]
    found = zip(paths, owners(args.params, units), carried, true, nudged, strict=True)
    allowed = NEAR + 8 * rounding**0.75
    apart = {
        path_str(path): jnp.max(
            _apart(unit, mine, own) / (allowed + SPREAD * _apart(unit, own, moved))
        )
        for path, unit, mine, own, moved in found
        if unit is not None
    }
    return Alignment(names=tuple(apart), apart=list(apart.values()))


def _nudged(x: Array, rounding: float) -> Array:
    """The array, its elements by turns larger and smaller by their last digit."""
    signs = 1 - 2 * (jnp.arange(x.size) % 2).reshape(x.shape)
    return x + x * (rounding * signs).astype(x.dtype)


def _apart(unit: Unit, one: Array, other: Array) -> Array:
    """How far two gradients' directions are, by layer; 0 where one of them vanishes."""
    keep = len(unit.layers)
    directions, live = [], jnp.array(True)
    for gradient in (one, other):
        layers = widen(layers_first(gradient, unit.lifted_axes))
        size = rms([layers], keep)
        live &= size > 0
        rest = [1] * (layers.ndim - keep)
        directions.append(layers * inverse(size).reshape(*size.shape, *rest))
    return jnp.where(live, rms([directions[0] - directions[1]], keep), 0.0)
