"""Which calls in a traced model are units: what each value of the jaxpr depends on.

A call is a unit's if its output depends on one of its inputs and on a parameter of its
own module, and if no call inside of it does: of a module below, or of one that was made
elsewhere and handed to it. All that is needed is read off the marks.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.extend.core import Jaxpr, Literal

from ..core import JaxprEqn, Path, find_lifted_axes, is_under, layer_axes
from ..units import ModelGraph, RawParameter, Unit, UnitKey
from ._jaxprs import bodies, has_cotangent, open_jaxpr, scan_counts
from ._marks import Mark, read_mark
from ._parameter_axes import stacked_axes

SEVERAL = 1 << 20
"""The number of calls written down for a loop whose length is not known."""
SHAPING = {
    "broadcast_in_dim", "reshape", "convert_element_type", "squeeze", "transpose",
    "copy", "rev", "slice", "dynamic_slice", "copy_p",
    "optimization_barrier", "sharding_constraint", "reshard", "pvary",
    "name",
}  # fmt: skip
"""Primitives that change the shape of an array, and none of its values."""
WEIGHTING = {"dot_general", "ragged_dot_general", "conv_general_dilated", "gather"}
"""Primitives that sum products with a parameter, or look it up."""


class Token(NamedTuple):
    """One thing that a value depends on.

    "own": the parameter at `path`; "leaf": the same while only its shape changed;
    "input": an input of the call `call`; "result": the model's outputs; "units": what
    some unit returned.
    """

    what: str
    path: Path = ()
    call: int = -1
    floating: bool = False


Tokens = frozenset[Token]
NO_TOKENS: Tokens = frozenset()
OF_UNITS = Token("units")


@dataclass
class CallRecord:
    """What was seen of one method of one module."""

    mark: Mark
    """Of its first output."""
    floats: bool = False
    opaque: bool = False
    narrow: bool = False
    calls: dict[int, float] = field(default_factory=dict)
    """Of each floating output the number of calls, in all layers."""

    def unit(
        self,
        shapes: Mapping[Path, tuple[int, ...]],
        stacked: Callable[[], Mapping[Path, frozenset[int]]],
        *,
        data: frozenset[int],
        differentiated: bool,
    ) -> Unit:
        """The unit, given the shapes of all parameters outside of lifted transforms.

        `stacked` tells the axes of parameters along which layers lie; it is asked where
        shapes do not tell.
        """
        mark = self.mark
        inner = {
            (*mark.path, *name.split("/")): shape
            for name, shape in mark.param_shapes.items()
        }
        pairs = [(shapes[path], s) for path, s in inner.items() if path in shapes]
        lifted_axes, *others = find_lifted_axes(pairs)
        if others:
            known = {p: axes for p, axes in stacked().items() if p in inner and axes}
            fits = lambda lifted: all(
                axes == set(layer_axes(shapes[path], lifted))
                for path, axes in known.items()
            )
            lifted_axes = next(filter(fits, (lifted_axes, *others)), lifted_axes)
        layers = int(np.prod([n for n in lifted_axes if n], dtype=int))
        return Unit(
            path=mark.path,
            method=mark.method,
            module_type=mark.module_type,
            shape=tuple(s for i, s in enumerate(mark.output_shapes) if i not in data),
            calls=max(1, round(max(self.calls.values()) / layers)),
            lifted_axes=lifted_axes,
            floats=self.floats,
            opaque=self.opaque,
            narrow=self.narrow,
            data_outputs=data,
            ruled=mark.ruled,
            differentiated=differentiated,
        )


def discover(
    jaxpr: Jaxpr, consts: Iterable, shapes: Mapping[Path, tuple[int, ...]]
) -> ModelGraph:
    """The units of a trace, whose first inputs are parameters of these shapes."""
    walk = DependenceWalk()
    seeds = [frozenset({Token("own", p), Token("leaf", p)}) for p in shapes]
    others = [NO_TOKENS] * (len(jaxpr.invars) - len(seeds))
    results = walk.run(jaxpr, [*seeds, *others], trips=1, recording=True)
    stacked = cache(lambda: stacked_axes(jaxpr, shapes))
    above = {path[:i] for path, _ in walk.calls for i in range(len(path))}
    around = {key for record in walk.calls.values() for key in record.mark.enclosing}
    records = (
        record
        for key, record in walk.calls.items()
        if key[0] not in above and key not in around
    )
    units = tuple(
        record.unit(
            shapes,
            stacked,
            data=walk.data_outputs(record.mark[2:4]),
            differentiated=record.mark[2:4] in walk.differentiated,
        )
        for record in records
    )
    left = {t.call for tokens in results for t in tokens if t.what == "input"}
    raw = tuple(p for p in shapes if not any(is_under(p, u.path) for u in units))
    leaves = dict(zip(shapes, jaxpr.invars, strict=False))
    movable = [p for p in raw if p in walk.read and has_cotangent(leaves[p])]
    return ModelGraph(
        units=units,
        raw_parameters=raw,
        movable=tuple(
            RawParameter(p, _lifted_axes(shapes[p], stacked().get(p, frozenset())))
            for p in movable
        ),
        multiplied=walk.multiplied,
        escaping=tuple(u.path for u in units if u.key in map(walk.inside.get, left)),
        uses_outputs=any(Token("result") in tokens for tokens in results),
        jaxpr=jaxpr,
        shapes=shapes,
        consts=tuple(consts),
    )


def _lifted_axes(shape: tuple[int, ...], stacked: frozenset[int]) -> tuple[int, ...]:
    """The lifted axes of an array of which `scan` takes these axes apart."""
    until = max(stacked, default=-1) + 1
    return tuple(n if i in stacked else 0 for i, n in enumerate(shape[:until]))


class DependenceWalk:
    """Follows, through nested jaxprs, which inputs and parameters each value needs."""

    def __init__(self):
        self.calls: dict[UnitKey, CallRecord] = {}
        self.multiplied: dict[Path, bool] = {}
        self.opaque: set[tuple[str, Path, int]] = set()
        self.differentiated: set[UnitKey] = set()
        self.outputs: dict[UnitKey, dict[int, bool]] = {}
        """Of floating outputs of calls, by number, whether parameters change them."""
        self.inside: dict[int, UnitKey] = {}
        """Whose call it is, by its number."""
        self.read: set[Path] = set()
        """The parameters that get to a module's input, a unit's output, or a result."""

    def data_outputs(self, key: UnitKey) -> frozenset[int]:
        """The numbers of a unit's floating outputs that no parameter changes."""
        seen = self.outputs[key].items()
        return frozenset(number for number, changes in seen if not changes)

    def run(
        self, jaxpr: Jaxpr, ins: Iterable[Tokens], *, trips: int, recording: bool
    ) -> list[Tokens]:
        """The tokens of the outputs of a jaxpr that runs `trips` times."""
        env = dict(zip(jaxpr.invars, ins, strict=True))

        def read(atom):
            return NO_TOKENS if isinstance(atom, Literal) else env.get(atom, NO_TOKENS)

        for eqn in jaxpr.eqns:
            given = [read(v) for v in eqn.invars]
            outs = self.equation(eqn, given, trips=trips, recording=recording)
            env.update(zip(eqn.outvars, outs, strict=True))
        return [read(v) for v in jaxpr.outvars]

    def equation(
        self, eqn: JaxprEqn, ins: list[Tokens], *, trips: int, recording: bool
    ) -> list[Tokens]:
        name = eqn.primitive.name
        mark = read_mark(eqn)
        if mark is not None:
            return [self.marked(mark, eqn, ins[0], trips if recording else 0)]
        if name.startswith("custom_vjp_call"):
            self.opaque |= {_whose(token) for tokens in ins for token in tokens}
            self.opaque.discard(_whose(OF_UNITS))
        inner = bodies(eqn)
        if name == "scan":
            body = open_jaxpr(eqn.params["jaxpr"])
            consts, carries = scan_counts(eqn, body)
            ins = self.grown(body, ins, consts, carries)
            trips *= eqn.params["length"]
            return self.run(body, ins, trips=trips, recording=recording)
        if name == "while":
            body = open_jaxpr(eqn.params["body_jaxpr"])
            ins = ins[eqn.params["cond_nconsts"] :]
            consts = eqn.params["body_nconsts"]
            ins = self.grown(body, ins, consts, len(ins) - consts)
            return self.run(body, ins, trips=trips * SEVERAL, recording=recording)
        again = {"trips": trips, "recording": recording}
        if name == "cond":
            outs = [self.run(branch, ins[1:], **again) for branch in inner]
            return [NO_TOKENS.union(*o) for o in zip(*outs, strict=True)]
        if len(inner) == 1 and len(inner[0].invars) == len(ins):
            return self.run(inner[0], ins, **again)
        union = NO_TOKENS.union(*ins)
        for body in inner:
            outs = self.run(body, [union] * len(body.invars), **again)
            union = union.union(*outs)
        several = sum(map(bool, ins)) > 1
        return [self.plain(eqn, union, several)] * len(eqn.outvars)

    def grown(
        self, body: Jaxpr, ins: list[Tokens], consts: int, carries: int
    ) -> list[Tokens]:
        """What goes into a loop's body once its carries hold all they come to hold."""
        while True:
            outs = self.run(body, ins, trips=1, recording=False)[:carries]
            carry = ins[consts : consts + carries]
            merged = [a | b for a, b in zip(carry, outs, strict=True)]
            if merged == carry:
                return ins
            ins = [*ins[:consts], *merged, *ins[consts + carries :]]

    def plain(self, eqn: JaxprEqn, tokens: Tokens, several: bool) -> Tokens:
        """Tokens after a plain equation; notes the parameters that multiply in it.

        What is multiplied by a constant alone (`several` is False) multiplies nothing.
        """
        name = eqn.primitive.name
        if name in SHAPING or not tokens or (name == "mul" and not several):
            return tokens
        in_sums = name in WEIGHTING
        if in_sums or name == "mul":
            for path in (t.path for t in tokens if t.what == "leaf"):
                self.multiplied[path] = in_sums or self.multiplied.get(path, False)
        return frozenset(t for t in tokens if t.what != "leaf")

    def marked(self, mark: Mark, eqn: JaxprEqn, tokens: Tokens, trips: int) -> Tokens:
        """Tokens after a mark; notes the call where one ends that is a unit's."""
        floating = mark.leaf >= 0
        if mark.role in ("input", "result"):
            self.read |= {t.path for t in tokens if t.what == "own"}
        if mark.role == "result":
            return tokens | {Token("result")}
        if mark.role == "input":
            self.inside[mark.call] = mark.path, mark.method
            return tokens | {Token("input", call=mark.call, floating=floating)}
        if mark.role == "derivative":
            self.differentiated.add((mark.path, mark.method))
        if mark.role != "output":
            return tokens
        if floating and trips:
            seen = self.outputs.setdefault((mark.path, mark.method), {})
            changes = any(token.what in ("own", "units") for token in tokens)
            seen[mark.leaf] = seen.get(mark.leaf, False) | changes
        owns = any(t.what == "own" and is_under(t.path, mark.path) for t in tokens)
        inputs = {t for t in tokens if t.what == "input" and t.call == mark.call}
        if not (owns and inputs and floating):
            return tokens - inputs
        self.read |= {t.path for t in tokens if t.what == "own"}
        if trips:
            out: Any = eqn.outvars[0].aval
            record = self.calls.setdefault((mark.path, mark.method), CallRecord(mark))
            record.opaque |= any(_whose(t) in self.opaque for t in tokens)
            record.narrow |= out.dtype == jnp.float16
            record.floats |= any(t.floating for t in inputs)
            # `vmap` over layers makes one equation of the calls of all of them
            size = max(int(np.prod(mark.output_shapes[mark.leaf])), 1)
            calls = out.size * trips / size
            record.calls[mark.leaf] = record.calls.get(mark.leaf, 0) + calls
        return frozenset({OF_UNITS})


def _whose(token: Token) -> tuple[str, Path, int]:
    """A token without what tells floating inputs of a call from others."""
    return token[:3]
