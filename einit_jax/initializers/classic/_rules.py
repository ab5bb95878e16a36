"""Which rule draws which array, and how."""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from numbers import Number
from typing import Any, NamedTuple

from ...binding import is_model_type
from ...core import Path
from ._parameters import Parameter
from ._presets import NEEDS_MODEL, PRESETS


class Rule(NamedTuple):
    """What a rule applies to, and what it does there."""

    selector: Any
    value: Any


def parse_rules(given: Any) -> list[Rule]:
    """The rules in order, checked as far as they can be without arrays.

    Raises:
        TypeError: a selector or a value that is none.
        ValueError: an unknown preset, or no rules.
    """
    if isinstance(given, str) or callable(given):
        given = {"*": given}
    pairs = given.items() if isinstance(given, Mapping) else given
    try:
        rules = [Rule(*pair) for pair in pairs]
    except TypeError:
        raise TypeError(
            f"rules are {given!r}, expected a preset's name, an initializer, a mapping "
            "from selectors to values, or a sequence of (selector, value)"
        ) from None
    if not rules:
        raise ValueError("rules are empty; add a default: {'*': ...}")
    for rule in rules:
        _check_selector(rule.selector)
        _check_value(rule)
    return rules


def _check_selector(selector: Any) -> None:
    pair = isinstance(selector, tuple) and len(selector) == 2
    module, name = selector if pair else (selector, "")
    known = selector is ... or isinstance(selector, str)
    known |= isinstance(selector, int) and not isinstance(selector, bool)
    if known or (is_model_type(module) and isinstance(name, str)):
        return
    raise TypeError(
        f"rule {selector!r} is no selector, expected a glob over paths ('*/kernel'), a "
        "rank (2), a module class (nn.Dense), a pair (nn.Dense, 'kernel'), or ..."
    )


def _check_value(rule: Rule) -> None:
    value = rule.value
    if isinstance(value, str) and value not in PRESETS:
        raise ValueError(
            f"preset {value!r} is not known; the presets are: {', '.join(PRESETS)}"
        )
    number = isinstance(value, Number) and not isinstance(value, bool)
    if not (value is None or number or isinstance(value, str) or callable(value)):
        raise TypeError(
            f"the value of rule {rule_str(rule)} is a {type(value).__name__}, "
            "expected a number, a function (key, shape, dtype), a preset's name, or "
            "None (keep)"
        )


def wants_model(rules: Sequence[Rule]) -> Rule | None:
    """The first rule that only a model can tell how to apply."""
    for rule in rules:
        classes = isinstance(rule.selector, type | tuple)
        if classes or (isinstance(rule.value, str) and rule.value in NEEDS_MODEL):
            return rule
    return None


def match_rules(
    rules: Sequence[Rule], sites: Sequence[Parameter], types: Mapping[Path, type]
) -> list[tuple[Parameter, Rule]]:
    """Each array with the first rule that matches it.

    Raises:
        ValueError: a rule that matches no array, or an array that no rule matches.
    """
    shown = ", ".join(s.name for s in sites[:12]) + (", ..." if len(sites) > 12 else "")
    for rule in rules:
        if not any(_rule_matches(rule.selector, site, types) for site in sites):
            raise ValueError(
                f"rule {rule_str(rule)} matches no array; {_hint(rule, types)}the "
                f"arrays are: {shown}"
            )
    found = []
    for site in sites:
        first = (r for r in rules if _rule_matches(r.selector, site, types))
        rule = next(first, None)
        if rule is None:
            raise ValueError(
                f"no rule matches {site.name!r}, of shape {site.shape}; add a default "
                "last, such as '*': 'lecun_normal', or '*': None to keep what is there"
            )
        found.append((site, rule))
    return found


def rule_str(rule: Rule) -> str:
    name = getattr(rule.selector, "__name__", None)
    return name or repr(rule.selector)


def _hint(rule: Rule, types: Mapping[Path, type]) -> str:
    if isinstance(rule.selector, str):
        return "patterns are globs over the whole path, such as '*/kernel'; "
    names = ", ".join(sorted({t.__name__ for t in types.values()}))
    return f"the modules are of: {names}; " if names else ""


def _rule_matches(selector: Any, site: Parameter, types: Mapping[Path, type]) -> bool:
    if selector is ... or isinstance(selector, str):
        return fnmatchcase(site.name, "*" if selector is ... else selector)
    if isinstance(selector, int):
        return site.rank == selector
    module, name = selector if isinstance(selector, tuple) else (selector, "*")
    return any(
        issubclass(types.get(site.path[:i], object), module)
        and fnmatchcase("/".join(site.path[i:]), name)
        for i in range(len(site.path))
    )


def rule_value(site: Parameter, rule: Rule) -> Any:
    """What the rule says for the array: a number, an initializer, or None.

    Raises:
        ValueError: it hangs on axes that shapes alone do not tell.
    """
    value = rule.value
    asks = callable(value) or (isinstance(value, str) and site.role == "weight")
    if asks and site.axes is None:
        raise ValueError(
            f"rule {rule_str(rule)} draws {site.name!r} by its fans, but only the "
            f"model tells which axes of {site.shape} it sums over; pass model=..., "
            "input_fn=..."
        )
    if isinstance(value, str):
        return PRESETS[value](site)
    return value
