"""The rules of loops and branches in a walk that follows typical elements."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from ...core import is_concrete
from ...graph import open_jaxpr, scan_counts
from ._axis_samples import sample_axis
from ._interpreter import SampleInterpreter
from ._samples import SampledArray, Steps
from ._values import Constant, InterpretedValue, WeightValue

MOST_STEPS = 24
"""Of a longer loop over time only so many are followed; by then it repeats itself."""


def cond_rule(walk: SampleInterpreter, eqn: Any, values: list) -> list:
    """The branch that is known to be taken, else each for a part of the samples."""
    branches = eqn.params["branches"]
    if isinstance(values[0], Constant):
        at = jnp.clip(jnp.asarray(values[0].value, int), 0, len(branches) - 1)
        if is_concrete(at):
            return walk.run(branches[int(at)], values[1:])
    found = [walk.run(branch, values[1:]) for branch in branches]
    which = walk.draws.integers(len(branches))
    outs = zip(*found, eqn.outvars, strict=True)
    return [walk.mixed(each, which, v.aval) for *each, v in outs]


def while_rule(walk: SampleInterpreter, eqn: Any, values: list) -> list:
    """One turn of a loop whose length is not known; noted as passed."""
    walk.note(eqn)
    given = values[eqn.params["cond_nconsts"] :]
    return walk.run(eqn.params["body_jaxpr"], given)


def scan_rule(walk: SampleInterpreter, eqn: Any, values: list) -> list:
    """Step by step, each with its slice of what is scanned over.

    Layers are all followed, as each has parameters of its own.
    """
    closed = eqn.params["jaxpr"]
    body = open_jaxpr(closed)
    consts, carries = scan_counts(eqn, body)
    length = eqn.params["length"]
    fixed, carry = values[:consts], values[consts : consts + carries]
    scanned = values[consts + carries :]
    layers = any(isinstance(v, WeightValue) for v in scanned)
    steps = length if layers else min(length, MOST_STEPS)
    order = list(range(length))[:: -1 if eqn.params["reverse"] else 1][:steps]
    slices = [_scan_slices(walk, v, order) for v in scanned]
    stacks = []
    for i in range(steps):
        found = walk.run(closed, [*fixed, *carry, *(s[i] for s in slices)])
        carry = [
            walk.signal(v) if isinstance(v, WeightValue) else v for v in found[:carries]
        ]
        stacks.append(found[carries:])
    pairs = zip(zip(*stacks, strict=True), body.outvars[carries:], strict=True)
    return [*carry, *(_stack_steps(walk, ys, order, length, v.aval) for ys, v in pairs)]


def _scan_slices(
    walk: SampleInterpreter, value: InterpretedValue, order: Sequence[int]
) -> list[InterpretedValue]:
    """One value for each step."""
    if value is None:
        return [None] * len(order)
    if isinstance(value, Constant):
        return [Constant(value.value[i]) for i in order]
    if isinstance(value, WeightValue):
        return [value.layer(i) for i in order]
    if value.steps is not None and value.steps[:2] == (0, 1):
        each = [value.steps.at(i) for i in order]
        return [s.over(range(1, len(s.rows))) for s in each]
    found = sample_axis(walk.draws, value, 0, len(order))
    return [found.at(i) for i in range(len(order))]


def _stack_steps(
    walk: SampleInterpreter,
    values: Sequence,
    order: Sequence[int],
    length: int,
    aval: Any,
) -> InterpretedValue:
    """The values of all steps as one, any of them; the last stands for further ones."""
    if any(v is None for v in values):
        return None
    weights = [1] * (len(values) - 1) + [length - len(values) + 1]

    def any_step() -> SampledArray:
        found = walk.mixed(values, walk.draws.among(weights), aval)
        assert isinstance(found, SampledArray)
        return found

    here, there = any_step(), any_step()
    each = [walk.fitted(walk.signal(v), aval) for v in values]
    whole = [s.inserted(0, None) for s in each]
    steps = Steps(0, 1, dict(zip(order, whole, strict=True)), whole[-1])
    beside = there.base if length > 1 else None
    return here.inserted(0, beside)._replace(steps=steps)
