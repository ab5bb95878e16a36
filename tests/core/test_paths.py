"""Patterns over paths."""

from einit_jax.core import match_patterns
from tests.support.checks import refuses


def test_first_pattern_wins_and_all_must_match():
    names = {"a/b": 0, "a/c": 0}
    assert match_patterns({"a/b": 1, "*": 2}, names) == {"a/b": 1, "a/c": 2}
    with refuses(ValueError, match="matches no unit"):
        match_patterns({"x*": 1}, names)


def test_a_name_is_no_glob():
    """A unit called `b[1]` is meant by that name, and then `b1` is not."""
    names = {"b[1]": 0, "b1": 0, "b2": 0}
    assert match_patterns({"b[1]": 1}, names) == {"b[1]": 1}
    assert match_patterns({"b[1]": 1, "b*": 2}, names) == {
        "b[1]": 1, "b1": 2, "b2": 2
    }  # fmt: skip
    assert match_patterns({"b[12]": 1}, names) == {"b1": 1, "b2": 1}
    assert match_patterns({"b[1]": 1}, {"b1": 0, "b2": 0}) == {"b1": 1}
