"""The rules of `initialize`: how they are checked, matched with arrays, and read."""

from collections.abc import Container, Mapping, Sequence
from fnmatch import fnmatchcase
from functools import partial
from numbers import Number
from typing import Any, NamedTuple

from ...binding import is_model_type
from ...core import Path, name_matches
from ._parameters import Parameter
from ._presets import NEEDS_MODEL, PRESETS, RuleValue


class Rule(NamedTuple):
    """One rule of the user's, which `parse_rules` checks."""

    selector: Any
    """Which arrays it applies to: a glob, a rank, a module class, ..."""
    value: Any
    """How it draws them: a `RuleValue`, or the name of a preset."""


def parse_rules(rules: Any) -> list[Rule]:
    """The rules in order, checked as far as they can be without arrays.

    Raises:
        TypeError: a selector or a value that is none.
        ValueError: an unknown preset, or no rules.
    """
    if isinstance(rules, str) or callable(rules):
        rules = {"*": rules}
    pairs = rules.items() if isinstance(rules, Mapping) else rules
    try:
        parsed = [Rule(*pair) for pair in pairs]
    except TypeError:
        raise TypeError(
            f"rules are {rules!r}, expected a preset's name, an initializer, a mapping "
            "from selectors to values, or a sequence of (selector, value)"
        ) from None
    if not parsed:
        raise ValueError("rules are empty; add a default: {'*': ...}")
    for rule in parsed:
        _check_selector(rule.selector)
        _check_value(rule)
    return parsed


def _check_selector(selector: Any) -> None:
    """Raises a TypeError for what is no selector."""
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
    """Raises for what is no value of a rule."""
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
    """The first rule that cannot be applied without the model."""
    for rule in rules:
        classes = isinstance(rule.selector, type | tuple)
        if classes or (isinstance(rule.value, str) and rule.value in NEEDS_MODEL):
            return rule
    return None


def match_rules(
    rules: Sequence[Rule], parameters: Sequence[Parameter], types: Mapping[Path, type]
) -> list[tuple[Parameter, Rule]]:
    """Each array with the first rule that matches it.

    Raises:
        ValueError: a rule that matches no array, or an array that no rule matches.
    """
    names = ", ".join(p.name for p in parameters[:12])
    names += ", ..." if len(parameters) > 12 else ""
    names_of = {p.name for p in parameters}
    matches_one = partial(_rule_matches, names=names_of, types=types)
    for rule in rules:
        if not any(matches_one(rule.selector, p) for p in parameters):
            raise ValueError(
                f"rule {rule_str(rule)} matches no array; {_hint(rule, types)}the "
                f"arrays are: {names}"
            )
    matches = []
    for parameter in parameters:
        matching = (r for r in rules if matches_one(r.selector, parameter))
        rule = next(matching, None)
        if rule is None:
            raise ValueError(
                f"no rule matches {parameter.name!r}, of shape {parameter.shape}; "
                "add a default last, such as '*': 'lecun_normal', or '*': None to keep "
                "what is there"
            )
        matches.append((parameter, rule))
    return matches


def rule_str(rule: Rule) -> str:
    """The rule's selector, as error messages show it."""
    name = getattr(rule.selector, "__name__", None)
    return name or repr(rule.selector)


def _hint(rule: Rule, types: Mapping[Path, type]) -> str:
    """What may help a user whose rule matches nothing."""
    if isinstance(rule.selector, str):
        return "patterns are globs over the whole path, such as '*/kernel'; "
    names = ", ".join(sorted({t.__name__ for t in types.values()}))
    return f"the modules are of: {names}; " if names else ""


def _rule_matches(
    selector: Any,
    parameter: Parameter,
    *,
    names: Container[str],
    types: Mapping[Path, type],
) -> bool:
    """Whether a selector matches an array.

    `names` are those of all arrays, `types` the classes of modules.
    """
    if selector is ...:
        return True
    if isinstance(selector, str):
        return name_matches(parameter.name, selector, names)
    if isinstance(selector, int):
        return parameter.rank == selector
    module, name = selector if isinstance(selector, tuple) else (selector, "*")
    return any(
        issubclass(types.get(parameter.path[:i], object), module)
        and fnmatchcase("/".join(parameter.path[i:]), name)
        for i in range(len(parameter.path))
    )


def rule_value(parameter: Parameter, rule: Rule) -> RuleValue:
    """How the rule draws the array: a number, an initializer, or None.

    Raises:
        ValueError: it depends on axes that shapes alone do not tell.
    """
    value = rule.value
    is_preset = isinstance(value, str)
    by_fans = callable(value) or (is_preset and parameter.role == "weight")
    if by_fans and parameter.axes is None:
        raise ValueError(
            f"rule {rule_str(rule)} draws {parameter.name!r} by its fans, but only the "
            f"model tells which axes of {parameter.shape} it sums over; "
            "pass model=..., input_fn=..."
        )
    if isinstance(value, str):
        return PRESETS[value](parameter)
    return value
