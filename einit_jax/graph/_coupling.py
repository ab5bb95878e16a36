"""Which values of a model share a potential: a union-find over nested jaxprs.

Carried gradients are true ones up to a positive factor, the potential, exactly when all
values that anything but a unit ties together share one. The walk joins what an equation
joins, and cuts at the marks of units. What depends on no parameter (a mask, a table of
positions, the inputs) carries no gradient to one, and ties nothing.
"""

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from jax.extend.core import Jaxpr, Literal

from ..core import Path
from ._jaxprs import bodies, has_cotangent, open_jaxpr, scan_counts
from ._union_find import UnionFind

UNCHANGED = {"convert_element_type", "copy", "copy_p", "optimization_barrier",
            "sharding_constraint"}  # fmt: skip


CUSTOM_RULES = ("custom_jvp_call", "custom_vjp_call")


class ParameterSlice(NamedTuple):
    """A parameter, or a slice of it, and which of its axes are left."""

    path: Path
    axes: tuple[int, ...]


class CoupledValue(NamedTuple):
    """A value that depends on parameters: its class, and the parameter that it is."""

    label: int
    leaf: ParameterSlice | None = None


class PortUse(NamedTuple):
    """A port of a unit ("in", "out", "own") or a use of a parameter ("leaf").

    `slices` holds, per axis of a parameter's leaf that scans around it have sliced, the
    iteration.
    """

    key: tuple[str, Path, str]
    slices: frozenset[tuple[Path, int, int]]
    label: int


@dataclass(frozen=True)
class Coupling:
    """What is to be known of a jaxpr by whoever calls it."""

    ins: tuple[CoupledValue | None, ...]
    outs: tuple[CoupledValue | None, ...]
    marks: tuple[PortUse, ...]


class CouplingWalk:
    """Walks jaxprs; each is walked once for each kind of inputs."""

    def __init__(self, units: Collection[tuple[Path, str]]):
        self.units = units
        self._known: dict[tuple, tuple[Jaxpr, Coupling]] = {}

    def seen(self, jaxpr: Jaxpr, seeds: Sequence[ParameterSlice | bool]) -> Coupling:
        """What a jaxpr ties, given which inputs depend on parameters (or are some)."""
        key = (id(jaxpr), tuple(seeds))
        if key not in self._known:  # kept with the jaxpr, so that its id stays its own
            self._known[key] = (jaxpr, _JaxprScope(self).run(jaxpr, seeds))
        return self._known[key][1]


