"""What weights meet in a model, predicted: a walk, repeated until it agrees."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array

from ._estimate import ESTIMATED, Estimate
from ._estimators import RULES
from ._graph import Graph
from ._hook import Leaves, interceptor, is_key
from ._math import is_concrete, is_float
from ._paths import Path, flatten, unboxed
from ._plan import plan
from ._problem import Batch, Problem
from ._signals import Draws, noise, of_array
from ._sites import Site, sites_in
from ._values import Leaf, Moments, Ref, Value, settled

PASSES = 8
"""At most so many walks, where weights are used several times."""
CLOSE = 0.02
"""Walks agree where no logarithm of a variance moved by more."""

Estimators = Sequence[tuple[type | str, Callable]]


class Question(NamedTuple):
    """What is asked of a walk: what is drawn and aimed at, and how finely."""

    signal_variance: float
    input_moments: tuple[float, float] | None
    centred: bool
    samples: int
    along: int
    estimators: Estimators


class Prediction(NamedTuple):
    """The variance of each weight's entries, and what units make with them."""

    variances: dict[Ref, Array]
    units: dict[tuple[Path, str], list[Moments]]
    passed: dict[str, str]
    """Primitives without a rule, and the module that has each."""
    missed: tuple[str, ...]
    """Estimators for what the model does not have."""


class Subject(NamedTuple):
    """A traced model, what it is called with, and the estimators that it has."""

    graph: Graph
    sites: dict[Path, Site]
    params: Mapping
    collections: Mapping
    batch: Batch
    met: frozenset[type]


def subject(
    task: Problem,
    params: Mapping,
    collections: Mapping,
    batch: Batch,
    estimators: Estimators = (),
) -> Subject:
    """The model, traced once, with modules marked that have an estimator."""
    classes, met = _classes(estimators), set()
    with nn.intercept_methods(_marking(classes, met)):
        graph = plan(task, params, collections, batch)
    sites = {site.path: site for site in sites_in(graph)}
    return Subject(graph, sites, params, collections, batch, frozenset(met))


def _classes(estimators: Estimators) -> list[type]:
    return [of for of, _ in estimators if isinstance(of, type)]


def predicted(of: Subject, key: jax.Array, asked: Question) -> Prediction:
    """Walks until the variances agree with those of the walk before.

    Once, if each weight is used once. With traced numbers nobody can tell, and there
    are three walks.
    """
    leaves = flatten(unboxed(of.params))
    bias = lambda path: path in of.sites and of.sites[path].role == "bias"
    values = {p: jnp.zeros_like(v) if bias(p) else v for p, v in leaves.items()}
    last: dict[Ref, Array] | None = None
    i = 0
    while True:
        draws = Draws(key, asked.samples)
        walk, seen = _walk(draws, asked, last)
        given = [Leaf(v, (Ref(p),), tuple(range(v.ndim))) for p, v in values.items()]
        given += _inputs(draws, of.collections, of.batch, asked.input_moments)
        walk.run(of.graph.jaxpr, given, of.graph.consts)
        variances = settled(walk.powers, asked.signal_variance)
        if i == PASSES - 1 or _agree(walk, last, variances, i):
            break
        last, i = variances, i + 1
    known = of.met | seen
    lacking = (c for c, _ in asked.estimators if c not in known)
    missed = tuple(c if isinstance(c, str) else c.__name__ for c in lacking)
    return Prediction(variances, walk.units, walk.passed, missed)


def _walk(draws: Draws, asked: Question, variances: Any) -> tuple[Estimate, set[str]]:
    """A walk with the user's estimators, and which of their primitives it met."""
    seen: set[str] = set()

    def rule(name: str, estimator: Callable) -> Callable:
        def act(walk: Estimate, eqn: Any, values: list) -> list:
            seen.add(name)
            first = walk.first(eqn, values, floating=True)
            return [walk.replaced(estimator, first, v.aval) for v in eqn.outvars]

        return act

    own = {c: rule(c, f) for c, f in asked.estimators if isinstance(c, str)}
    of_classes = [f for c, f in asked.estimators if isinstance(c, type)]
    how = (asked.signal_variance, asked.along, asked.centred, of_classes)
    return Estimate(draws, {**RULES, **own}, variances, *how), seen


def _inputs(
    draws: Draws, collections: Mapping, batch: Batch, moments: Any
) -> list[Value]:
    """Arrays as they are, floating inputs by their moments where these are told."""
    of_batch = {id(leaf) for leaf in jax.tree.leaves(batch.inputs)}

    def value(leaf: Any) -> Value:
        if is_key(leaf):
            return None
        if moments is not None and id(leaf) in of_batch and is_float(leaf):
            signal = noise(draws, leaf.shape, *moments)
            return signal.each(lambda x: x.astype(leaf.dtype))
        return of_array(draws, jnp.asarray(leaf))

    return [value(leaf) for leaf in jax.tree.leaves((collections, batch))]


def _agree(walk: Estimate, last: Any, now: Mapping[Ref, Array], i: int) -> bool:
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


_ids = itertools.count()
"""Never starts over: the trace of a call may come from a cache of an earlier one."""


def _marking(classes: Sequence[type], met: set[type]) -> Callable:
    """An interceptor that marks the inputs and outputs of modules of some classes."""

    def which(module: nn.Module) -> int | None:
        kinds = (i for i, c in enumerate(classes) if isinstance(module, c))
        return next(kinds, None)

    def read(module: nn.Module) -> Mapping | None:
        return None if which(module) is None else {}

    def act(call: Any) -> Any:
        kind = which(call.module)
        assert kind is not None
        met.add(classes[kind])
        name = f"{ESTIMATED} {kind} {next(_ids)}"
        args, kwargs = _named((call.args, dict(call.kwargs)), f"{name} in")
        return _named(call.proceed(*args, **kwargs), f"{name} out")

    return interceptor(read, act)


def _named(tree: Any, name: str) -> Any:
    leaves = Leaves(tree)
    return leaves.build([checkpoint_name(x, name) for x in leaves.floats])
