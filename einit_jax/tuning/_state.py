"""What a sweep is of, what passes hand on, and what comes of them."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from ..core import AndersonState, Params, Path, Stopping, as_summed, is_concrete
from ..graph import Regions
from ..units import Objective, RawParameter, Unit, UnitKey, zeros_like_params

PerLayer = Float[Array, "..."]
"""A number for each layer, in the shape in which it is carried to the unit."""


class Shared(NamedTuple):
    """What only a unit is told that is called several times.

    Its calls share their factors, so that no call knows them: after a first pass they
    are given, and `found` is 1.
    """

    found: PerLayer
    """1 where the factors below are in force, 0 in a first pass."""
    output: PerLayer
    """a."""
    step: dict[str, Array]
    """The parameter gradient of the pass before, along which the change is taken."""
    input_scale: PerLayer | None = None
    """b c; None where b is given apart."""


class Settings(NamedTuple):
    """What a unit is told before a pass; None where it is told nothing.

    A unit that is called once finds a by itself, where it stands, and without
    `input_grad` also b and c.
    """

    target: PerLayer
    """The output rms to aim at."""
    output_grad: PerLayer | None = None
    """c: it acts on every cotangent with `input_grad`, else on parameter gradients."""
    input_grad: PerLayer | None = None
    """b, where b and c are fixed and act on every cotangent."""
    shared: Shared | None = None


class Sums(NamedTuple):
    """What comes out of a pass: sums over the calls of a unit.

    Of a unit that is called several times mean squares are summed, sizes being 1: calls
    may differ in size. In a *wide* pass, for sizes whose squares leave float32, it is
    {"size": sums of root mean squares, as `core.as_summed` has them}.
    """

    output: Any
    """Squares of the raw output."""
    output_size: PerLayer
    """Elements of the output."""
    input_grad: Any
    """Squares of the strongest raw input gradient."""
    input_size: PerLayer
    """Elements of that gradient."""
    change: Any
    """Squares of the change of the output by an update, at a = c = 1; in a wide pass at
    the a of the call."""
    gradient: dict[str, Array] | None = None
    """The parameter gradient, of units called several times: their calls' gradients add
    up before they change the unit, which no call can know by itself."""

    @property
    def wide(self) -> bool:
        """Whether the pass is one for all sizes in float32."""
        return isinstance(self.output, Mapping)


def first_settings(
    unit: Unit,
    target: Float[np.ndarray, "..."],
    params: Params,
    fixed_gradients: bool,
) -> Settings:
    """Before a first pass; with `fixed_gradients` b and c are given, and 1."""
    one = jnp.ones(unit.carried_shape, jnp.float32)
    settings = Settings(jnp.asarray(target))
    if fixed_gradients:
        settings = settings._replace(output_grad=one, input_grad=one)
    if unit.calls > 1:
        shared = Shared(
            found=0 * one,
            output=one,
            step=zeros_like_params(params, unit),
            input_scale=None if fixed_gradients else one,
        )
        settings = settings._replace(output_grad=one, shared=shared)
    return settings


def empty_sums(unit: Unit, params: Params, *, wide: bool) -> Sums:
    """Zeros, whose cotangents are the sums."""
    zero = jnp.zeros(unit.carried_shape, jnp.float32)
    gradient = zeros_like_params(params, unit) if unit.calls > 1 else None
    summed = {"size": as_summed(zero, several=unit.calls > 1)} if wide else zero
    return Sums(summed, zero, summed, zero, summed, gradient)


@dataclass(frozen=True)
class SweepSpec:
    """What a sweep is of: units with their targets, and the regions between them."""

    objective: Objective
    stopping: Stopping
    units: dict[Unit, Float[np.ndarray, "..."]]
    regions: Regions | None
    """None where each unit solves its own b and c, and where they stay 1."""
    movers: tuple[Unit | RawParameter | None, ...]
    """The unit of each floating parameter, or the raw one that it is, with factors."""
    counted: frozenset[Path]
    """Those of them, by path, whose steps the total update is of."""
    raw_inside: Mapping[Path, Bool[np.ndarray, "..."]]
    """Whether the gradient of a raw parameter comes from the inside of a unit."""
    plain: bool = False
    """Whether b and c stay 1."""
    repeat_under_potentials: bool = False
    """Whether to sweep again where true gradients leave the range of the dtype."""
    wide: bool = False
    """Whether sizes may be such that their squares leave float32."""

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

    @property
    def names(self) -> tuple[str, ...]:
        """Of the units, then of the raw parameters."""
        return tuple(mover.name for mover in (*self.units, *self.raw))

    @property
    def raw(self) -> list[RawParameter]:
        """The raw parameters that have factors of their own."""
        return [mover for mover in self.movers if isinstance(mover, RawParameter)]


@partial(
    jax.tree_util.register_dataclass,
    data_fields=[
        "heard", "activations", "gradients", "loss", "strained", "extreme", "steps",
        "moves", "reach",
    ],
    meta_fields=["names"],
)  # fmt: skip
@dataclass(frozen=True)
class Findings:
    """What was finite in the last pass, per unit in call order."""

    names: tuple[str, ...]
    """Those of raw parameters come last: of them `steps` alone tells."""
    heard: Bool[Array, "..."]
    """Whether statistics came back: none do from where no gradient reaches the loss."""
    activations: Bool[Array, "..."]
    gradients: Bool[Array, "..."]
    loss: Bool[Array, "..."]
    strained: Bool[Array, "..."]
    """Whether some gradient came near the limits of the dtype's range."""
    extreme: Bool[Array, "..."]
    """Whether some size was out of what a pass that is not wide can read."""
    steps: Bool[Array, "..."]
    """Whether the first step of each unit and raw parameter was finite."""
    moves: Bool[Array, "..."]
    """Whether that step moved any unit."""
    reach: Bool[Array, "..."]
    """Whether the factors of each unit, and their products, are in float32's range."""

    def over_draws(self) -> "Findings":
        """One for several draws, along the first axis: the worst of each.

        But what is heard on some draw is heard.
        """
        every = jax.tree.map(lambda flags: jnp.all(flags, 0), self)
        names = "heard", "strained", "extreme"
        return replace(every, **{n: jnp.any(getattr(self, n), 0) for n in names})

    def needs_more(self) -> bool:
        """Whether to solve again, widely and under the potentials of a first pass.

        Under an outer trace nobody can tell, and gradients stay as they are.
        """
        if not all(map(is_concrete, jax.tree.leaves(self))):
            return False
        flags = self.strained, self.extreme, self.loss, self.activations
        strained, extreme, *fine = jax.device_get(flags)
        return bool(extreme) or (bool(strained) and all(map(np.all, fine)))

    def silent(self) -> tuple[str, ...]:
        """The units from which nothing came back."""
        heard = jax.device_get(self.heard)
        return tuple(n for n, back in zip(self.names, heard, strict=False) if not back)

    def to_leave_out(self) -> tuple[str, ...]:
        """The units from which nothing came back, where there are others.

        Raises:
            ValueError: there are no others.
        """
        silent = self.silent()
        if len(silent) == len(self.heard):
            raise ValueError(
                f"no gradient of the loss reaches {', '.join(silent[:8])}: no unit is "
                "left to tune; look for stop_gradient, rounding or integers between "
                "units and the loss, or for outputs that loss_fn does not read"
            )
        return silent

    def check(self) -> None:
        """Raises where something was not finite; under an outer trace, nothing."""
        if not is_concrete(self.loss):
            return
        advice = "tune needs finite numbers: check the parameters, the inputs and, for"
        advice += " 16-bit models, the range of the dtype"
        first = lambda flags: self.names[int(np.argmin(flags))]
        names = "activations", "loss", "gradients", "steps", "reach", "moves"
        flags = jax.device_get([getattr(self, name) for name in names])
        activations, loss, gradients, steps, reach, moves = flags
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
                f"the first step of {first(steps)!r} is not finite; {advice}"
            )
        if not reach.all():
            raise FloatingPointError(
                f"unit {first(reach)!r} needs factors beyond the range of float32 "
                "(1e-37 to 1e37), or their products are: its inputs, its parameters or "
                "the loss are too large or too small; bring them nearer to 1, or leave "
                f"the unit as it is: exclude={first(reach)!r}"
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
    raw: dict[UnitKey, dict[str, jax.Array]] = {}  # noqa: RUF012 - never changed
    """The factors of raw parameters."""


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
