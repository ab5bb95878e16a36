"""`SampleInterpreter`: runs a model's jaxpr on samples in the place of arrays.

Every equation is read, none is run on arrays. An equation's outputs are made from the
`InterpretedValue`s of its operands, by the first of these that applies:

- a mark of a unit or a module, or random bits: here;
- a rule of the primitive, a `PrimitiveRule`: `RULE_TABLE` in `_rule_table` has one for
  each primitive that is known;
- a call (`jit`, `remat`, `custom_jvp`): its own jaxpr, equation by equation;
- only constants as operands: the primitive itself;
- else the first floating operand passes, and `autoinit` warns that it did.

`_rule_table` tells how rules are written, and where to add one.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal
from jaxtyping import Array

from ...core import JaxprEqn, Path, is_float
from ...graph import closed_bodies, open_jaxpr, read_mark
from ._axis_samples import sample_axis
from ._samples import (
    SampleSource,
    filled,
    mean,
    noise,
    power,
    samples_of_array,
)
from ._values import (
    Constant,
    InterpretedValue,
    Moments,
    SampledArray,
    WeightRef,
    WeightValue,
    array_type,
)

Values = Sequence[InterpretedValue]


PrimitiveRule = Callable[
    ["SampleInterpreter", JaxprEqn, Values], InterpretedValue | list[InterpretedValue]
]
"""From the values of an equation's operands to that of its output, or a list of them
where it has several."""


class SampleInterpreter:
    """One pass through a jaxpr.

    `variances` are of the entries of each weight, where they are known. Where they are
    None, each weight has the variance that brings its products to `signal_variance`.
    `max_elements` is how many elements of an axis are sampled at most, `centred` says
    whether weights sum to zero over their inputs, `estimators` are those that marks in
    the jaxpr number.

    A pass leaves `powers`, the second moments of all products at entries of variance 1;
    `units`, the moments of the outputs of each unit; and `passed`, the primitives that
    have no rule, each with the module that has it. `last_products` has for each weight
    its last operand and the rows that it made of that.
    """

    def __init__(
        self,
        source: SampleSource,
        rules: Mapping[str, PrimitiveRule],
        variances: Mapping[WeightRef, Array] | None = None,
        *,
        signal_variance: float = 1.0,
        max_elements: int = 16,
        centred: bool = False,
        estimators: Sequence[Callable] = (),
    ):
        self.source, self.rules, self.max_elements = source, rules, max_elements
        self.variances, self.signal_variance = variances, signal_variance
        self.centred, self.estimators = centred, estimators
        self.powers: dict[WeightRef, dict[int, list[Array]]] = {}
        self.units: dict[tuple[Path, str], list[Moments]] = {}
        self.passed: dict[str, str] = {}
        self.last_products: dict[tuple[WeightRef, ...], tuple[Array, list[Array]]] = {}
        self._parts: dict[tuple, tuple[SampledArray, list[str]]] = {}
        self._name_stack: list[str] = []
        self._entered: dict[int, SampledArray] = {}

    def run(
        self, jaxpr: Jaxpr | ClosedJaxpr, values: Values, consts: Sequence = ()
    ) -> list[InterpretedValue]:
        """The values of a jaxpr's outputs."""
        body = open_jaxpr(jaxpr)
        consts = list(consts) or list(getattr(jaxpr, "consts", ()))
        env: dict = dict(zip(body.invars, values, strict=True))
        env |= {v: Constant(c) for v, c in zip(body.constvars, consts, strict=True)}

        def read(atom):
            return Constant(atom.val) if isinstance(atom, Literal) else env[atom]

        for eqn in body.eqns:
            self._name_stack.append(str(eqn.source_info.name_stack))
            outs = self.equation(eqn, [read(v) for v in eqn.invars])
            self._name_stack.pop()
            env.update(zip(eqn.outvars, outs, strict=True))
        return [read(v) for v in body.outvars]

    def equation(self, eqn: JaxprEqn, values: Values) -> list[InterpretedValue]:
        """The values of an equation's outputs."""
        name = eqn.primitive.name
        if name == "name":
            return [self._marked(eqn, values[0])]
        if name in ("random_bits", "threefry2x32"):
            return [self._bits(array_type(v)) for v in eqn.outvars]
        inner = closed_bodies(eqn)
        if name not in self.rules and _is_call(inner, values):
            return self.run(inner[0], values)
        if not inner and (any(v is None for v in values) or _handles_keys(eqn)):
            return [None] * len(eqn.outvars)
        constants = [v for v in values if isinstance(v, Constant)]
        if not inner and len(constants) == len(values):
            outs = eqn.primitive.bind(*(v.value for v in constants), **eqn.params)
            outs = outs if eqn.primitive.multiple_results else [outs]
            return [Constant(x) for x in outs]
        outs = self.rules.get(name, _pass_through)(self, eqn, values)
        return outs if isinstance(outs, list) else [outs]

    def signal(self, value: InterpretedValue) -> SampledArray:
        """Any value as samples of its elements."""
        if isinstance(value, SampledArray):
            return value
        assert value is not None
        return samples_of_array(self.source, jnp.asarray(value.value))

    def first(
        self, eqn: JaxprEqn, values: Values, floating: bool = False
    ) -> SampledArray | None:
        """The first floating operand; if there is none, any, unless `floating`."""
        pairs = zip(values, eqn.invars, strict=True)
        known = [(v, atom.aval) for v, atom in pairs if v is not None]
        floats = [v for v, aval in known if is_float(aval)]
        candidates = floats or ([] if floating else [v for v, _ in known])
        return self.signal(candidates[0]) if candidates else None

    def fitted(self, signal: SampledArray, array: jax.ShapeDtypeStruct) -> SampledArray:
        """A signal for an array of another shape and dtype."""
        cast = signal.map(lambda x: x.astype(array.dtype))
        if len(signal.rows) == len(array.shape):
            return cast
        return filled(self.source, cast.base, array.shape)

    def product_variance(
        self, eqn: JaxprEqn, weight: WeightValue, size: Array
    ) -> Array:
        """The variance of a product that has `size` at entries of variance 1."""
        for ref in weight.refs:
            self.powers.setdefault(ref, {}).setdefault(id(eqn), []).append(size)
        if self.variances is None:
            return jnp.where(size > 0, self.signal_variance, 0.0)
        known = [self.variances[ref] for ref in weight.refs]
        return size * sum(known) / len(known)

    def part(
        self, signal: SampledArray, axis: int, start: int | str | None
    ) -> SampledArray:
        """The part of an array that begins at `start`: its elements are its own."""
        if signal.rows[axis] is None:
            return signal
        key = id(signal.base), axis, tuple(map(id, signal.rows))
        known, starts = self._parts.setdefault(key, (signal, []))
        if str(start) not in starts:
            starts.append(str(start))
        index = starts.index(str(start))
        if index == 0:
            return signal
        elements = sample_axis(self.source, known, axis, self.max_elements)
        here, neighbour = (
            elements.at((index + i) % self.max_elements) for i in range(2)
        )
        return here.insert_axis(axis, neighbour.base)

    def mixed(
        self, values: Values, choice: Array, array: jax.ShapeDtypeStruct
    ) -> InterpretedValue:
        """Of several values the one that `choice` names, sample by sample."""
        if any(v is None for v in values):
            return None
        signals = [self.fitted(self.signal(v), array) for v in values]
        if len(signals) == 1:
            return signals[0]

        def chosen(rows: list[Array]) -> Array:
            return jnp.take_along_axis(jnp.stack(rows), choice[None], 0)[0]

        rows = [
            chosen([s.row(a) for s in signals])
            if any(s.rows[a] is not None for s in signals)
            else None
            for a in range(len(array.shape))
        ]
        return SampledArray(chosen([s.base for s in signals]), tuple(rows))

    def note(self, eqn: JaxprEqn) -> None:
        """Remembers a primitive that has no rule, and the module that has it."""
        module = "/".join(filter(None, self._name_stack))
        self.passed.setdefault(eqn.primitive.name, module)

    def _bits(self, array: jax.ShapeDtypeStruct) -> SampledArray:
        return filled(self.source, self.source.bits(array.dtype), array.shape)

    def _marked(self, eqn: JaxprEqn, value: InterpretedValue) -> InterpretedValue:
        """A value after a mark: of a unit, an output, a module with an estimator."""
        mark = read_mark(eqn)
        if mark is None:
            return value
        if mark.role == "result":
            return None
        if mark.leaf < 0 or value is None:
            return value
        if mark.role == "output":
            base = self.signal(value).base
            key = (mark.path, mark.method)
            self.units.setdefault(key, []).append(Moments(mean(base), power(base)))
        if mark.role == "estimated_input":
            self._entered.setdefault(mark.call, self.signal(value))
        if mark.role == "estimated_output":
            estimator, entered = self.estimators[mark.estimator], self._entered
            given = entered.get(mark.call)
            return self.replaced(estimator, given, eqn.outvars[0].aval)
        return value

    def replaced(
        self, estimator: Callable, operand: SampledArray | None, aval: Any
    ) -> SampledArray:
        """A Gaussian with the moments that a user's estimator returns."""
        centre = mean(operand.base) if operand else jnp.zeros(())
        second = power(operand.base) if operand else jnp.zeros(())
        moments = estimator(centre, second - jnp.square(centre))
        array = jax.ShapeDtypeStruct(aval.shape, aval.dtype)
        return self.fitted(noise(self.source, array.shape, *moments), array)


def _pass_through(
    interpreter: SampleInterpreter, eqn: JaxprEqn, values: Values
) -> list[InterpretedValue]:
    """The first floating operand as it is; the interpreter notes that it had to."""
    interpreter.note(eqn)
    signal = interpreter.first(eqn, values)
    return [signal and interpreter.fitted(signal, array_type(v)) for v in eqn.outvars]


def _is_call(inner: Sequence[Jaxpr | ClosedJaxpr], values: Values) -> bool:
    """Whether an equation runs its one jaxpr on its operands."""
    return len(inner) == 1 and len(open_jaxpr(inner[0]).invars) == len(values)


def _handles_keys(eqn: JaxprEqn) -> bool:
    """Whether typed random keys go in or come out."""
    dtypes = jax.dtypes
    return any(
        dtypes.issubdtype(array_type(atom).dtype, dtypes.extended)
        for atom in (*eqn.invars, *eqn.outvars)
    )
