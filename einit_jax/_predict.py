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
from ._hook import Leaves, interceptor, is_key
from ._math import is_concrete, is_float
from ._paths import Path, flatten, unboxed
from ._plan import plan
from ._problem import Batch, Problem
from ._signals import Draws, noise, of_array
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


def predicted(
    task: Problem,
    params: Mapping,
    collections: Mapping,
    batch: Batch,
    biases: frozenset[Path],
    key: jax.Array,
    asked: Question,
) -> Prediction:
    """Walks until the variances agree with those of the walk before.

    Once, if each weight is used once. With traced numbers nobody can tell, and there
    are three walks.
    """
    classes = [c for c, _ in asked.estimators if isinstance(c, type)]
    met: set[int] = set()
    with nn.intercept_methods(_marking(classes, met)):
        graph = plan(task, params, collections, batch)
    leaves = flatten(unboxed(params))
    values = {p: jnp.zeros_like(v) if p in biases else v for p, v in leaves.items()}
    last: dict[Ref, Array] | None = None
    i = 0
    while True:
        draws = Draws(key, asked.samples)
        walk, seen = _walk(draws, asked, classes, last)
        given = [Leaf(v, (Ref(p),), tuple(range(v.ndim))) for p, v in values.items()]
        given += _inputs(draws, collections, batch, asked.input_moments)
        walk.run(graph.jaxpr, given, graph.consts)
        variances = settled(walk.powers, asked.signal_variance)
        if i == PASSES - 1 or _agree(walk, last, variances, i):
            break
        last, i = variances, i + 1
    names = [c if isinstance(c, str) else c.__name__ for c, _ in asked.estimators]
    known = {c.__name__ for i, c in enumerate(classes) if i in met} | seen
    missed = tuple(name for name in names if name not in known)
    return Prediction(variances, walk.units, walk.passed, missed)


def _walk(
    draws: Draws, asked: Question, classes: Sequence[type], variances: Any
) -> tuple[Estimate, set[str]]:
    """A walk with the user's estimators, and which of their primitives it met."""
    seen: set[str] = set()

    def rule(name: str, estimator: Callable) -> Callable:
        def act(walk: Estimate, eqn: Any, values: list) -> list:
            seen.add(name)
            pairs = zip(values, eqn.invars, strict=True)
            floats = [v for v, a in pairs if v is not None and is_float(a.aval)]
            first = walk.signal(floats[0]) if floats else None
            return [walk.replaced(estimator, first, v.aval) for v in eqn.outvars]

        return act

    own = {c: rule(c, f) for c, f in asked.estimators if isinstance(c, str)}
    of_classes = [f for c, f in asked.estimators if c in classes]
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
    several = (
        len(s) > 1 or len(next(iter(s.values()))) > 1 for s in walk.powers.values()
    )
    if not any(list(several)):
        return True
    if not all(map(is_concrete, now.values())):
        return i == 2
    if last is None:
        return False
    both = jnp.stack([jnp.stack([last[ref], now[ref]]) for ref in now])
    return bool(jnp.max(jnp.abs(jnp.diff(jnp.log(both)))) < CLOSE)


_ids = itertools.count()
"""Never starts over: the trace of a call may come from a cache of an earlier one."""


def _marking(classes: Sequence[type], met: set[int]) -> Callable:
    """An interceptor that marks the inputs and outputs of modules of some classes."""

    def which(module: nn.Module) -> int | None:
        kinds = (i for i, c in enumerate(classes) if isinstance(module, c))
        return next(kinds, None)

    def read(module: nn.Module) -> Mapping | None:
        return None if which(module) is None else {}

    def act(call: Any) -> Any:
        kind = which(call.module)
        assert kind is not None
        met.add(kind)
        name = f"{ESTIMATED} {kind} {next(_ids)}"
        args, kwargs = _named((call.args, dict(call.kwargs)), f"{name} in")
        return _named(call.proceed(*args, **kwargs), f"{name} out")

    return interceptor(read, act)


def _named(tree: Any, name: str) -> Any:
    leaves = Leaves(tree)
    return leaves.build([checkpoint_name(x, name) for x in leaves.floats])
