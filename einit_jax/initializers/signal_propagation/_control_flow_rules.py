"""Rules of branches and loops, which interpret the jaxprs inside of them."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from ...core import JaxprEqn, is_concrete
from ...graph import open_jaxpr, scan_counts
from ._axis_samples import sample_axis
from ._interpreter import SampleInterpreter, Values
from ._values import (
    Constant,
    InterpretedValue,
    SampledArray,
    Steps,
    WeightValue,
    array_type,
)

MAX_STEPS = 24
"""Of a longer loop over time only so many steps are followed; by then it repeats."""


def cond_rule(
    interpreter: SampleInterpreter, eqn: JaxprEqn, values: Values
) -> list[InterpretedValue]:
    """The branch that is known to be taken, else each in a part of the samples."""
    branches, operands = eqn.params["branches"], values[1:]
    if isinstance(values[0], Constant):
        index = jnp.clip(jnp.asarray(values[0].value, int), 0, len(branches) - 1)
        if is_concrete(index):
            return interpreter.run(branches[int(index)], operands)
    outs = [interpreter.run(branch, operands) for branch in branches]
    choice = interpreter.source.integers(len(branches))
    return [
        interpreter.mixed(alternatives, choice, array_type(v))
        for *alternatives, v in zip(*outs, eqn.outvars, strict=True)
    ]


def while_rule(
    interpreter: SampleInterpreter, eqn: JaxprEqn, values: Values
) -> list[InterpretedValue]:
    """One turn of a loop whose length is not known, noted as without a rule."""
    interpreter.note(eqn)
    operands = values[eqn.params["cond_nconsts"] :]
    return interpreter.run(eqn.params["body_jaxpr"], operands)


def scan_rule(
    interpreter: SampleInterpreter, eqn: JaxprEqn, values: Values
) -> list[InterpretedValue]:
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
    steps = length if layers else min(length, MAX_STEPS)
    order = list(range(length))[:: -1 if eqn.params["reverse"] else 1][:steps]
    slices = [_scan_slices(interpreter, v, order) for v in scanned]
    stacks = []
    for i in range(steps):
        outs = interpreter.run(closed, [*fixed, *carry, *(s[i] for s in slices)])
        carry = [
            interpreter.signal(v) if isinstance(v, WeightValue) else v
            for v in outs[:carries]
        ]
        stacks.append(outs[carries:])
    pairs = zip(zip(*stacks, strict=True), body.outvars[carries:], strict=True)
    return [
        *carry,
        *(
            _stack_steps(interpreter, ys, order, length=length, array=array_type(v))
            for ys, v in pairs
        ),
    ]


def _scan_slices(
    interpreter: SampleInterpreter, value: InterpretedValue, order: Sequence[int]
) -> list[InterpretedValue]:
    """One value for each step."""
    if value is None:
        return [None] * len(order)
    if isinstance(value, Constant):
        return [Constant(value.value[i]) for i in order]
    if isinstance(value, WeightValue):
        return [value.layer(i) for i in order]
    if value.steps is not None and value.steps[:2] == (0, 1):
        parts = [value.steps.at(i) for i in order]
        return [part.with_axes(range(1, len(part.rows))) for part in parts]
    elements = sample_axis(interpreter.source, value, 0, len(order))
    return [elements.at(i) for i in range(len(order))]


def _stack_steps(
    interpreter: SampleInterpreter,
    values: Values,
    order: Sequence[int],
    *,
    length: int,
    array: jax.ShapeDtypeStruct,
) -> InterpretedValue:
    """The values of all steps as one: any of them; the last stands for further ones.

    `array` is the type of one step's value.
    """
    if any(v is None for v in values):
        return None
    weights = [1] * (len(values) - 1) + [length - len(values) + 1]

    def any_step() -> SampledArray:
        choice = interpreter.source.weighted_index(weights)
        signal = interpreter.mixed(values, choice, array)
        assert isinstance(signal, SampledArray)
        return signal

    here, there = any_step(), any_step()
    parts = [interpreter.fitted(interpreter.signal(v), array) for v in values]
    whole = [part.insert_axis(0, None) for part in parts]
    steps = Steps(0, 1, dict(zip(order, whole, strict=True)), whole[-1])
    neighbour = there.base if length > 1 else None
    return here.insert_axis(0, neighbour)._replace(steps=steps)
