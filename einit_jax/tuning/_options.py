"""What is static of `tune`: the units that are meant, the rules, and when to stop."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import optax

from ..core import Stopping, check_optimizer
from ..units import UnitSelection


class TuneOptions(NamedTuple):
    """Everything static that is no part of the problem itself."""

    meant: UnitSelection
    effort: Stopping
    gradients: str
    update: str
    optimizer: optax.GradientTransformation | None


RULE_CHOICES = {"gradients": ("exact", "unit", "plain"), "update": ("total", "local")}


RULES_LIKE = {"original": ("unit", "local")}


def resolve_rules(
    gradients: str, update: str, like: str | None, optimizer: Any
) -> tuple[str, str, optax.GradientTransformation | None]:
    """The rules of pillars 2 and 3, by name, and whose steps pillar 3 is about.

    Raises:
        TypeError: optimizer is none.
        ValueError: an unknown name, a rule that contradicts `like`, or "plain" without
            an optimizer.
    """
    check_optimizer(optimizer)
    given = {"gradients": gradients, "update": update}
    for name, known in RULE_CHOICES.items():
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
    if like not in RULES_LIKE:
        raise ValueError(
            f"like={like!r} is not known; expected 'original', or leave it out"
        )
    for (name, known), meant in zip(
        RULE_CHOICES.items(), RULES_LIKE[like], strict=True
    ):
        if given[name] not in (known[0], meant):
            raise ValueError(
                f"like={like!r} means {name}={meant!r}, not {given[name]!r}; give one"
            )
    return RULES_LIKE[like]
