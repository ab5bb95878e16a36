"""Marks: what is written beside arrays in a traced model, and how it is read again.

`jax.ad_checkpoint.checkpoint_name` leaves an equation with a name in the jaxpr, inside
of `pjit`, `scan`, `remat` and `cond` too. A mark is such a name: it tells of which call
an array is an input or an output. This file alone writes and reads the names.
"""

import json
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
from jax.ad_checkpoint import checkpoint_name
from jax.extend.core import Jaxpr
from jaxtyping import Array

from ..core import JaxprEqn, Partition, Path, is_key
from ._jaxprs import bodies

PREFIX = "einit:"
"""Tells marks from names that users gave."""


class Mark(NamedTuple):
    """What is known of one marked array."""

    role: str
    """An "input" or "output" of a module's call; a "derivative", where the model itself
    differentiates its output; a "result" of the model; an "estimated_input" or
    "estimated_output" of a module that has an estimator."""
    call: int = 0
    """The number of the call; no two calls of a process share it."""
    path: Path = ()
    method: str = "__call__"
    module_type: str = ""
    output_shapes: tuple[tuple[int, ...], ...] = ()
    """Of the call's floating outputs."""
    param_shapes: Mapping[str, tuple[int, ...]] = {}
    """Of the module's parameters as the call sees them, lifted axes gone, by path."""
    estimator: int = 0
    """The number of the class that has the estimator."""
    ruled: bool = False
    """Whether the call runs inside of a lifted custom reverse rule."""
    enclosing: tuple[tuple[Path, str], ...] = ()
    """The calls of modules inside of which the call runs, by path and method."""
    leaf: int = -1
    """The place among the floating leaves; -1 for other arrays."""

    def on(self, tree: Any) -> Any:
        """The tree with all arrays marked, typed random keys excepted."""
        leaves = Partition(tree)
        floats = [
            checkpoint_name(x, self._replace(leaf=i)._text())
            for i, x in enumerate(leaves.floats)
        ]
        text = self._text()
        others = [x if is_key(x) else checkpoint_name(x, text) for x in leaves.arrays]
        return leaves.build(floats, others)

    def where_differentiated(self, tree: Any) -> Any:
        """The tree with its floating arrays marked if something differentiates them."""
        leaves = Partition(tree)
        text = self._text()
        return leaves.build([_name_derivative(text, x) for x in leaves.floats])

    def _text(self) -> str:
        return PREFIX + json.dumps(self)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _name_derivative(text: str, t: Array) -> Array:
    """The array; under a derivative it has the name."""
    return t


@_name_derivative.defjvp
def _name_derivative_jvp(text, primals, tangents):
    return checkpoint_name(primals[0], text), tangents[0]


def read_mark(eqn: JaxprEqn) -> Mark | None:
    """The mark that an equation is; None for any other equation, a user's name too."""
    text = eqn.params["name"] if eqn.primitive.name == "name" else ""
    if not isinstance(text, str) or not text.startswith(PREFIX):
        return None
    mark = Mark(*json.loads(text.removeprefix(PREFIX)))
    tuples = lambda shapes: tuple(map(tuple, shapes))
    params = {path: tuple(shape) for path, shape in mark.param_shapes.items()}
    return mark._replace(
        path=tuple(mark.path),
        output_shapes=tuples(mark.output_shapes),
        param_shapes=params,
        enclosing=tuple((tuple(path), method) for path, method in mark.enclosing),
    )


def marks_in(jaxpr: Jaxpr) -> Iterator[Mark]:
    """The marks of a jaxpr and of those inside of it."""
    for eqn in jaxpr.eqns:
        mark = read_mark(eqn)
        if mark is not None:
            yield mark
        for body in bodies(eqn):
            yield from marks_in(body)
