"""What weights meet in a model, predicted by interpreting its jaxpr on samples."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ...binding import is_model_type
from ...core import (
    JaxprEqn,
    ModelArgs,
    Path,
    flatten,
    is_concrete,
    is_float,
    is_key,
    unboxed,
    usual_rules,
)
from ...graph import marks_in
from ...units import ModelGraph, Objective
from ..classic import Parameter, parameters_in
from ._interpreter import SampleInterpreter
from ._rule_table import RULE_TABLE
from ._samples import SampleSource, noise, samples_of_array
from ._values import (
    InterpretedValue,
    Moments,
    WeightRef,
    WeightValue,
    settled_variances,
)

PASSES = 8
"""At most so many turns, where weights are used several times."""
CLOSE = 0.02
"""Turns agree where no logarithm of a variance moved by more."""

Estimators = Sequence[tuple[type | str, Callable]]


def check_estimators(estimators: Any) -> tuple[tuple[type | str, Callable], ...]:
    """The estimators as pairs, each of which returns two moments."""
    if estimators is not None and not isinstance(estimators, Mapping):
        raise TypeError(
            f"estimators are a {type(estimators).__name__}, expected a mapping from "
            "module classes or names of primitives to functions"
        )
    for of, function in (estimators or {}).items():
        known = isinstance(of, str) or is_model_type(of)
        if not known or not callable(function):
            raise TypeError(
                f"estimator {of!r}: {function!r}, expected a module class (nn.Dropout) "
                "or the name of a primitive ('fft'), and a function (mean, variance)"
            )
    return tuple((of, _estimator_of(of, fn)) for of, fn in (estimators or {}).items())


def _estimator_of(of: Any, function: Callable) -> Callable:
    name = getattr(of, "__name__", of)

    def estimator(mean: Array, variance: Array) -> tuple[Any, Any]:
        moments = function(mean, variance)
        if not isinstance(moments, tuple | list) or len(moments) != 2:
            raise TypeError(
                f"the estimator of {name} returned {moments!r}, expected a pair (mean, "
                "variance)"
            )
        return moments[0], moments[1]

    return estimator


class PropagationSpec(NamedTuple):
    """What is aimed at, how weights are drawn, and how finely that is followed."""

    signal_variance: float
    input_moments: tuple[float, float] | None
    centred: bool
    samples: int
    along: int
    estimators: Estimators


class Prediction(NamedTuple):
    """The variance of each weight's entries, and what units make with them."""

    variances: dict[WeightRef, Array]
    units: dict[tuple[Path, str], list[Moments]]
    passed: dict[str, str]
    """Primitives without a rule, and the module that has each."""
    missed: tuple[str, ...]
    """Estimators for what the model does not have."""

    def warn(self, parameters: Mapping[Path, Parameter]) -> None:
        """Says what was passed through, and which weights stay."""
        if self.passed:
            named = ", ".join(
                f"{name!r} at {module or '.'}" for name, module in self.passed.items()
            )
            warnings.warn(
                f"autoinit has no rule for the primitives {named}, and let their first "
                "operand pass unchanged; give it one: estimators={'name': lambda mean, "
                "variance: (mean, variance)}",
                stacklevel=3,
            )
        reached = {ref.path for ref in self.variances}
        left = [
            parameter.name
            for path, parameter in parameters.items()
            if parameter.role == "weight" and path not in reached
        ]
        if left:
            warnings.warn(
                f"autoinit saw nothing multiplied with {', '.join(left[:8])}, which "
                "stay as they are: something transforms them before, or the batch does "
                "not reach them; draw them by initialize",
                stacklevel=3,
            )


class TracedModel(NamedTuple):
    """A traced model, what it is called with, and the estimators that it has."""

    graph: ModelGraph
    parameters: dict[Path, Parameter]
    args: ModelArgs
    met: frozenset[type]
    """The classes with an estimator of which the model calls a module."""


def trace_for_propagation(
    objective: Objective, args: ModelArgs, estimators: Estimators = ()
) -> TracedModel:
    """The model, traced once, with modules marked that have an estimator."""
    classes = tuple(of for of, _ in estimators if isinstance(of, type))
    graph = objective.trace(args, classes)
    marks = (m for m in marks_in(graph.jaxpr) if m.role.startswith("estimated"))
    met = frozenset(classes[mark.estimator] for mark in marks)
    parameters = {p.path: p for p in parameters_in(graph)}
    return TracedModel(graph, parameters, args, met)


