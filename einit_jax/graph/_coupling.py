"""Which values of a model share a potential: a union-find over nested jaxprs.

Values that meet in an equation outside of units are *coupled*. Carried gradients are
true ones up to a positive factor, the potential, exactly if coupled values share one.
The walk joins the classes of values that meet, and cuts at the marks of units. A value
that depends on no parameter (a mask, a table of positions, an input) carries no
gradient to one, and couples nothing.
"""

from collections.abc import Mapping, Sequence

from jax.extend.core import Jaxpr, Literal, Var

from ..core import JaxprEqn
from ..units import Unit, UnitKey
from ._coupled_values import (
    WHOLE,
    CoupledValue,
    CoupledValues,
    Coupling,
    LayerSlice,
    LayerSlices,
    ParameterSlice,
    Port,
    PortUse,
    PotentialClasses,
    Seed,
    seeds_of,
    slices_under,
)
from ._jaxprs import bodies, has_cotangent, open_jaxpr, scan_counts
from ._marks import read_mark

UNCHANGED = {
    "convert_element_type", "copy", "copy_p", "optimization_barrier",
    "sharding_constraint", "reshard", "pvary",
}  # fmt: skip
"""Primitives after which a parameter is still the same parameter."""
CUSTOM_RULES = ("custom_jvp_call", "custom_vjp_call")
"""What the names of primitives with derivatives of their own begin with."""


class CouplingWalk:
    """Walks through jaxprs, once for each jaxpr and each pattern of its inputs."""

    def __init__(self, units: Mapping[UnitKey, Unit]):
        self.units = units
        self._couplings: dict[tuple, tuple[Jaxpr, Coupling]] = {}

    def coupling(self, jaxpr: Jaxpr, seeds: Sequence[Seed]) -> Coupling:
        """What a jaxpr couples, given which inputs are or depend on parameters."""
        key = (id(jaxpr), tuple(seeds))
        if key not in self._couplings:
            coupling = _JaxprScope(self).run(jaxpr, seeds)
            # The jaxpr is kept as well: no other jaxpr can then have its id.
            self._couplings[key] = (jaxpr, coupling)
        return self._couplings[key][1]


