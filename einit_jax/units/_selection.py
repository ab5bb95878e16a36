"""Which units a user means, and the output rms at which each aims."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from ..core import as_number, as_patterns, describe, match_patterns, select_names
from ._unit import RawParameter, Unit

TARGETS = 1e-30, 1e30
"""The least target and the largest."""


class UnitSelection(NamedTuple):
    """Patterns of the units to tune, and of the output rms that they aim at."""

    include: tuple[str, ...] | None
    exclude: tuple[str, ...]
    targets: tuple[tuple[str, float], ...]

    def without(self, names: Iterable[str]) -> "UnitSelection":
        """The selection with some units left out, by name."""
        return self._replace(exclude=(*self.exclude, *names))

    def among(
        self, units: tuple[Unit, ...], raw: Iterable[RawParameter] = ()
    ) -> dict[Unit, float]:
        """The units that the patterns leave in, with the output rms each aims at.

        Raises:
            ValueError: a pattern matches no unit and no raw parameter, or no unit is
                left.
        """
        names = {unit.name: unit for unit in units}
        kept = self._names(units, raw)
        if not kept:
            raise ValueError("include and exclude leave no unit to tune")
        targets = match_patterns(dict(self.targets), names)
        return {u: targets.get(name, 1.0) for name, u in names.items() if name in kept}

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
        ValueError: a target is no number from 1e-30 to 1e30.
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
        number = as_number(target)
        if number is None or not least <= number <= most:
            raise ValueError(
                f"target {describe(target)} of pattern {pattern!r} is no number that "
                f"is positive, finite and known while nothing runs, from {least:g} to "
                f"{most:g}, where factors fit into float32"
            )
        numbers[pattern] = number
    return UnitSelection(
        None if include is None else as_patterns(include, "include"),
        as_patterns(exclude, "exclude"),
        tuple(numbers.items()),
    )
