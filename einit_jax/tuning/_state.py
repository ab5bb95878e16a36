"""What solving is of, what its passes hand on, and what comes of it."""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ..core import AndersonState, Stopping, anderson_init, is_concrete
from ..graph import Regions
from ..linen import Objective
from ..units import Unit, UnitKey, ones
from ._sweep import sweep_entry


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["activations", "gradients", "loss", "strained", "steps", "moves"],
    meta_fields=["names"],
)
@dataclass(frozen=True)
class Findings:
    """What was finite in the last pass, per unit in call order.

    `strained`: whether some gradient came near the limits of the dtype's range.
    `steps`: whether the optimizer's first step of each unit was finite, and `moves`:
    whether it moved any.
    """

    names: tuple[str, ...]
    activations: jax.Array
    gradients: jax.Array
    loss: jax.Array
    strained: jax.Array
    steps: jax.Array
    moves: jax.Array

    def over_draws(self) -> "Findings":
        """One for several draws, along the first axis: the worst of each."""
        every = jax.tree.map(lambda f: jnp.all(f, 0), self)
        return replace(every, strained=jnp.any(self.strained, 0))

    def needs_more(self) -> bool:
        """Whether to solve again, under the potentials of a first pass.

        Under an outer trace nobody can tell, and gradients stay as they are.
        """
        if not all(map(is_concrete, jax.tree.leaves(self))):
            return False
        return bool(self.strained & self.loss & self.activations.all())

    def refuse(self) -> None:
        """Raises where something was not finite; under an outer trace, nothing."""
        if not is_concrete(self.loss):
            return
        where = "tune needs finite numbers: check the parameters, the inputs and, for"
        where += " 16-bit models, the range of the dtype"
        if not self.activations.all():
            name = self.names[int(jnp.argmin(self.activations))]
            raise FloatingPointError(
                f"non-finite activations at unit {name!r}; {where}"
            )
        if not self.loss:
            raise FloatingPointError(f"the loss is not finite; {where}")
        if not self.gradients.all():
            name = self.names[int(jnp.argmin(self.gradients))]
            raise FloatingPointError(f"non-finite gradients at unit {name!r}; {where}")
        if not self.steps.all():
            name = self.names[int(jnp.argmin(self.steps))]
            raise FloatingPointError(
                f"the optimizer's first step of unit {name!r} is not finite; {where}"
            )
        if not self.moves:
            raise ValueError(
                "the optimizer's first step moves no parameter of any unit; pass it at "
                "learning rate 1, without a warm-up from zero, such as optax.adam(1.0)"
            )


class Solution(NamedTuple):
    """The factors of every unit, and the gradient of each parameter that they carry."""

    factors: dict[UnitKey, dict[str, jax.Array]]
    findings: Findings
    gradient: list[jax.Array]


class SolveState(NamedTuple):
    """What the sweeps of one draw hand on."""

    entries: dict[UnitKey, dict[str, Any]]
    solution: Solution
    search: AndersonState
    moved: jax.Array
    gauge: jax.Array


@dataclass(frozen=True)
class SweepSpec:
    """What a sweep is of: the units with their targets, and the regions between them.

    `where` is None where each unit solves its own b and c, and where they are all 1
    (`plain`); `owners` has the unit of each floating parameter.
    """

    task: Objective
    effort: Stopping
    units: dict[Unit, float]
    where: Regions | None
    owners: tuple[Unit | None, ...]
    plain: bool = False

    @property
    def loops(self) -> bool:
        """Whether one pass may not do.

        Where it does, there is no loop: compiled for a CPU, convolutions inside of one
        run many times slower.
        """
        narrow = self.effort.again or any(unit.narrow for unit in self.units)
        return bool(self.shared) or (self.where is not None and narrow)

    @property
    def shared(self) -> list[Unit]:
        """The units that are called several times."""
        return [unit for unit in self.units if unit.calls > 1]


def start_state(job: SweepSpec, params: Any, floats: list[jax.Array]) -> SolveState:
    """Before the first pass: b and c of 1, or free, and potentials of 1."""
    units, exact = job.units, job.where is not None or job.plain
    flags = jnp.ones(len(units), bool)
    names = tuple(u.name for u in units)
    fine = jnp.array(True)
    findings = Findings(names, flags, flags, fine, fine, flags, fine)
    dtype = factor_dtype(floats) if exact else jnp.float32
    factors = ones(units)
    for own in factors.values():
        own |= {name: own[name].astype(dtype) for name in ("input_grad", "output_grad")}
    nothing = jax.tree.map(jnp.zeros_like, floats)
    unknowns = (1 if exact else 2) * sum(u.size for u in job.shared)
    return SolveState(
        {u.key: sweep_entry(u, target, params, exact) for u, target in units.items()},
        Solution(factors, findings, nothing),
        anderson_init(unknowns),
        jnp.full((), jnp.inf, jnp.float32),
        jnp.zeros(job.where.count if job.where else 0, jnp.float32),
    )


def factor_dtype(floats: list[jax.Array]) -> Any:
    """Of factors b and c: rounded to 32 bits they would blur gradients of 64 bits."""
    wide = any(jnp.finfo(leaf.dtype).bits == 64 for leaf in floats)
    return jnp.float64 if wide else jnp.float32
