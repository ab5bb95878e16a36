"""What is static of `tune`: the units selected, the rules, and when to stop."""

from typing import Any, NamedTuple

import optax

from ..core import Params, Stopping, optimizer_at_one
from ..graph import Regions, find_regions, multiplying
from ..units import ModelGraph, Objective, UnitSelection, owners
from ._state import SweepSpec

RULE_CHOICES = {"gradients": ("exact", "unit", "plain"), "update": ("total", "local")}
"""The rules of pillars 2 and 3 by name, the default first."""
RULES_LIKE = {"original": {"gradients": "unit", "update": "local"}}


class Rules(NamedTuple):
    """The rules of pillars 2 and 3, by name, and whose steps pillar 3 is about."""

    gradients: str
    update: str
    optimizer: optax.GradientTransformation | None


class TuneOptions(NamedTuple):
    """Everything static about a call of `tune` but the objective."""

    selection: UnitSelection
    stopping: Stopping
    rules: Rules
    verify: bool = True
    repeat_under_potentials: bool = False
    wide: bool = False


def resolve_rules(
    gradients: str, update: str, like: str | None, optimizer: Any
) -> Rules:
    """The rules that a user's words mean.

    Raises:
        TypeError: optimizer is none.
        ValueError: an unknown name, a rule that contradicts `like`, or "plain" without
            an optimizer.
    """
    rules = Rules(gradients, update, optimizer_at_one(optimizer))
    for name, choices in RULE_CHOICES.items():
        if getattr(rules, name) not in choices:
            raise ValueError(
                f"{name}={getattr(rules, name)!r} is not known; expected "
                f"{' or '.join(map(repr, choices))}"
            )
    if gradients == "plain" and optimizer is None:
        raise ValueError(
            "gradients='plain' leaves updates to an optimizer; pass one at learning "
            "rate 1, such as optimizer=optax.sgd(1.0)"
        )
    return rules if like is None else _rules_like(rules, like)


def _rules_like(rules: Rules, like: str) -> Rules:
    if like not in list(RULES_LIKE):
        raise ValueError(
            f"like={like!r} is not known; expected 'original', or leave it out"
        )
    for name, implied in RULES_LIKE[like].items():
        default, *_ = RULE_CHOICES[name]
        if getattr(rules, name) not in (default, implied):
            raise ValueError(
                f"like={like!r} means {name}={implied!r}, not "
                f"{getattr(rules, name)!r}; give one"
            )
    return rules._replace(**RULES_LIKE[like])


def sweep_spec(
    objective: Objective, options: TuneOptions, graph: ModelGraph, params: Params
) -> tuple[SweepSpec, Regions | None]:
    """What a sweep is to solve for, and the regions where gradients are exact."""
    units = options.selection.among(graph.units, graph.movable)
    gradients, update, optimizer = options.rules
    by_step = optimizer is not None or update == "total"
    raw = options.selection.raw_among(graph.units, graph.movable) if by_step else ()
    asked = gradients == "exact" or (bool(raw) and optimizer is None)
    regions = find_regions(graph, list(units)) if asked else None
    inside = {} if regions is None else regions.raw_by_update()
    regions = regions if gradients == "exact" else None
    spec = SweepSpec(
        objective,
        options.stopping,
        units,
        regions=None if regions is None or regions.is_chain() else regions,
        movers=owners(params, (*units, *raw)),
        counted=multiplying(graph, (*units, *raw)),
        raw_inside=inside,
        plain=gradients == "plain",
        repeat_under_potentials=options.repeat_under_potentials,
        wide=options.wide,
    )
    return spec, regions
