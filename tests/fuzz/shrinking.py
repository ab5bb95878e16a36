"""Simpler examples that fail in the same way, and what "the same way" is."""

import re
from collections.abc import Callable, Iterator
from dataclasses import fields, replace

from tests.fuzz.examples import Example
from tests.fuzz.growing import Node, is_node
from tests.fuzz.properties import Verdict

SIMPLE: tuple[Node, ...] = (("act", "tanh"), ("dense", 4, True))


def failure_kind(verdict: Verdict) -> str:
    """The property that does not hold, and the words without names and numbers."""
    words = re.sub(
        r"\([^)]*\)|\[[^\]]*\]|'[^']*'|\S*[\d/]\S*|\w+_\w+", "", verdict.message
    )
    return f"{verdict.property}: {' '.join(words.split())[:70]}"


def smaller(node: Node) -> Iterator[Node]:
    """Nodes with a little less in them, the smallest first."""
    children = [value for value in node[1:] if is_node(value)]
    if node not in SIMPLE:
        yield from SIMPLE
    yield from children
    if node[0] in ("seq", "sequential", "listed") and len(children) > 1:
        for i in range(len(children)):
            yield (node[0], *children[:i], *children[i + 1 :])
    for i, value in enumerate(node):
        if i and is_node(value):
            for less in smaller(value):
                yield (*node[:i], less, *node[i + 1 :])


def simpler(example: Example) -> Iterator[Example]:
    """Examples with one thing less."""
    for f in fields(example):
        value = getattr(example, f.name)
        if f.name != "body" and value != f.default:
            yield replace(example, **{f.name: f.default})
    for name in ("options", "extra"):
        value = getattr(example, name)
        for i in range(len(value)):
            yield replace(example, **{name: value[:i] + value[i + 1 :]})
    for node in smaller(example.body):
        yield replace(example, body=node)


def shrunk(
    example: Example, fails: Callable[[Example], bool], tries: int = 60
) -> Example:
    """The simplest example that was found to fail, with so many tries."""
    tried: set[Example] = set()
    while tries > 0:
        for less in simpler(example):
            if less in tried or tries <= 0:
                continue
            tried.add(less)
            tries -= 1
            if fails(less):
                example = less
                break
        else:
            break
    return example
