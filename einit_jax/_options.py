"""What is static of `tune`: the units that are meant, the rules, and when to stop."""

from collections.abc import Mapping
from numbers import Real
from typing import Any, NamedTuple

import optax

from ._graph import Unit
from ._optimizer import refuse_no_optimizer
from ._paths import as_patterns, chosen, match
from ._state import Effort


class Meant(NamedTuple):
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
        kept = chosen(names, self.include, self.exclude)
        if not kept:
            raise ValueError("include and exclude leave no unit to tune")
        targets = match(dict(self.targets), names)
        return {u: targets.get(name, 1.0) for name, u in names.items() if name in kept}


class Options(NamedTuple):
    """Everything static that is no part of the problem itself."""

    meant: Meant
    effort: Effort
    gradients: str
    update: str
    optimizer: optax.GradientTransformation | None


RULES = {"gradients": ("exact", "unit", "plain"), "update": ("total", "local")}
LIKE = {"original": ("unit", "local")}


def rules(
    gradients: str, update: str, like: str | None, optimizer: Any
) -> tuple[str, str, optax.GradientTransformation | None]:
    """The rules of pillars 2 and 3, by name, and whose steps pillar 3 is about.

    Raises:
        TypeError: optimizer is none.
        ValueError: an unknown name, a rule that contradicts `like`, or "plain" without
            an optimizer.
    """
    refuse_no_optimizer(optimizer)
    given = {"gradients": gradients, "update": update}
    for name, known in RULES.items():
        if given[name] not in known:
            choices = " or ".join(map(repr, known))
            raise ValueError(f"{name}={given[name]!r} is not known; expected {choices}")
    if gradients == "plain" and optimizer is None:
        raise ValueError(
            "gradients='plain' leaves updates to an optimizer; pass one at learning "
            "rate 1, such as optimizer=optax.sgd(1.0)"
        )
    return *_alike(given, like), optimizer


def _alike(given: Mapping[str, str], like: str | None) -> tuple[str, str]:
    if like is None:
        return given["gradients"], given["update"]
    if like not in LIKE:
        raise ValueError(
            f"like={like!r} is not known; expected 'original', or leave it out"
        )
    for (name, known), meant in zip(RULES.items(), LIKE[like], strict=True):
        if given[name] not in (known[0], meant):
            raise ValueError(
                f"like={like!r} means {name}={meant!r}, not {given[name]!r}; give one"
            )
    return LIKE[like]


def units_meant(include: Any, exclude: Any, targets: Any) -> Meant:
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
    return Meant(
        None if include is None else as_patterns(include),
        as_patterns(exclude),
        tuple((p, float(t)) for p, t in pairs.items()),
    )


def effort_of(max_sweeps: Any, tolerance: Any) -> Effort:
    """When to stop.

    Raises:
        ValueError: no positive integer, or no positive number.
    """
    if not isinstance(max_sweeps, int) or max_sweeps < 1:
        raise ValueError(
            f"max_sweeps is {max_sweeps!r}, expected an integer, at least 1"
        )
    if not (isinstance(tolerance, Real) and float(tolerance) > 0):
        raise ValueError(f"tolerance is {tolerance!r}, expected a positive number")
    return Effort(max_sweeps, float(tolerance))
