"""What weights meet in a model, predicted: a walk, repeated until it agrees."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array

from ...core import Batch, Path, flatten, is_concrete, is_float, is_key, unboxed
from ...linen import Objective, _mark_estimated, trace_model
from ...units import ModelGraph
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
"""At most so many walks, where weights are used several times."""


CLOSE = 0.02
"""Walks agree where no logarithm of a variance moved by more."""


Estimators = Sequence[tuple[type | str, Callable]]


class PropagationSpec(NamedTuple):
    """What is asked of a walk: what is drawn and aimed at, and how finely."""

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


class TracedModel(NamedTuple):
    """A traced model, what it is called with, and the estimators that it has."""

    graph: ModelGraph
    sites: dict[Path, Parameter]
    params: Mapping
    collections: Mapping
    batch: Batch
    met: frozenset[type]


def trace_for_propagation(
    task: Objective,
    params: Mapping,
    collections: Mapping,
    batch: Batch,
    estimators: Estimators = (),
) -> TracedModel:
    """The model, traced once, with modules marked that have an estimator."""
    classes, met = _estimator_classes(estimators), set()
    with nn.intercept_methods(_mark_estimated(classes, met)):
        graph = trace_model(task, params, collections, batch)
    sites = {site.path: site for site in parameters_in(graph)}
    return TracedModel(graph, sites, params, collections, batch, frozenset(met))


def _estimator_classes(estimators: Estimators) -> list[type]:
    return [of for of, _ in estimators if isinstance(of, type)]


def predict_variances(
    of: TracedModel, key: jax.Array, asked: PropagationSpec
) -> Prediction:
    """Walks until the variances agree with those of the walk before.

    Once, if each weight is used once. With traced numbers nobody can tell, and there
    are three walks.
    """
    leaves = flatten(unboxed(of.params))
    bias = lambda path: path in of.sites and of.sites[path].role == "bias"
    values = {p: jnp.zeros_like(v) if bias(p) else v for p, v in leaves.items()}
    last: dict[WeightRef, Array] | None = None
    i = 0
    while True:
        draws = SampleSource(key, asked.samples)
        walk, seen = _make_interpreter(draws, asked, last)
        given = [
            WeightValue(v, (WeightRef(p),), tuple(range(v.ndim)))
            for p, v in values.items()
        ]
        given += _input_values(draws, of.collections, of.batch, asked.input_moments)
        walk.run(of.graph.jaxpr, given, of.graph.consts)
        variances = settled_variances(walk.powers, asked.signal_variance)
        if i == PASSES - 1 or _agree(walk, last, variances, i):
            break
        last, i = variances, i + 1
    known = of.met | seen
    lacking = (c for c, _ in asked.estimators if c not in known)
    missed = tuple(c if isinstance(c, str) else c.__name__ for c in lacking)
    return Prediction(variances, walk.units, walk.passed, missed)


def _make_interpreter(
    draws: SampleSource, asked: PropagationSpec, variances: Any
) -> tuple[SampleInterpreter, set[str]]:
    """A walk with the user's estimators, and which of their primitives it met."""
    seen: set[str] = set()

    def rule(name: str, estimator: Callable) -> Callable:
        def act(walk: SampleInterpreter, eqn: Any, values: list) -> list:
            seen.add(name)
            first = walk.first(eqn, values, floating=True)
            return [walk.replaced(estimator, first, v.aval) for v in eqn.outvars]

        return act

    own = {c: rule(c, f) for c, f in asked.estimators if isinstance(c, str)}
    of_classes = [f for c, f in asked.estimators if isinstance(c, type)]
    how = (asked.signal_variance, asked.along, asked.centred, of_classes)
    return SampleInterpreter(draws, {**RULE_TABLE, **own}, variances, *how), seen


def _input_values(
    draws: SampleSource, collections: Mapping, batch: Batch, moments: Any
) -> list[InterpretedValue]:
    """Arrays as they are, floating inputs by their moments where these are told."""
    of_batch = {id(leaf) for leaf in jax.tree.leaves(batch.inputs)}

    def value(leaf: Any) -> InterpretedValue:
        if is_key(leaf):
            return None
        if moments is not None and id(leaf) in of_batch and is_float(leaf):
            signal = noise(draws, leaf.shape, *moments)
            return signal.each(lambda x: x.astype(leaf.dtype))
        return samples_of_array(draws, jnp.asarray(leaf))

    return [value(leaf) for leaf in jax.tree.leaves((collections, batch))]


def _agree(
    walk: SampleInterpreter, last: Any, now: Mapping[WeightRef, Array], i: int
) -> bool:
    """Whether another walk would find nothing new."""
    uses = (sum(map(len, sites.values())) for sites in walk.powers.values())
    if max(uses, default=0) <= 1:
        return True
    if not all(map(is_concrete, now.values())):
        return i == 2
    if last is None:
        return False
    both = jnp.stack([jnp.stack([last[ref], now[ref]]) for ref in now])
    return bool(jnp.max(jnp.abs(jnp.diff(jnp.log(both)))) < CLOSE)
