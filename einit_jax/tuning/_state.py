"""What a sweep is of, what passes hand on, and what comes of them."""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from ..core import AndersonState, Params, Stopping, anderson_init, is_concrete
from ..graph import Regions
from ..units import Objective, Unit, UnitKey, ones
from ._sweep import Settings, Sums, first_settings


@dataclass(frozen=True)
class SweepSpec:
    """What a sweep is of: units with their targets, and the regions between them."""

    objective: Objective
    stopping: Stopping
    units: dict[Unit, float]
    regions: Regions | None
    """None where each unit solves its own b and c, and where they stay 1."""
    owners: tuple[Unit | None, ...]
    """The unit of each floating parameter."""
    plain: bool = False
    """Whether b and c stay 1."""
    repeat_under_potentials: bool = False
    """Whether to sweep again where true gradients leave the range of the dtype."""

    @property
    def fixed_gradients(self) -> bool:
        """Whether b and c are given to a pass, and not found in it."""
        return self.regions is not None or self.plain

    @property
    def loops(self) -> bool:
        """Whether one pass may not do.

        Where it does, there is no loop: compiled for a CPU, convolutions inside of one
        run many times slower.
        """
        narrow = self.repeat_under_potentials or any(u.narrow for u in self.units)
        return bool(self.shared) or (self.regions is not None and narrow)

    @property
    def shared(self) -> list[Unit]:
        """The units that are called several times."""
        return [unit for unit in self.units if unit.calls > 1]


@partial(
    jax.tree_util.register_dataclass,
    data_fields=[
        "heard", "activations", "gradients", "loss", "strained", "steps", "moves",
    ],
    meta_fields=["names"],
)  # fmt: skip
@dataclass(frozen=True)
class Findings:
    """What was finite in the last pass, per unit in call order."""

    names: tuple[str, ...]
    heard: Bool[Array, "..."]
    """Whether statistics came back: none do from where no gradient reaches the loss."""
    activations: Bool[Array, "..."]
    gradients: Bool[Array, "..."]
    loss: Bool[Array, "..."]
    strained: Bool[Array, "..."]
    """Whether some gradient came near the limits of the dtype's range."""
    steps: Bool[Array, "..."]
    """Whether the optimizer's first step of each unit was finite."""
    moves: Bool[Array, "..."]
    """Whether that step moved any unit."""

    def over_draws(self) -> "Findings":
        """One for several draws, along the first axis: the worst of each."""
        every = jax.tree.map(lambda flags: jnp.all(flags, 0), self)
        return replace(every, strained=jnp.any(self.strained, 0))

    def needs_more(self) -> bool:
        """Whether to solve again, under the potentials of a first pass.

        Under an outer trace nobody can tell, and gradients stay as they are.
        """
        if not all(map(is_concrete, jax.tree.leaves(self))):
            return False
        strained, *fine = jax.device_get((self.strained, self.loss, self.activations))
        return bool(strained) and all(map(np.all, fine))

    def silent(self) -> tuple[str, ...]:
        """The units from which nothing came back."""
        heard = jax.device_get(self.heard)
        return tuple(n for n, back in zip(self.names, heard, strict=True) if not back)

    def check(self) -> None:
        """Raises where something was not finite; under an outer trace, nothing."""
        if not is_concrete(self.loss):
            return
        advice = "tune needs finite numbers: check the parameters, the inputs and, for"
        advice += " 16-bit models, the range of the dtype"
        first = lambda flags: self.names[int(np.argmin(flags))]
        flags = self.activations, self.loss, self.gradients, self.steps, self.moves
        activations, loss, gradients, steps, moves = jax.device_get(flags)
        if not activations.all():
            raise FloatingPointError(
                f"non-finite activations at unit {first(activations)!r}; {advice}"
            )
        if not loss:
            raise FloatingPointError(f"the loss is not finite; {advice}")
        if not gradients.all():
            raise FloatingPointError(
                f"non-finite gradients at unit {first(gradients)!r}; {advice}"
            )
        if not steps.all():
            raise FloatingPointError(
                f"the optimizer's first step of unit {first(steps)!r} is not "
                f"finite; {advice}"
            )
        if not moves:
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
    """What the passes of one draw hand on."""

    settings: dict[UnitKey, Settings]
    solution: Solution
    search: AndersonState
    moved: Float[Array, ""]
    """How far the logarithm of some c moved in the last pass."""
    log_potentials: Float[Array, " count"]


class PassResult(NamedTuple):
    """What one pass gives."""

    sums: dict[UnitKey, Sums]
    gradient: list[jax.Array]
    finite_loss: Bool[Array, ""]


def start_state(spec: SweepSpec, params: Params, floats: list[jax.Array]) -> SolveState:
    """Before the first pass: potentials of 1, and b and c of 1 where they are given."""
    units, fixed = spec.units, spec.fixed_gradients
    flags, fine = jnp.ones(len(units), bool), jnp.array(True)
    findings = Findings(
        names=tuple(unit.name for unit in units),
        heard=flags,
        activations=flags,
        gradients=flags,
        loss=fine,
        strained=fine,
        steps=flags,
        moves=fine,
    )
    dtype = factor_dtype(floats) if fixed else jnp.float32
    factors = ones(units)
    for own in factors.values():
        own |= {name: own[name].astype(dtype) for name in ("input_grad", "output_grad")}
    unknowns = (1 if fixed else 2) * sum(unit.size for unit in spec.shared)
    return SolveState(
        settings={
            unit.key: first_settings(unit, target, params, fixed)
            for unit, target in units.items()
        },
        solution=Solution(factors, findings, [jnp.zeros_like(x) for x in floats]),
        search=anderson_init(unknowns),
        moved=jnp.full((), jnp.inf, jnp.float32),
        log_potentials=jnp.zeros(
            spec.regions.count if spec.regions else 0, jnp.float32
        ),
    )


def factor_dtype(floats: list[jax.Array]) -> Any:
    """Of factors b and c: rounded to 32 bits they would blur gradients of 64 bits."""
    wide = any(jnp.finfo(leaf.dtype).bits == 64 for leaf in floats)
    return jnp.float64 if wide else jnp.float32
