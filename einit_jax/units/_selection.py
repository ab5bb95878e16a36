"""Which units a user means, and the output rms at which each aims."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from ..core import (
    as_number,
    as_patterns,
    describe,
    is_concrete,
    match_patterns,
    select_names,
)
from ._unit import RawParameter, Unit

TARGETS = 1e-30, 1e30
"""The least target and the largest."""
Target = float | tuple[Any, ...]
"""Of all layers of a unit; or nested tuples, of the shape of its layers."""


class UnitSelection(NamedTuple):
    """Patterns of the units to tune, and of the output rms that they aim at."""

    include: tuple[str, ...] | None
    exclude: tuple[str, ...]
    targets: tuple[tuple[str, Target], ...]

    def without(self, names: Iterable[str]) -> "UnitSelection":
        """The selection with some units left out, by name."""
        return self._replace(exclude=(*self.exclude, *names))

    def among(
        self, units: tuple[Unit, ...], raw: Iterable[RawParameter] = ()
    ) -> dict[Unit, Float[np.ndarray, "..."]]:
        """The units that the patterns leave in, with the output rms each aims at.

        That is a number for each layer, in the shape in which it is carried.

        Raises:
            ValueError: a pattern matches no unit and no raw parameter, no unit is left,
                or an array of targets does not have the shape of a unit's layers.
        """
        names = {unit.name: unit for unit in units}
        kept = self._names(units, raw)
        if not kept:
            raise ValueError("include and exclude leave no unit to tune")
        targets = match_patterns(dict(self.targets), names)
        for name, target in targets.items():
            _check_target_shape(names[name], target)
        chosen = {
            u: targets.get(name, 1.0) for name, u in names.items() if name in kept
        }
        return {unit: unit.carried(target) for unit, target in chosen.items()}

    def raw_among(
        self, units: Iterable[Unit], raw: Iterable[RawParameter]
    ) -> tuple[RawParameter, ...]:
        """The raw parameters that the patterns leave in."""
        raw = tuple(raw)
        kept = self._names(units, raw)
        return tuple(each for each in raw if each.name in kept)

    def _names(self, units: Iterable[Unit], raw: Iterable[RawParameter]) -> set[str]:
        names = {mover.name: mover for mover in (*units, *raw)}
        return select_names(names, self.include, self.exclude)


def unit_selection(include: Any, exclude: Any, targets: Any) -> UnitSelection:
    """The patterns, checked as far as they can be without the units.

    Raises:
        TypeError: a pattern is no string.
        ValueError: a target is no number from 1e-30 to 1e30, and no array of such.
    """
    least, most = TARGETS
    pairs = targets if isinstance(targets, Mapping) else {"*": targets}
    numbers = {}
    for pattern, target in pairs.items():
        if not isinstance(pattern, str):
            raise TypeError(
                f"targets have the pattern {pattern!r}, expected a glob over unit "
                "paths: {'*/Dense_0': 0.5}"
            )
        number = _as_target(target)
        sizes = np.array(np.nan if number is None else number)
        if number is None or not np.all((sizes >= least) & (sizes <= most)):
            raise ValueError(
                f"target {describe(target)} of pattern {pattern!r} is no number that "
                f"is positive, finite and known while nothing runs, from {least:g} to "
                f"{most:g}, where factors fit into float32; nor an array of such "
                "numbers, one for each layer of a unit under scan"
            )
        numbers[pattern] = number
    return UnitSelection(
        None if include is None else as_patterns(include, "include"),
        as_patterns(exclude, "exclude"),
        tuple(numbers.items()),
    )


def _as_target(value: Any) -> Target | None:
    """A number, or an array of numbers as nested tuples; None for anything else."""
    number = as_number(value)
    if number is not None or isinstance(value, str) or not is_concrete(value):
        return number
    try:
        array = np.asarray(value)
    except (TypeError, ValueError):  # rows of several lengths
        return None
    real = jnp.issubdtype(array.dtype, jnp.floating)
    real |= jnp.issubdtype(array.dtype, jnp.integer)
    return _as_tuples(array.astype(float).tolist()) if real and array.size else None


def _as_tuples(values: Any) -> Target:
    """Nested lists as tuples, which have a hash."""
    return tuple(map(_as_tuples, values)) if isinstance(values, list) else values


def _check_target_shape(unit: Unit, target: Target) -> None:
    """Raises where an array of targets is not of a unit's layers."""
    shape = np.shape(target)
    if shape not in ((), unit.layers):
        due = f"or an array of the shape {unit.layers}, for its layers"
        raise ValueError(
            f"targets of {unit.name!r} have the shape {shape}, expected one number"
            + (f" {due}" if unit.layers else ": it is a single layer")
        )