@usual_rules()
def predict_variances(
    model: TracedModel, key: jax.Array, spec: PropagationSpec
) -> Prediction:
    """Interprets the jaxpr until the variances agree with those of the turn before.

    Once, if each weight is used once. With traced numbers nobody can tell, and there
    are three turns.
    """
    leaves, parameters = flatten(unboxed(model.args.params)), model.parameters
    bias = lambda path: path in parameters and parameters[path].role == "bias"
    values = {p: jnp.zeros_like(v) if bias(p) else v for p, v in leaves.items()}
    last: dict[WeightRef, Array] | None = None
    turn = 0
    while True:
        source = SampleSource(key, spec.samples)
        interpreter, met = _make_interpreter(source, spec, last)
        inputs: list[InterpretedValue] = [
            WeightValue(v, (WeightRef(p),), tuple(range(v.ndim)))
            for p, v in values.items()
        ]
        inputs += _input_values(source, model.args, spec.input_moments)
        interpreter.run(model.graph.jaxpr, inputs, model.graph.consts)
        variances = settled_variances(interpreter.powers, spec.signal_variance)
        if turn == PASSES - 1 or _agree(interpreter, last, variances, turn):
            break
        last, turn = variances, turn + 1
    lacking = (of for of, _ in spec.estimators if of not in model.met | met)
    missed = tuple(of if isinstance(of, str) else of.__name__ for of in lacking)
    return Prediction(variances, interpreter.units, interpreter.passed, missed)


def _make_interpreter(
    source: SampleSource,
    spec: PropagationSpec,
    variances: Mapping[WeightRef, Array] | None,
) -> tuple[SampleInterpreter, set[str]]:
    """An interpreter with the user's estimators, and which primitives of these it met.

    The set fills while it runs.
    """
    met: set[str] = set()

    def rule(name: str, estimator: Callable) -> Callable:
        def estimate(
            interpreter: SampleInterpreter, eqn: JaxprEqn, values: list
        ) -> list:
            met.add(name)
            first = interpreter.first(eqn, values, floating=True)
            outs = (v.aval for v in eqn.outvars)
            return [interpreter.replaced(estimator, first, aval) for aval in outs]

        return estimate

    own = {of: rule(of, f) for of, f in spec.estimators if isinstance(of, str)}
    interpreter = SampleInterpreter(
        source,
        {**RULE_TABLE, **own},
        variances,
        signal_variance=spec.signal_variance,
        max_elements=spec.along,
        centred=spec.centred,
        estimators=[f for of, f in spec.estimators if isinstance(of, type)],
    )
    return interpreter, met


def _input_values(
    source: SampleSource, args: ModelArgs, moments: tuple[float, float] | None
) -> list[InterpretedValue]:
    """Arrays as they are, floating inputs by their moments where these are told."""
    of_batch = {id(leaf) for leaf in jax.tree.leaves(args.batch.inputs)}

    def value(leaf: Any) -> InterpretedValue:
        if is_key(leaf):
            return None
        if moments is not None and id(leaf) in of_batch and is_float(leaf):
            signal = noise(source, leaf.shape, *moments)
            return signal.map(lambda x: x.astype(leaf.dtype))
        return samples_of_array(source, jnp.asarray(leaf))

    return [value(leaf) for leaf in jax.tree.leaves((args.collections, args.batch))]


def _agree(
    interpreter: SampleInterpreter,
    last: Mapping[WeightRef, Array] | None,
    now: Mapping[WeightRef, Array],
    turn: int,
) -> bool:
    """Whether another turn would find nothing new."""
    uses = (sum(map(len, eqns.values())) for eqns in interpreter.powers.values())
    if max(uses, default=0) <= 1:
        return True
    if not all(map(is_concrete, now.values())):
        return turn == 2
    if last is None:
        return False
    both = jnp.stack([jnp.stack([last[ref], now[ref]]) for ref in now])
    return bool(jnp.max(jnp.abs(jnp.diff(jnp.log(both)))) < CLOSE)
