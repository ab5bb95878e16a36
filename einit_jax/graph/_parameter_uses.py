"""A walk through nested jaxprs: where parameters meet data, and how."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from jax.extend.core import Jaxpr, Literal

from ..core import Path
from ._axis_views import (
    AxisView,
    Part,
    contract_view,
    drop_axes,
    gather_view,
    move_view,
    resize_view,
    whole_view,
)
from ._jaxprs import bodies, open_jaxpr, scan_counts

DATA = 2
"""The level of what went into a module; 1: of other arguments, such as state."""


MOVING = {
    "convert_element_type", "copy", "copy_p", "rev", "optimization_barrier",
    "sharding_constraint", "reduce_precision", "stop_gradient", "slice",
    "dynamic_slice", "reshape", "squeeze", "transpose", "broadcast_in_dim", "name",
}  # fmt: skip
"""What changes no value: whatever comes out is what went in, elsewhere."""


MULTIPLYING, ADDING = {"mul", "div"}, {"add", "sub", "add_any"}


ELEMENTWISE_PRIMITIVES = MULTIPLYING | ADDING | {
    "neg", "max", "min", "abs", "sign", "tanh", "exp", "exp2", "log", "log1p", "expm1",
    "logistic", "erf", "pow", "integer_pow", "square", "sqrt", "rsqrt", "select_n",
    "clamp", "round", "floor", "ceil", "sin", "cos", "real", "imag", "conj",
}  # fmt: skip


RANKS = {"weight": 3, "gain": 2, "bias": 1, "other": 0}


class TracedValue(NamedTuple):
    """What is known of one array on the way."""

    level: int
    views: Mapping[Path, AxisView]
    """The parameters that it is made from, as long as it holds no data."""
    fresh: frozenset[Path] = frozenset()
    """The weights that it is a product with, or a multiple or sum of such."""
    ident: int = 0
    """One bit, the same while only axes move."""
    past: int = 0
    """The bits of all that it was computed from."""


class ParameterUse(NamedTuple):
    """One use of a parameter; of several the highest rank counts."""

    rank: int
    role: str
    kind: str = ""
    parts: tuple[tuple[Part, str], ...] = ()
    """What each part does: window, contracted, feature, batch."""
    gone: frozenset[tuple[int, str]] = frozenset()
    thinned: tuple[float, float] = (1.0, 1.0)
    """What fan-in and fan-out are to be divided by."""


NOTHING = TracedValue(0, {})


def whole_value(path: Path, shape: tuple[int, ...], floating: bool) -> TracedValue:
    """A parameter, before anything happened to it."""
    return TracedValue(0, {path: whole_view(shape)} if floating else {})


class ParameterUseWalk:
    """Follows parameters through nested jaxprs and notes their uses."""

    def __init__(self):
        self.uses: dict[Path, ParameterUse] = {}
        self.looked_up: set[Path] = set()
        self.residual: set[Path] = set()
        self.lifted: Mapping[Path, frozenset[int]] = {}
        self.recording = True
        self.bits = 0

    def argument(self, atom: Any) -> TracedValue:
        """An argument that is no parameter; keys of random numbers hold no data."""
        key = jax.dtypes.issubdtype(atom.aval.dtype, jax.dtypes.prng_key)
        return self.new(0 if key else 1, [])

    def new(self, level: int, ins: Iterable[TracedValue], **known: Any) -> TracedValue:
        """A value computed from others."""
        self.bits += 1
        bit, past = 1 << self.bits, 0
        for value in ins:
            past |= value.past
        return TracedValue(
            level, **{"views": {}, "ident": bit, "past": past | bit, **known}
        )

    def note(self, path: Path, use: ParameterUse) -> None:
        """Keeps the use of highest rank, the first of these."""
        old = self.uses.get(path)
        if self.recording and (old is None or use.rank > old.rank):
            self.uses[path] = use

    def run(self, jaxpr: Jaxpr, ins: Iterable[TracedValue]) -> list[TracedValue]:
        env: dict = dict(zip(jaxpr.invars, ins, strict=True))
        read = lambda v: NOTHING if isinstance(v, Literal) else env.get(v, NOTHING)
        for eqn in jaxpr.eqns:
            outs = self.equation(eqn, [read(v) for v in eqn.invars])
            env.update(zip(eqn.outvars, outs, strict=True))
        return [read(v) for v in jaxpr.outvars]

    def equation(self, eqn: Any, ins: list[TracedValue]) -> list[TracedValue]:
        name = eqn.primitive.name
        if name in ("dot_general", "conv_general_dilated", "gather"):
            return [getattr(self, name)(eqn, *ins[:2])]
        if name == "name":
            return [self.marker(eqn, ins[0])]
        if name == "concatenate":
            return [self.elementwise(eqn, ins)]
        if name in MOVING:
            return [
                self.moved(eqn, v, o) for v, o in zip(ins, eqn.outvars, strict=False)
            ]
        if name in ELEMENTWISE_PRIMITIVES:
            return [self.elementwise(eqn, ins)]
        inner = bodies(eqn)
        if name == "scan":
            return self.scan(eqn, ins)
        if name == "while":
            return self.loop(open_jaxpr(eqn.params["body_jaxpr"]), eqn, ins)
        if name == "cond":
            branches = [self.run(b, ins[1:]) for b in inner]
            return [self.joined(found) for found in zip(*branches, strict=True)]
        if len(inner) == 1 and len(inner[0].invars) == len(ins):
            return self.run(inner[0], ins)
        level = max((v.level for v in ins), default=0)
        return [self.new(level, ins) for _ in eqn.outvars]

    def joined(self, values: Sequence[TracedValue]) -> TracedValue:
        """What comes out of one of several branches."""
        level = max(v.level for v in values)
        views = _merge_views(values, None)
        return self.new(level, values, views=views if level < DATA else {})

    def marker(self, eqn: Any, value: TracedValue) -> TracedValue:
        """What goes into a module is data."""
        try:
            into = json.loads(eqn.params["name"])[1] == "in"
        except (ValueError, TypeError, LookupError):
            into = False
        return value._replace(level=DATA, views={}) if into else value

    def moved(self, eqn: Any, value: TracedValue, out: Any) -> TracedValue:
        views = {p: move_view(eqn, v, out.aval.shape) for p, v in value.views.items()}
        kept = {p: v for p, v in views.items() if v is not None}
        return value._replace(views=kept)

    def elementwise(self, eqn: Any, ins: list[TracedValue]) -> TracedValue:
        name, shape = eqn.primitive.name, eqn.outvars[0].aval.shape
        level = max(v.level for v in ins)
        views = _merge_views(ins, None if level == DATA else len(shape))
        several = len(views) > 1 and name != "concatenate"
        if level == DATA or several:
            role = "gain" if name in MULTIPLYING else "other"
            role = "bias" if name in ADDING else role
            for path in views:
                self.note(
                    path, ParameterUse(RANKS[role] * (2 if level == DATA else 1), role)
                )
        if level < DATA:
            views = {p: resize_view(v, shape) for p, v in views.items()}
            return self.new(level, ins, views=views)
        return self.new(level, ins, fresh=self.freshness(name, ins))

    def freshness(self, name: str, ins: list[TracedValue]) -> frozenset[Path]:
        """The products still to be added to what they were computed from."""
        data = [v for v in ins if v.level == DATA]
        if name in ADDING and len(data) == 2:
            for own, other in (data, data[::-1]):
                if own.fresh and not other.fresh and own.past & other.ident:
                    self.residual |= own.fresh if self.recording else set()
            both = all(v.fresh for v in data)
            return data[0].fresh | data[1].fresh if both else frozenset()
        kept = name in MULTIPLYING | ADDING | {"neg", "select_n"} and len(data) == 1
        return data[0].fresh if kept else frozenset()

    def dot_general(
        self, eqn: Any, left: TracedValue, right: TracedValue
    ) -> TracedValue:
        contracted, batch = eqn.params["dimension_numbers"]
        level = max(left.level, right.level)
        views, fresh = {}, set()
        for side, (own, other) in enumerate(((left, right), (right, left))):
            dims = dict.fromkeys(batch[side], "batch")
            dims |= dict.fromkeys(contracted[side], "contracted")
            for path, view in own.views.items():
                parts = _part_roles(view, lambda i, dims=dims: dims.get(i, "feature"))
                if other.level < own.level or not _sums_over(parts, self.lifted[path]):
                    continue
                rank = 6 if other.level == DATA else 4
                self.note(path, ParameterUse(rank, "weight", "dense", parts, view.gone))
                fresh |= {path}
            if level < DATA:
                views |= {p: contract_view(eqn, v, side) for p, v in own.views.items()}
        fresh = frozenset(fresh) if level == DATA else frozenset()
        return self.new(level, (left, right), views=views, fresh=fresh)

    def conv_general_dilated(
        self, eqn: Any, data: TracedValue, kernel: TracedValue
    ) -> TracedValue:
        out, into, *_ = eqn.params["dimension_numbers"].rhs_spec
        what = lambda i: {out: "feature", into: "contracted"}.get(i, "window")
        dilation = math.prod(eqn.params["lhs_dilation"])
        kind = "conv_transpose" if dilation > 1 else "conv"
        for path, view in kernel.views.items():
            groups = _groups(eqn, view.axes[out], self.lifted[path])
            thinned = (dilation, groups * math.prod(eqn.params["window_strides"]))
            parts = _part_roles(view, what)
            self.note(path, ParameterUse(6, "weight", kind, parts, view.gone, thinned))
        return self.new(DATA, (data, kernel), fresh=frozenset(kernel.views))

    def gather(self, eqn: Any, table: TracedValue, index: TracedValue) -> TracedValue:
        numbers = eqn.params["dimension_numbers"]
        taken = numbers.collapsed_slice_dims
        known = dict.fromkeys(taken, "contracted")
        shared = dict.fromkeys(numbers.operand_batching_dims, "batch")
        if index.level < DATA and table.views:  # the place is known: a slice
            views = {p: gather_view(eqn, view) for p, view in table.views.items()}
            return self.new(table.level, (table,), views=views)
        for path, view in table.views.items() if taken else ():
            what = lambda i: {**shared, **known}.get(i, "feature")
            use = ParameterUse(5, "weight", "embed", _part_roles(view, what), view.gone)
            self.note(path, use)
            self.looked_up |= {path}
        return self.new(max(table.level, index.level), (table, index))

    def scan(self, eqn: Any, ins: list[TracedValue]) -> list[TracedValue]:
        body = open_jaxpr(eqn.params["jaxpr"])
        consts, carries = scan_counts(eqn, body)
        first = consts + carries
        each = [
            v._replace(
                views={p: drop_axes(w, [0], "layer") for p, w in v.views.items()}
            )
            for v in ins[first:]
        ]
        outs = self.settled(body, ins[:consts], ins[consts:first], each)
        return [self.new(v.level, [v]) for v in outs]

    def loop(self, body: Jaxpr, eqn: Any, ins: list[TracedValue]) -> list[TracedValue]:
        ins = ins[eqn.params["cond_nconsts"] :]
        consts = eqn.params["body_nconsts"]
        return self.settled(body, ins[:consts], ins[consts:], [])

    def settled(self, body: Jaxpr, consts: list, carry: list, each: list) -> list:
        """Runs a body whose carries hold what they hold after any number of rounds."""
        before, self.recording = self.recording, False
        while True:
            outs = self.run(body, [*consts, *carry, *each])
            pairs = list(zip(carry, outs, strict=False))
            same = lambda a, b: a.level >= b.level and a.views in ({}, b.views)
            if all(same(a, b) for a, b in pairs):
                break
            carry = [
                a._replace(
                    level=max(a.level, b.level),
                    views=a.views if a.views == b.views else {},
                )
                for a, b in pairs
            ]
        self.recording = before
        return self.run(body, [*consts, *carry, *each])


def _merge_views(
    values: Sequence[TracedValue], ndim: int | None
) -> dict[Path, AxisView]:
    """The views of several values of one shape.

    A parameter over its own norm is seen as the parameter, not as the norm.
    """
    found = [item for value in values for item in value.views.items()]
    found = [(p, v) for p, v in found if ndim is None or len(v.axes) == ndim]
    return dict(sorted(found, key=lambda item: -len(item[1].gone)))


def _part_roles(view: AxisView, what: Any) -> tuple[tuple[Part, str], ...]:
    return tuple((part, what(i)) for i, parts in enumerate(view.axes) for part in parts)


def _sums_over(parts: Iterable[tuple[Part, str]], layers: frozenset[int]) -> bool:
    """Whether a product sums over an axis of the parameter itself."""
    return any(what == "contracted" and set(axes) - layers for (axes, _), what in parts)


def _groups(eqn: Any, outputs: tuple[Part, ...], layers: frozenset[int]) -> int:
    """The groups of one layer: `vmap` makes a group of each layer."""
    groups, stacked = eqn.params["feature_group_count"], 1
    for axes, n in outputs:
        if not set(axes) <= layers:
            break
        stacked *= n
    return groups if groups % stacked else groups // stacked
