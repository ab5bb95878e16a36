"""A walk through nested jaxprs: where parameters meet data, and how."""

from collections.abc import Iterable, Mapping, Sequence

import jax
from jax.extend.core import Jaxpr, Literal, Var

from ..core import JaxprEqn, Path
from ._axis_views import (
    AxisRole,
    AxisView,
    contract_view,
    gather_view,
    move_view,
    resize_view,
)
from ._jaxprs import bodies, open_jaxpr, scan_counts, shape_of
from ._marks import read_mark
from ._traced_values import (
    NOTHING,
    Level,
    ParameterRole,
    ParameterUse,
    TracedValue,
    convolution_use,
    elementwise_use,
    look_up_use,
    merge_views,
    product_use,
)

MOVING = {
    "convert_element_type", "copy", "copy_p", "rev", "optimization_barrier",
    "sharding_constraint", "reshard", "pvary", "reduce_precision", "stop_gradient",
    "slice", "dynamic_slice", "reshape", "squeeze", "transpose", "broadcast_in_dim",
}  # fmt: skip
"""Primitives that change no value: whatever comes out is what went in, elsewhere."""
MULTIPLYING, ADDING = {"mul", "div"}, {"add", "sub", "add_any"}
ELEMENTWISE_PRIMITIVES = MULTIPLYING | ADDING | {
    "neg", "max", "min", "abs", "sign", "tanh", "exp", "exp2", "log", "log1p", "expm1",
    "logistic", "erf", "pow", "integer_pow", "square", "sqrt", "rsqrt", "select_n",
    "clamp", "round", "floor", "ceil", "sin", "cos", "real", "imag", "conj",
    "concatenate",
}  # fmt: skip
"""Primitives that take operands of one rank, index by index or side by side."""
KEEPING_PRODUCTS = MULTIPLYING | ADDING | {"neg", "select_n"}
"""Primitives after which a product with a weight, and no other data, is still one."""


