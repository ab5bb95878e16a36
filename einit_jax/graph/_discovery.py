"""A walk through nested jaxprs: which inputs and parameters each value depends on."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import jax.numpy as jnp
import numpy as np
from jax.extend.core import Jaxpr, Literal

from ..core import Path, find_lifted_axes, is_under
from ..units import Unit
from ._jaxprs import bodies, open_jaxpr, scan_counts


def units_from(calls: Mapping, outer: Mapping[Path, tuple[int, ...]]) -> list[Unit]:
    """The calls with no other such call strictly below them."""
    paths = {path for path, _ in calls}
    inside = {p[:i] for p in paths for i in range(len(p))}
    return [
        _unit_from(path, method, seen, outer)
        for (path, method), seen in calls.items()
        if path not in inside
    ]


SEVERAL = 1 << 20
"""The number of calls written down for a loop whose length is not known."""


SHAPING = {
    "broadcast_in_dim", "reshape", "convert_element_type", "squeeze", "transpose",
    "copy", "rev", "slice", "dynamic_slice", "copy_p",
    "optimization_barrier", "sharding_constraint",
}  # fmt: skip


WEIGHTING = {"dot_general", "ragged_dot_general", "conv_general_dilated", "gather"}


@dataclass
class CallRecord:
    """What the walk has seen of one method of one module."""

    kind: str
    shape: tuple[tuple[int, ...], ...]
    shapes: Mapping[str, list[int]]
    floats: bool = False
    opaque: bool = False
    narrow: bool = False
    elements: dict[int, int] = field(default_factory=dict)


def _unit_from(path: Path, method: str, seen: CallRecord, outer: Mapping) -> Unit:
    pairs = [
        (outer[(*path, *name.split("/"))], tuple(shape))
        for name, shape in seen.shapes.items()
        if (*path, *name.split("/")) in outer
    ]
    lift = find_lifted_axes(pairs)
    copies = int(np.prod([n for n in lift if n], dtype=int))
    calls = [
        elements / max(int(np.prod(seen.shape[i])), 1)
        for i, elements in seen.elements.items()
    ]
    several = max(1, round(max(calls) / copies))
    return Unit(
        path, method, seen.kind, seen.shape, several, lift, seen.floats, seen.opaque,
        seen.narrow,
    )  # fmt: skip


class DependenceWalk:
    """Follows, through nested jaxprs, which inputs and parameters each value needs.

    Tokens: ("own", path) a parameter, ("leaf", path) the same while only its shape
    changed, ("in", call, floating) an input of a call, ("outputs",) the model's result.
    """

    def __init__(self):
        self.calls: dict[tuple[Path, str], CallRecord] = {}
        self.factors: dict[Path, bool] = {}
        self.opaque: set[tuple] = set()

    def run(self, jaxpr: Jaxpr, ins: Iterable, trips: int, record: bool) -> list:
        env = dict(zip(jaxpr.invars, ins, strict=True))

        def read(atom):
            return (
                frozenset() if isinstance(atom, Literal) else env.get(atom, _NO_TOKENS)
            )

        for eqn in jaxpr.eqns:
            outs = self.equation(eqn, [read(v) for v in eqn.invars], trips, record)
            env.update(zip(eqn.outvars, outs, strict=True))
        return [read(v) for v in jaxpr.outvars]

    def equation(self, eqn, ins: list, trips: int, record: bool) -> list:
        name = eqn.primitive.name
        if name == "name":
            return [self.marker(eqn, ins[0], trips, record)]
        if name.startswith("custom_vjp_call"):
            self.opaque |= {t[:2] for tokens in ins for t in tokens}
        inner = bodies(eqn)
        if name == "scan":
            return self.scan(eqn, ins, trips * eqn.params["length"], record)
        if name == "while":
            return self.loop(eqn, ins, trips * SEVERAL, record)
        if name == "cond":
            outs = [self.run(b, ins[1:], trips, record) for b in inner]
            return [frozenset().union(*o) for o in zip(*outs, strict=True)]
        if len(inner) == 1 and len(inner[0].invars) == len(ins):
            return self.run(inner[0], ins, trips, record)
        union = frozenset().union(*ins)
        for body in inner:
            outs = self.run(body, [union] * len(body.invars), trips, record)
            union = union.union(*outs)
        return [self.result(eqn, union)] * len(eqn.outvars)

    def result(self, eqn, tokens: frozenset) -> frozenset:
        """Tokens after a plain equation; notes the parameters that multiply in it."""
        if eqn.primitive.name in SHAPING or not tokens:
            return tokens
        weight = eqn.primitive.name in WEIGHTING
        if weight or eqn.primitive.name == "mul":
            for token in tokens:
                if token[0] == "leaf":
                    self.factors[token[1]] = weight or self.factors.get(token[1], False)
        return frozenset(t for t in tokens if t[0] != "leaf")

    def marker(self, eqn, tokens: frozenset, trips: int, record: bool) -> frozenset:
        try:
            index, what, *about = json.loads(eqn.params["name"])
        except ValueError:
            return tokens
        if what == "outputs":
            return tokens | {("outputs",)}
        if what == "in":
            return tokens | {("in", about[0], index >= 0)}
        ident, path, method, *details = about
        owns = any(t[0] == "own" and is_under(t[1], tuple(path)) for t in tokens)
        inputs = {t for t in tokens if t[0] == "in" and t[1] == ident}
        if not (owns and inputs and index >= 0):
            return tokens - inputs
        if record:
            seen = CallRecord(details[0], _tuples(details[1]), details[2])
            seen = self.calls.setdefault((tuple(path), method), seen)
            seen.opaque |= any(t[:2] in self.opaque for t in tokens)
            seen.narrow |= eqn.outvars[0].aval.dtype == jnp.float16
            seen.floats |= any(t[2] for t in inputs)
            size = eqn.outvars[0].aval.size * trips
            seen.elements[index] = seen.elements.get(index, 0) + size
        return _NO_TOKENS

    def scan(self, eqn, ins: list, trips: int, record: bool) -> list:
        body = open_jaxpr(eqn.params["jaxpr"])
        consts, carries = scan_counts(eqn, body)
        while True:
            outs = self.run(body, ins, trips, False)
            grown = [a | b for a, b in zip(ins[consts:], outs[:carries], strict=False)]
            if grown == ins[consts : consts + carries]:
                break
            ins = [*ins[:consts], *grown, *ins[consts + carries :]]
        return self.run(body, ins, trips, record)

    def loop(self, eqn, ins: list, trips: int, record: bool) -> list:
        body = open_jaxpr(eqn.params["body_jaxpr"])
        ins = ins[eqn.params["cond_nconsts"] :]
        consts = eqn.params["body_nconsts"]
        while True:
            outs = self.run(body, ins, trips, False)
            grown = [a | b for a, b in zip(ins[consts:], outs, strict=True)]
            if grown == ins[consts:]:
                break
            ins = [*ins[:consts], *grown]
        return self.run(body, ins, trips, record)


_NO_TOKENS: frozenset = frozenset()


def _tuples(sizes: list) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(s) for s in sizes)
