"""Which units a user means, and the output rms at which each aims."""

from collections.abc import Mapping
from numbers import Real
from typing import Any, NamedTuple

from ..core import as_patterns, match_patterns, select_names
from ._unit import Unit


class UnitSelection(NamedTuple):
    """Patterns of the units to tune, and of the output rms that they aim at."""

    include: tuple[str, ...] | None
    exclude: tuple[str, ...]
    targets: tuple[tuple[str, float], ...]

    def among(self, units: tuple[Unit, ...]) -> dict[Unit, float]:
        """The units that the patterns leave in, with the output rms each aims at.

        Raises:
            ValueError: a pattern matches no unit, or none is left.
        """
        names = {unit.name: unit for unit in units}
        kept = select_names(names, self.include, self.exclude)
        if not kept:
            raise ValueError("include and exclude leave no unit to tune")
        targets = match_patterns(dict(self.targets), names)
        return {u: targets.get(name, 1.0) for name, u in names.items() if name in kept}


def unit_selection(include: Any, exclude: Any, targets: Any) -> UnitSelection:
    """The patterns, checked as far as they can be without the units.

    Raises:
        ValueError: a target is no positive finite number.
    """
    pairs = targets if isinstance(targets, Mapping) else {"*": targets}
    for pattern, target in pairs.items():
        if not (isinstance(target, Real) and 0 < float(target) < float("inf")):
            raise ValueError(
                f"target {target!r} of pattern {pattern!r} is not positive and finite"
            )
    return UnitSelection(
        None if include is None else as_patterns(include),
        as_patterns(exclude),
        tuple((p, float(t)) for p, t in pairs.items()),
    )