class ParameterUseWalk:
    """Follows parameters through nested jaxprs and notes their uses."""

    def __init__(self, layer_axes: Mapping[Path, frozenset[int]]):
        self.layer_axes = layer_axes
        """Of each parameter the axes over which layers are stacked."""
        self.uses: dict[Path, ParameterUse] = {}
        self.looked_up: set[Path] = set()
        self.residual: set[Path] = set()
        self.stacked: dict[Path, set[int]] = {}
        """Of each parameter the axes along which scans take it apart."""
        self._recording = True
        self._bits = 0

    def argument(self, var: Var) -> TracedValue:
        """An argument that is no parameter; keys of random numbers hold no data."""
        dtype = getattr(var.aval, "dtype", None)
        is_key = jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key)
        return self.new(Level.CONSTANT if is_key else Level.ARGUMENT, [])

    def new(
        self,
        level: Level,
        ins: Iterable[TracedValue],
        *,
        views: Mapping[Path, AxisView] | None = None,
        products: frozenset[Path] = frozenset(),
    ) -> TracedValue:
        """A value computed from others."""
        self._bits += 1
        bit = ancestors = 1 << self._bits
        for value in ins:
            ancestors |= value.ancestors
        return TracedValue(level, views or {}, products, bit, ancestors)

    def note(self, path: Path, use: ParameterUse) -> None:
        """Keeps the use of highest rank, the first of these."""
        old = self.uses.get(path)
        if self._recording and (old is None or use.rank > old.rank):
            self.uses[path] = use

    def run(self, jaxpr: Jaxpr, ins: Iterable[TracedValue]) -> list[TracedValue]:
        """The outputs of a jaxpr; notes the uses of parameters in it."""
        env: dict[Var, TracedValue] = dict(zip(jaxpr.invars, ins, strict=True))

        def read(atom: Var | Literal) -> TracedValue:
            return NOTHING if isinstance(atom, Literal) else env.get(atom, NOTHING)

        for eqn in jaxpr.eqns:
            outs = self.equation(eqn, [read(v) for v in eqn.invars])
            env.update(zip(eqn.outvars, outs, strict=True))
        return [read(v) for v in jaxpr.outvars]

    def equation(self, eqn: JaxprEqn, ins: list[TracedValue]) -> list[TracedValue]:
        """The results of an equation."""
        name = eqn.primitive.name
        if name == "dot_general":
            return [self.dot_general(eqn, *ins[:2])]
        if name == "conv_general_dilated":
            return [self.convolution(eqn, *ins[:2])]
        if name == "gather":
            return [self.gather(eqn, *ins[:2])]
        if name == "name":
            return [self.marked(eqn, ins[0])]
        if name in MOVING:
            pairs = zip(ins, eqn.outvars, strict=False)
            return [self.moved(eqn, value, out) for value, out in pairs]
        if name in ELEMENTWISE_PRIMITIVES:
            return [self.elementwise(eqn, ins)]
        if name == "scan":
            return self.scan(eqn, ins)
        if name == "while":
            return self.while_loop(eqn, ins)
        if name == "cond":
            outs = [self.run(branch, ins[1:]) for branch in bodies(eqn)]
            return [self.either(column) for column in zip(*outs, strict=True)]
        inner = self.body(eqn, len(ins))
        if inner is not None:
            return self.run(inner, ins)
        level = max((v.level for v in ins), default=Level.CONSTANT)
        return [self.new(level, ins) for _ in eqn.outvars]

    def body(self, eqn: JaxprEqn, operands: int) -> Jaxpr | None:
        """The one jaxpr that an equation with so many operands calls, if it does."""
        inner = bodies(eqn)
        alone = len(inner) == 1 and len(inner[0].invars) == operands
        return inner[0] if alone else None

    def either(self, values: Sequence[TracedValue]) -> TracedValue:
        """What comes out of one of several branches."""
        level = max(v.level for v in values)
        views = merge_views(values) if level < Level.DATA else None
        return self.new(level, values, views=views)

    def marked(self, eqn: JaxprEqn, value: TracedValue) -> TracedValue:
        """What goes into a module is data."""
        mark = read_mark(eqn)
        entering = mark is not None and mark.role == "input"
        return value._replace(level=Level.DATA, views={}) if entering else value

    def moved(self, eqn: JaxprEqn, value: TracedValue, out: Var) -> TracedValue:
        """A value whose axes are moved or cut."""
        shape = shape_of(out)
        views = {p: move_view(eqn, v, shape) for p, v in value.views.items()}
        kept = {p: v for p, v in views.items() if v is not None}
        return value._replace(views=kept)

    def elementwise(self, eqn: JaxprEqn, ins: list[TracedValue]) -> TracedValue:
        """A result index by index, in which parameters meet data or one another."""
        name, shape = eqn.primitive.name, shape_of(eqn.outvars[0])
        level = max(v.level for v in ins)
        with_data = level == Level.DATA
        views = merge_views(ins, None if with_data else len(shape))
        if with_data or (len(views) > 1 and name != "concatenate"):
            role: ParameterRole = "gain" if name in MULTIPLYING else "other"
            role = "bias" if name in ADDING else role
            for path in views:
                self.note(path, elementwise_use(role, level))
        if with_data:
            return self.new(level, ins, products=self.products_after(name, ins))
        views = {p: resize_view(v, shape) for p, v in views.items()}
        return self.new(level, ins, views=views)

    def products_after(self, name: str, ins: list[TracedValue]) -> frozenset[Path]:
        """The products that a result is a multiple or a sum of.

        A sum of a product and of what that was computed from ends a residual branch.
        """
        data = [v for v in ins if v.level == Level.DATA]
        if name in ADDING and len(data) == 2:
            for own, other in (data, data[::-1]):
                meets = own.ancestors & other.bit
                if own.products and not other.products and meets and self._recording:
                    self.residual |= own.products
            both = all(v.products for v in data)
            return data[0].products | data[1].products if both else frozenset()
        kept = name in KEEPING_PRODUCTS and len(data) == 1
        return data[0].products if kept else frozenset()

    def dot_general(
        self, eqn: JaxprEqn, left: TracedValue, right: TracedValue
    ) -> TracedValue:
        """A sum of products: parameters that it sums over are weights."""
        contracted, batch = eqn.params["dimension_numbers"]
        level = max(left.level, right.level)
        views: dict[Path, AxisView] = {}
        products: set[Path] = set()
        for side, (own, other) in enumerate(((left, right), (right, left))):
            roles: dict[int, AxisRole] = dict.fromkeys(batch[side], "batch")
            roles |= dict.fromkeys(contracted[side], "contracted")
            products |= self.dot_weights(own, other.level, roles)
            if level < Level.DATA:
                views |= {p: contract_view(eqn, v, side) for p, v in own.views.items()}
        with_data = frozenset(products) if level == Level.DATA else frozenset()
        return self.new(level, (left, right), views=views, products=with_data)

    def dot_weights(
        self, own: TracedValue, other_level: Level, roles: Mapping[int, AxisRole]
    ) -> set[Path]:
        """The weights on one side of a product; notes their use."""
        weights: set[Path] = set()
        for path, view in own.views.items() if other_level >= own.level else ():
            use = product_use(view, roles, other_level)
            if use.sums_over_axes(self.layer_axes[path]):
                self.note(path, use)
                weights.add(path)
        return weights

    def convolution(
        self, eqn: JaxprEqn, data: TracedValue, kernel: TracedValue
    ) -> TracedValue:
        """A convolution: parameters that the kernel is made from are weights."""
        for path, view in kernel.views.items():
            self.note(path, convolution_use(eqn, view, self.layer_axes[path]))
        weights = frozenset(kernel.views)
        return self.new(Level.DATA, (data, kernel), products=weights)

    def gather(
        self, eqn: JaxprEqn, table: TracedValue, index: TracedValue
    ) -> TracedValue:
        """A look-up; one whose index is no data is a slice of the table."""
        if index.level < Level.DATA and table.views:
            views = {p: gather_view(eqn, view) for p, view in table.views.items()}
            return self.new(table.level, (table,), views=views)
        taken = eqn.params["dimension_numbers"].collapsed_slice_dims
        for path, view in table.views.items() if taken else ():
            self.note(path, look_up_use(eqn, view))
            self.looked_up.add(path)
        return self.new(max(table.level, index.level), (table, index))

    def scan(self, eqn: JaxprEqn, ins: list[TracedValue]) -> list[TracedValue]:
        """The carries after a scan and what it stacks; all of them are new values."""
        body = open_jaxpr(eqn.params["jaxpr"])
        consts, carries = scan_counts(eqn, body)
        first = consts + carries
        rows = [value.iterated() for value in ins[first:]]
        for path, view in (pair for xs in ins[first:] for pair in xs.views.items()):
            axes = (axis for axes, _ in view.axes[0] for axis in axes)
            self.stacked.setdefault(path, set()).update(axes)
        outs = self.loop(body, ins[:consts], ins[consts:first], rows)
        return [self.new(v.level, [v]) for v in outs]

    def while_loop(self, eqn: JaxprEqn, ins: list[TracedValue]) -> list[TracedValue]:
        """The carries after a loop."""
        body = open_jaxpr(eqn.params["body_jaxpr"])
        ins = ins[eqn.params["cond_nconsts"] :]
        consts = eqn.params["body_nconsts"]
        return self.loop(body, ins[:consts], ins[consts:], [])

    def loop(
        self,
        body: Jaxpr,
        consts: list[TracedValue],
        carry: list[TracedValue],
        rows: list[TracedValue],
    ) -> list[TracedValue]:
        """Runs a body whose carries hold what they hold after any number of rounds."""
        recording, self._recording = self._recording, False
        while True:
            outs = self.run(body, [*consts, *carry, *rows])
            pairs = list(zip(carry, outs, strict=False))
            if all(before.includes(after) for before, after in pairs):
                break
            carry = [before.joined(after) for before, after in pairs]
        self._recording = recording
        return self.run(body, [*consts, *carry, *rows])
