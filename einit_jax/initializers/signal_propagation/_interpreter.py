"""A walk through a model's jaxpr that follows typical elements in the place of arrays.

What multiplies a weight is summed with random signs, so that what comes out is a fresh
Gaussian whose second moments are those of what went in; everything else is the
primitive's own function of samples, or a rule for axes and sums. Nothing of the model
runs.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Literal
from jaxtyping import Array

from ...core import Path, is_float
from ...graph import ESTIMATED, closed_bodies, open_jaxpr
from ._axis_samples import sample_axis
from ._samples import (
    SampledArray,
    SampleSource,
    correlate_with_last,
    filled,
    gaussian_rows,
    mean,
    noise,
    power,
    samples_of_array,
    second_moments,
)
from ._values import Constant, InterpretedValue, Moments, WeightRef, WeightValue


class SampleInterpreter:
    """One walk. `variances`: of the entries of each weight, where they are settled.

    Where they are not, each weight has the variance that brings its products to
    `signal_variance`. What that takes is noted in `powers`.
    """

    def __init__(
        self,
        draws: SampleSource,
        rules: Mapping[str, Callable],
        variances: Mapping[WeightRef, Array] | None = None,
        signal_variance: float = 1.0,
        most: int = 16,
        centred: bool = False,
        estimators: Sequence[Callable] = (),
    ):
        self.draws, self.rules, self.most = draws, rules, most
        self.variances, self.signal_variance = variances, signal_variance
        self.centred, self.estimators = centred, estimators
        self.powers: dict[WeightRef, dict[int, list[Array]]] = {}
        self.units: dict[tuple[Path, str], list[Moments]] = {}
        self.passed: dict[str, str] = {}
        self._parts: dict[tuple, tuple[SampledArray, list[str]]] = {}
        self._where: list[str] = []
        self._entered: dict[str, SampledArray] = {}
        self._last: dict[tuple[WeightRef, ...], tuple[Array, list[Array]]] = {}

    def run(self, jaxpr: Any, values: Sequence, consts: Sequence = ()) -> list:
        """The values of a jaxpr's outputs."""
        body = open_jaxpr(jaxpr)
        consts = list(consts) or list(getattr(jaxpr, "consts", ()))
        env: dict = dict(zip(body.invars, values, strict=True))
        env |= {v: Constant(c) for v, c in zip(body.constvars, consts, strict=True)}

        def read(atom):
            return Constant(atom.val) if isinstance(atom, Literal) else env[atom]

        for eqn in body.eqns:
            self._where.append(str(eqn.source_info.name_stack))
            outs = self.equation(eqn, [read(v) for v in eqn.invars])
            self._where.pop()
            env.update(zip(eqn.outvars, outs, strict=True))
        return [read(v) for v in body.outvars]

    def equation(self, eqn: Any, values: list) -> list:
        """The values of an equation's outputs."""
        name = eqn.primitive.name
        if name == "name":
            return [self._marker(eqn, values[0])]
        if name in ("random_bits", "threefry2x32"):
            return [self._bits(v.aval) for v in eqn.outvars]
        inner = closed_bodies(eqn)
        if name not in self.rules and _is_call(inner, values):
            return self.run(inner[0], values)
        if not inner and (any(v is None for v in values) or _of_keys(eqn)):
            return [None] * len(eqn.outvars)
        if not inner and all(isinstance(v, Constant) for v in values):
            found = eqn.primitive.bind(*(v.value for v in values), **eqn.params)
            found = found if eqn.primitive.multiple_results else [found]
            return [Constant(x) for x in found]
        rule = self.rules.get(name, _pass_through)
        outs = rule(self, eqn, values)
        return outs if type(outs) is list else [outs]

    def signal(self, value: InterpretedValue) -> SampledArray:
        """Any value as samples of its elements."""
        if isinstance(value, SampledArray):
            return value
        assert value is not None
        return samples_of_array(self.draws, jnp.asarray(value.value))

    def first(
        self, eqn: Any, values: Sequence, floating: bool = False
    ) -> SampledArray | None:
        """The first floating operand; if there is none, and it need not be, any."""
        pairs = zip(values, eqn.invars, strict=True)
        known = [(v, atom.aval) for v, atom in pairs if v is not None]
        floats = [v for v, aval in known if is_float(aval)]
        some = floats or ([] if floating else [v for v, _ in known])
        return self.signal(some[0]) if some else None

    def fitted(self, signal: SampledArray, aval: Any) -> SampledArray:
        """A signal for another shape and dtype."""
        cast = signal.each(lambda x: x.astype(aval.dtype))
        if len(signal.rows) == len(aval.shape):
            return cast
        return filled(self.draws, cast.base, aval.shape)

    def product(
        self, eqn: Any, leaf: WeightValue, rows: list[Array], fan: Any, common: Any,
        within: Array | None,
    ) -> list[Array]:  # fmt: skip
        """Rows of what a weight makes of rows of inputs: `sum over fan of w x`.

        `common`: which part of the entries two rows have in common. `within`: second
        moments over different inputs of one sum, which entries that sum to zero take
        away. A weight that is used again makes of inputs like the last ones something
        like the last time.
        """
        moments = second_moments(rows)
        moments = (moments if within is None else moments - within) * common
        size = jnp.maximum(moments[0, 0], 0) * jnp.square(leaf.factor) * fan
        variance = self.weigh(eqn, leaf, size)
        made = gaussian_rows(self.draws, moments, variance)
        before = self._last.get(leaf.refs)
        if before is not None and len(before[1]) == len(made):
            made = correlate_with_last(made, variance, rows[0], *before)
        self._last[leaf.refs] = rows[0], made
        return made

    def weigh(self, eqn: Any, leaf: WeightValue, size: Array) -> Array:
        """The variance of a product that has `size` at entries of variance 1."""
        for ref in leaf.refs:
            self.powers.setdefault(ref, {}).setdefault(id(eqn), []).append(size)
        if self.variances is None:
            return jnp.where(size > 0, self.signal_variance, 0.0)
        known = [self.variances[ref] for ref in leaf.refs]
        return size * sum(known) / len(known)

    def part(self, signal: SampledArray, axis: int, start: Any) -> SampledArray:
        """The part of an array from `start` on: each has elements of its own."""
        if signal.rows[axis] is None:
            return signal
        key = id(signal.base), axis, tuple(map(id, signal.rows))
        known, starts = self._parts.setdefault(key, (signal, []))
        if str(start) not in starts:
            starts.append(str(start))
        at = starts.index(str(start))
        if at == 0:
            return signal
        elements = sample_axis(self.draws, known, axis, self.most)
        there, beside = (elements.at((at + i) % self.most) for i in range(2))
        return there.inserted(axis, beside.base)

    def mixed(self, values: Sequence, which: Array, aval: Any) -> InterpretedValue:
        """A signal that is each of several in a part of the samples."""
        if any(v is None for v in values):
            return None
        signals = [self.fitted(self.signal(v), aval) for v in values]
        if len(signals) == 1:
            return signals[0]

        def chosen(rows: list) -> Array:
            return jnp.take_along_axis(jnp.stack(rows), which[None], 0)[0]

        rows = [
            chosen([s.row(a) for s in signals])
            if any(s.rows[a] is not None for s in signals)
            else None
            for a in range(len(aval.shape))
        ]
        return SampledArray(chosen([s.base for s in signals]), tuple(rows))

    def note(self, eqn: Any) -> None:
        """Remembers a primitive that has no rule, and the module that has it."""
        where = "/".join(filter(None, self._where))
        self.passed.setdefault(eqn.primitive.name, where)

    def _bits(self, aval: Any) -> SampledArray:
        return filled(self.draws, self.draws.bits(aval.dtype), aval.shape)

    def _marker(self, eqn: Any, value: InterpretedValue) -> InterpretedValue:
        """Reads what marks units, outputs, and modules with an estimator."""
        text = eqn.params["name"]
        if text.startswith(ESTIMATED):
            return self._estimated(text, eqn, value)
        try:
            index, what, *about = json.loads(text)
        except ValueError:
            return value
        if what == "outputs":
            return None
        if what == "out" and index >= 0 and value is not None:
            base = self.signal(value).base
            key = (tuple(about[1]), about[2])
            self.units.setdefault(key, []).append(Moments(mean(base), power(base)))
        return value

    def _estimated(
        self, text: str, eqn: Any, value: InterpretedValue
    ) -> InterpretedValue:
        """On the way into a module its input is noted; out of it come its moments."""
        _, which, number, side = text.split(" ")
        if value is None:
            return value
        if side == "in":
            self._entered.setdefault(number, self.signal(value))
            return value
        given = self._entered.get(number)
        return self.replaced(self.estimators[int(which)], given, eqn.outvars[0].aval)

    def replaced(
        self, estimator: Callable, given: SampledArray | None, aval: Any
    ) -> SampledArray:
        """A Gaussian of the moments that the user's function tells."""
        centre = mean(given.base) if given else jnp.zeros(())
        second = power(given.base) if given else jnp.zeros(())
        found = estimator(centre, second - jnp.square(centre))
        return self.fitted(noise(self.draws, aval.shape, *found), aval)


def _pass_through(walk: SampleInterpreter, eqn: Any, values: list) -> list:
    """Lets the first floating operand through, and notes that it had to."""
    walk.note(eqn)
    signal = walk.first(eqn, values)
    return [signal and walk.fitted(signal, v.aval) for v in eqn.outvars]


def _is_call(inner: Sequence, values: Sequence) -> bool:
    """Whether an equation runs its one jaxpr on its operands."""
    return len(inner) == 1 and len(open_jaxpr(inner[0]).invars) == len(values)


def _of_keys(eqn: Any) -> bool:
    """Whether typed random keys go in or come out."""
    atoms = [*eqn.invars, *eqn.outvars]
    dtypes = jax.dtypes
    return any(dtypes.issubdtype(a.aval.dtype, dtypes.extended) for a in atoms)