class _JaxprScope:
    """One jaxpr under the walk, with classes of its own."""

    def __init__(self, ties: CouplingWalk):
        self.ties = ties
        self.classes = UnionFind()
        self.marks: list[PortUse] = []
        self.ports: dict[tuple, int] = {}

    def run(self, jaxpr: Jaxpr, seeds: Sequence[ParameterSlice | bool]) -> Coupling:
        env: dict[Any, CoupledValue | None] = {}
        for var, seed in zip(jaxpr.invars, seeds, strict=True):
            if seed and has_cotangent(var):
                leaf = seed if isinstance(seed, ParameterSlice) else None
                env[var] = CoupledValue(self.classes.new(), leaf)

        def read(atom: Any) -> CoupledValue | None:
            return None if isinstance(atom, Literal) else env.get(atom)

        ins = tuple(read(v) for v in jaxpr.invars)
        for eqn in jaxpr.eqns:
            outs = self.equation(eqn, [read(v) for v in eqn.invars])
            env.update(zip(eqn.outvars, outs, strict=True))
        return self.settled(ins, tuple(read(v) for v in jaxpr.outvars))

    def settled(self, ins: tuple, outs: tuple) -> Coupling:
        find = self.classes.find
        root = lambda v: v and v._replace(label=find(v.label))
        marks = {m._replace(label=find(m.label)): None for m in self.marks}
        return Coupling(tuple(map(root, ins)), tuple(map(root, outs)), tuple(marks))

    def equation(self, eqn: Any, ins: list) -> list:
        name = eqn.primitive.name
        if not any(ins) and name != "name":
            return [None] * len(eqn.outvars)
        if name == "name":
            return [self.marker(eqn, ins[0])]
        if name == "stop_gradient":
            return [None]
        if name == "scan":
            return self.scan(eqn, ins)
        if name == "while":
            return self.loop(eqn, ins)
        inner = bodies(eqn)
        if name == "cond":
            return self.branches(eqn, inner, ins[1:])
        if name.startswith(
            CUSTOM_RULES
        ):  # rules of their own may tie more than the body
            outs = self.enter(inner[0], ins) if inner else []
            return self.tied(eqn, [*ins, *outs])
        if len(inner) == 1 and len(inner[0].invars) == len(ins):
            return self.enter(inner[0], ins)
        for body in inner:
            label = self.used(ins)
            some = [CoupledValue(label) for _ in body.invars]
            ins = [*ins, *self.enter(body, some)]
        return self.plain(eqn, ins)

    def plain(self, eqn: Any, ins: list) -> list:
        """All that is joined in one equation; a parameter stays one if it can."""
        (only, *others) = [v for v in ins if v]
        if only.leaf and not others and len(eqn.outvars) == 1:
            axes = only.leaf.axes
            if eqn.primitive.name == "transpose":
                axes = tuple(axes[i] for i in eqn.params["permutation"])
                return [only._replace(leaf=only.leaf._replace(axes=axes))]
            if eqn.primitive.name in UNCHANGED and has_cotangent(eqn.outvars[0]):
                return [only]
        return self.tied(eqn, ins)

    def tied(self, eqn: Any, values: list) -> list:
        label = self.used(values)
        return [CoupledValue(label) if has_cotangent(v) else None for v in eqn.outvars]

    def used(self, values: Sequence[CoupledValue | None]) -> int:
        """The class of values that meet; parameters among them are noted as used."""
        for value in values:
            if value and value.leaf:
                key = ("leaf", value.leaf.path, "")
                self.marks.append(PortUse(key, frozenset(), value.label))
        return self.classes.join([v.label for v in values if v])

    def marker(self, eqn: Any, value: CoupledValue | None) -> CoupledValue | None:
        try:
            index, what, *about = json.loads(eqn.params["name"])
        except ValueError:
            return value
        if what == "outputs" or index < 0:
            return value
        path, method = tuple(about[1]), about[2]
        if (path, method) not in self.ties.units:
            return value
        own = self.port("own", path, "", None)
        if what == "in":
            label = self.port("in", path, method, about[0])
            if value:
                self.used([CoupledValue(label), value])
            return CoupledValue(own)
        if value:
            self.used([CoupledValue(own), value])
        return CoupledValue(self.port("out", path, method, about[0]))

    def port(self, role: str, path: Path, method: str, call: int | None) -> int:
        """The class of a unit's port, one for each call, and one for its inside."""
        key = (role, path, method, call)
        if key not in self.ports:
            self.ports[key] = self.classes.new()
            self.marks.append(
                PortUse((role, path, method), frozenset(), self.ports[key])
            )
        return self.ports[key]

    def enter(
        self, body: Jaxpr, ins: Sequence, sliced: frozenset | None = None
    ) -> list:
        """The outputs of a body called with `ins`, its classes joined to this scope's.

        `sliced` holds what a scan around the body slices, and the iteration.
        """
        seen = self.ties.seen(body, [v.leaf or True if v else False for v in ins])
        here: dict[int, int] = {}

        def local(label: int) -> int:
            if label not in here:
                here[label] = self.classes.new()
            return here[label]

        for value, outer in zip(seen.ins, ins, strict=True):
            if value and not (value.leaf and _is_sliced(value.leaf, sliced)):
                self.classes.join([outer.label, local(value.label)])
        for mark in seen.marks:
            index = mark.slices | _slices_below(mark.key[1], sliced)
            self.marks.append(PortUse(mark.key, index, local(mark.label)))
        return [v and v._replace(label=local(v.label)) for v in seen.outs]

    def branches(self, eqn: Any, inner: list, ins: list) -> list:
        outs = [self.enter(body, ins) for body in inner]
        return [
            CoupledValue(self.used(values)) if any(values) else None
            for values in zip(*outs, strict=True)
        ]

    def loop(self, eqn: Any, ins: list) -> list:
        body = open_jaxpr(eqn.params["body_jaxpr"])
        ins = ins[eqn.params["cond_nconsts"] :]
        consts = eqn.params["body_nconsts"]
        return self.carried(body, ins[:consts], ins[consts:], [], [None], body.outvars)

    def scan(self, eqn: Any, ins: list) -> list:
        body = open_jaxpr(eqn.params["jaxpr"])
        consts, carries = scan_counts(eqn, body)
        rows = ins[consts + carries :]
        turns: list = [None]  # nothing is sliced: all iterations are alike
        leaves = [v.leaf for v in rows if v and v.leaf]
        if leaves:
            turns = [
                frozenset((leaf.path, leaf.axes[0], i) for leaf in leaves)
                for i in range(eqn.params["length"])
            ]
            turns = turns[::-1] if eqn.params["reverse"] else turns
        fixed, carry = ins[:consts], ins[consts : consts + carries]
        return self.carried(body, fixed, carry, rows, turns, eqn.outvars)

    def carried(
        self, body: Jaxpr, fixed: list, carry: list, rows: list, turns: list, outvars
    ) -> list:
        """A loop: each turn's carry is the next one's, and a single turn's its own."""
        rows = [_one_turn(v) for v in rows]
        carry = [v and CoupledValue(self.used([v])) for v in carry]
        carry = self.grown(body, fixed, carry, rows)
        first, stacked = carry, []
        for turn in turns:
            outs = self.enter(body, [*fixed, *carry, *rows], turn)
            fresh = [v and CoupledValue(self.used([v])) for v in outs[: len(carry)]]
            carry = [v or c for v, c in zip(fresh, carry, strict=True)]
            stacked.append(outs[len(carry) :])
        if turns == [None]:
            for a, b in zip(first, carry, strict=True):
                if a and b:
                    self.used([a, b])
        joined = [
            CoupledValue(self.used(values)) if any(values) else None
            for values in zip(*stacked, strict=True)
        ]
        outs = [*carry, *joined]
        return [
            v if has_cotangent(o) else None for v, o in zip(outs, outvars, strict=True)
        ]

    def grown(self, body: Jaxpr, fixed: list, carry: list, rows: list) -> list:
        """The carry with all that comes to depend on parameters on later turns."""
        while True:
            some = [*fixed, *carry, *rows]
            seeds = [v.leaf or True if v else False for v in some]
            outs = self.ties.seen(body, seeds).outs[: len(carry)]
            late = [o and not c for o, c in zip(outs, carry, strict=True)]
            if not any(late):
                return carry
            carry = [
                CoupledValue(self.classes.new()) if new else c
                for c, new in zip(carry, late, strict=True)
            ]


def _one_turn(value: CoupledValue | None) -> CoupledValue | None:
    """What one turn sees of a value that is sliced along its first axis."""
    if value and value.leaf:
        leaf = value.leaf._replace(axes=value.leaf.axes[1:])
        return value._replace(leaf=leaf)
    return value


def _is_sliced(leaf: ParameterSlice, sliced: frozenset | None) -> bool:
    return any(path == leaf.path for path, _, _ in sliced or ())


def _slices_below(path: Path, sliced: frozenset | None) -> frozenset:
    """What of `sliced` lies below the module or parameter at `path`."""
    if not sliced:
        return frozenset()
    return frozenset(s for s in sliced if s[0][: len(path)] == path)