class _JaxprScope:
    """One jaxpr under the walk, with classes of its own."""

    def __init__(self, walk: CouplingWalk):
        self.walk = walk
        self.classes = PotentialClasses()

    def run(self, jaxpr: Jaxpr, seeds: Sequence[Seed]) -> Coupling:
        """What the jaxpr couples."""
        env: dict[Var, CoupledValue | None] = {}
        for var, seed in zip(jaxpr.invars, seeds, strict=True):
            if seed and has_cotangent(var):
                parameter = seed if isinstance(seed, ParameterSlice) else None
                env[var] = CoupledValue(self.classes.new(), parameter)

        def read(atom: Var | Literal) -> CoupledValue | None:
            return None if isinstance(atom, Literal) else env.get(atom)

        ins = [read(v) for v in jaxpr.invars]
        for eqn in jaxpr.eqns:
            outs = self.equation(eqn, [read(v) for v in eqn.invars])
            env.update(zip(eqn.outvars, outs, strict=True))
        return self.classes.coupling(ins, [read(v) for v in jaxpr.outvars])

    def equation(self, eqn: JaxprEqn, ins: CoupledValues) -> CoupledValues:
        """The results of an equation."""
        name = eqn.primitive.name
        if name == "name":
            return [self.marked(eqn, ins[0])]
        if not any(ins):
            return [None] * len(eqn.outvars)
        if name == "stop_gradient":
            return [None]
        if name == "scan":
            return self.scan(eqn, ins)
        if name == "while":
            return self.while_loop(eqn, ins)
        inner = bodies(eqn)
        if name == "cond":
            return self.cond(inner, ins[1:])
        if name.startswith(CUSTOM_RULES):
            # The rule may couple more than the body does: all that goes in and out.
            outs = self.enter(inner[0], ins) if inner else []
            return self.couple(eqn, [*ins, *outs])
        if len(inner) == 1 and len(inner[0].invars) == len(ins):
            return self.enter(inner[0], ins)
        for body in inner:
            value = CoupledValue(self.classes.meet(ins))
            ins = [*ins, *self.enter(body, [value] * len(body.invars))]
        return self.plain(eqn, ins)

    def plain(self, eqn: JaxprEqn, ins: CoupledValues) -> CoupledValues:
        """All that meets in one equation; a parameter stays one if it can."""
        first, *others = [v for v in ins if v]
        if first.parameter and not others and len(eqn.outvars) == 1:
            axes = first.parameter.axes
            if eqn.primitive.name == "transpose":
                axes = tuple(axes[i] for i in eqn.params["permutation"])
                parameter = first.parameter._replace(axes=axes)
                return [first._replace(parameter=parameter)]
            if eqn.primitive.name in UNCHANGED and has_cotangent(eqn.outvars[0]):
                return [first]
        return self.couple(eqn, ins)

    def couple(self, eqn: JaxprEqn, values: CoupledValues) -> CoupledValues:
        """The results of an equation that are coupled to all of the values."""
        value = CoupledValue(self.classes.meet(values))
        return [value if has_cotangent(v) else None for v in eqn.outvars]

    def marked(self, eqn: JaxprEqn, value: CoupledValue | None) -> CoupledValue | None:
        """A value after a mark: the marks of a unit cut its inputs from its outputs."""
        mark = read_mark(eqn)
        if mark is None or mark.leaf < 0 or mark.role not in ("input", "output"):
            return value
        unit = self.walk.units.get((mark.path, mark.method))
        if unit is None:
            return value
        if mark.role == "output" and mark.leaf in unit.data_outputs:
            return None
        at_port = self.classes.at_port
        inner = at_port(Port("inner", mark.path))
        outer = at_port(Port(mark.role, mark.path, mark.method), mark.call)
        before, after = (outer, inner) if mark.role == "input" else (inner, outer)
        if value:
            self.classes.meet([CoupledValue(before), value])
        return CoupledValue(after)

    def enter(
        self, body: Jaxpr, ins: CoupledValues, slices: LayerSlices = WHOLE
    ) -> CoupledValues:
        """The results of a body called with `ins`; its classes are put among ours.

        `slices` tells which layer a scan around the body is at.
        """
        coupling = self.walk.coupling(body, seeds_of(ins))
        labels: dict[int, int] = {}

        def ours(label: int) -> int:
            if label not in labels:
                labels[label] = self.classes.new()
            return labels[label]

        for inner, outer in zip(coupling.ins, ins, strict=True):
            if inner and outer and not _is_sliced(inner, slices):
                self.classes.join([outer.label, ours(inner.label)])
        for use in coupling.uses:
            layer = use.slices | slices_under(use.port.path, slices)
            self.classes.note(PortUse(use.port, layer, ours(use.label)))
        return [v and v._replace(label=ours(v.label)) for v in coupling.outs]

    def cond(self, branches: Sequence[Jaxpr], ins: CoupledValues) -> CoupledValues:
        """The results of whichever branch is taken."""
        outs = [self.enter(branch, ins) for branch in branches]
        return self.classes.meet_columns(outs)

    def while_loop(self, eqn: JaxprEqn, ins: CoupledValues) -> CoupledValues:
        """The results of a loop of unknown length: all its iterations are alike."""
        body = open_jaxpr(eqn.params["body_jaxpr"])
        ins = ins[eqn.params["cond_nconsts"] :]
        consts = eqn.params["body_nconsts"]
        outs = self.loop(body, consts=ins[:consts], carry=ins[consts:])
        return _with_cotangents(outs, body.outvars)

    def scan(self, eqn: JaxprEqn, ins: CoupledValues) -> CoupledValues:
        """The results of a scan: its iterations differ where it slices parameters."""
        body = open_jaxpr(eqn.params["jaxpr"])
        consts, carries = scan_counts(eqn, body)
        rows = ins[consts + carries :]
        outs = self.loop(
            body,
            consts=ins[:consts],
            carry=ins[consts : consts + carries],
            rows=[v and v.iterated() for v in rows],
            iterations=_iterations(eqn, rows),
        )
        return _with_cotangents(outs, eqn.outvars)

    def loop(
        self,
        body: Jaxpr,
        *,
        consts: CoupledValues,
        carry: CoupledValues,
        rows: CoupledValues | None = None,
        iterations: Sequence[LayerSlices] | None = None,
    ) -> CoupledValues:
        """The carry after a loop, then what the loop stacks of its rows.

        `iterations` holds what each iteration slices, in order. It is None if all are
        alike: a single walk then does for all, with its carry coupled to itself.
        """
        rows = rows or []
        carry = self.grow(body, consts, self.classes.as_values(carry), rows)
        first, stacked = carry, []
        for slices in [WHOLE] if iterations is None else iterations:
            outs = self.enter(body, [*consts, *carry, *rows], slices)
            stacked.append(outs[len(carry) :])
            fresh = self.classes.as_values(outs[: len(carry)])
            carry = [v or c for v, c in zip(fresh, carry, strict=True)]
        if iterations is None:
            for before, after in zip(first, carry, strict=True):
                if before and after:
                    self.classes.meet([before, after])
        return [*carry, *self.classes.meet_columns(stacked)]

    def grow(
        self,
        body: Jaxpr,
        consts: CoupledValues,
        carry: CoupledValues,
        rows: CoupledValues,
    ) -> CoupledValues:
        """The carry with all that depends on parameters in later iterations too."""
        while True:
            seeds = seeds_of([*consts, *carry, *rows])
            outs = self.walk.coupling(body, seeds).outs[: len(carry)]
            late = [out and not c for out, c in zip(outs, carry, strict=True)]
            if not any(late):
                return carry
            carry = [
                CoupledValue(self.classes.new()) if is_late else c
                for c, is_late in zip(carry, late, strict=True)
            ]


def _iterations(eqn: JaxprEqn, rows: CoupledValues) -> list[LayerSlices] | None:
    """What each iteration of a scan slices, in order; None if all are alike."""
    parameters = [v.parameter for v in rows if v and v.parameter]
    if not parameters:
        return None
    slices = [
        frozenset(LayerSlice(p.path, p.axes[0], i) for p in parameters)
        for i in range(eqn.params["length"])
    ]
    return slices[::-1] if eqn.params["reverse"] else slices


def _is_sliced(value: CoupledValue, slices: LayerSlices) -> bool:
    """Whether a value is a parameter that a scan slices."""
    parameter = value.parameter
    return bool(parameter) and any(s.path == parameter.path for s in slices)


def _with_cotangents(
    values: CoupledValues, outvars: Sequence[Var | Literal]
) -> CoupledValues:
    """The values without those of dtypes that no gradient goes to."""
    pairs = zip(values, outvars, strict=True)
    return [value if has_cotangent(var) else None for value, var in pairs]
