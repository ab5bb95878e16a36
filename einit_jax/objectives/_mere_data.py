"""Which floating outputs of units are mere data: masks, paddings, positions.

A trace of the whole model tells them from activations. It is made where a unit has
several floating outputs.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import jax

from ..core import ModelArgs
from ..units import ModelGraph, Objective, UnitKey

DataOf = Callable[[UnitKey], frozenset[int]]
"""The numbers of a unit's floating outputs that are mere data."""


class Unknown(BaseException):
    """A call asks what is mere data before anybody knows; no error, so nobody minds."""


def knowing_data(run: Callable[[DataOf], Any], trace: Callable[[], ModelGraph]) -> Any:
    """`run(data_of)`, and again after a trace of the model where it has to be known.

    The trace is not made in the middle of a run: interceptors of the user's own see
    it, and what they see last is to be what is returned.
    """

    def unknown(key: UnitKey) -> frozenset[int]:
        raise Unknown

    try:
        return run(unknown)
    except Unknown:
        by_unit = {unit.key: unit.data_outputs for unit in trace().units}
        return run(lambda key: by_unit.get(key, frozenset()))


def data_in_run(objective: Objective, args: ModelArgs) -> DataOf:
    """What is mere data where an objective runs; jax keeps the trace for other runs."""

    @cache
    def found() -> dict[UnitKey, frozenset[int]]:
        return dict(_data_of_units.eval_shape(args, objective=objective).items)

    return lambda key: found().get(key, frozenset())


@partial(jax.tree_util.register_dataclass, data_fields=[], meta_fields=["items"])
@dataclass(frozen=True)
class _DataOfUnits:
    """A mapping without arrays: static, as the result of a traced function."""

    items: tuple[tuple[UnitKey, frozenset[int]], ...]


@partial(jax.jit, static_argnames="objective")
def _data_of_units(args: ModelArgs, *, objective: Objective) -> _DataOfUnits:
    """What each unit returns of mere data."""
    units = objective.trace_run(args).units
    return _DataOfUnits(tuple((unit.key, unit.data_outputs) for unit in units))
