"""Patterns over paths."""

from einit_jax.core import match_patterns
from tests.support.checks import refuses


def test_first_pattern_wins_and_all_must_match():
    names = {"a/b": 0, "a/c": 0}
    assert match_patterns({"a/b": 1, "*": 2}, names) == {"a/b": 1, "a/c": 2}
    with refuses(ValueError, match="matches no unit"):
        match_patterns({"x*": 1}, names)
