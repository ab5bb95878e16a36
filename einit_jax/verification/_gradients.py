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
NOISE = 64
"""Up to how many times the rounding of the largest gradient in a unit a parameter's may
be noise: that of the bias of attention keys is zero, but for it."""


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

    def gradient(factors: Any) -> list[Array]:
        def loss(floats: list[Array]) -> Array:
            filled = args._replace(params=leaves.build(floats))
            outputs, _ = objective.run(filled, scaling(factors))
            dtypes.update(x.dtype for x in float_leaves(outputs))
            return objective.loss(outputs, args.batch)

        return objective.over_axis(lambda: jax.grad(loss)(leaves.floats))

    paths = [path for path, x in flatten(unboxed(args.params)).items() if is_float(x)]
    both = zip(gradient(factors), gradient(outputs_alone(factors)), strict=True)
    pairs = zip(paths, owners(args.params, units), both, strict=True)
    owned = [(path, unit, *pair) for path, unit, pair in pairs if unit is not None]
    rounding = max(float(jnp.finfo(dtype).eps) for dtype in dtypes)
    allowed = NEAR + 8 * rounding**0.75
    of_unit: dict[Unit, list[list[Array]]] = {}
    for _, unit, *pair in owned:
        of_unit.setdefault(unit, []).append(pair)
    noise = {
        unit: [NOISE * rounding * _largest(unit, g) for g in zip(*pairs, strict=True)]
        for unit, pairs in of_unit.items()
    }
    return Alignment(
        names=tuple(path_str(path) for path, *_ in owned),
        apart=[_apart(unit, pair, noise[unit]) / allowed for _, unit, *pair in owned],
    )


def _largest(unit: Unit, gradients: Sequence[Array]) -> Array:
    """The largest rms of some gradients, for each layer."""
    layers = [layers_first(g, unit.lifted_axes) for g in gradients]
    return jnp.max(jnp.stack([rms([x], len(unit.layers)) for x in layers]), 0)


def _apart(unit: Unit, gradients: Sequence[Array], noise: Sequence[Array]) -> Array:
    """How far two directions are, at the worst layer; 0 where one vanishes, or both are
    no larger than noise."""
    keep = len(unit.layers)
    directions, live, heard = [], jnp.array(True), jnp.array(False)
    for gradient, floor in zip(gradients, noise, strict=True):
        layers = widen(layers_first(gradient, unit.lifted_axes))
        size = rms([layers], keep)
        live &= size > 0
        heard |= size > floor
        rest = [1] * (layers.ndim - keep)
        directions.append(layers * inverse(size).reshape(*size.shape, *rest))
    far = rms([directions[0] - directions[1]], keep)
    return jnp.max(jnp.where(live & heard, far, 0.0))
