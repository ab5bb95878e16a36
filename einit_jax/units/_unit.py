"""The table of units: plain records of what a traced model consists of.

A *unit* is a module that owns parameters and turns inputs into outputs with them. The
records know nothing of Flax: a binding makes them, everything else reads them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jax.extend.core import Jaxpr
from jaxtyping import Float

from ..core import Path, path_str

UnitKey = tuple[Path, str]
"""A unit's key: its path and the method through which it is called."""


@dataclass(frozen=True)
class Mover:
    """What has updates of one size: a unit, or a raw parameter."""

    path: Path
    lifted_axes: tuple[int, ...]
    """See `core.find_lifted_axes`."""

    @property
    def layers(self) -> tuple[int, ...]:
        """The sizes of the lifted axes, in order of position."""
        return tuple(n for n in self.lifted_axes if n)

    @property
    def size(self) -> int:
        """The number of layers, 1 where no axis is lifted."""
        return int(np.prod(self.layers, dtype=int))

    @property
    def carried_shape(self) -> tuple[int, ...]:
        """The shape in which a scalar per layer is carried beside the parameters."""
        return tuple(n or 1 for n in self.lifted_axes)

    def carried(self, values: float | Sequence[Any]) -> Float[np.ndarray, "..."]:
        """One number for all layers, or an array of shape `layers`, as carried."""
        each = np.broadcast_to(np.asarray(values, np.float32), self.layers)
        return each.reshape(self.carried_shape)


@dataclass(frozen=True)
class RawParameter(Mover):
    """A parameter that belongs to no unit; the path is its own."""

    @property
    def key(self) -> UnitKey:
        """Where its factors lie among those of units."""
        return self.path, "__call__"

    @property
    def name(self) -> str:
        """The parameter as users write it."""
        return path_str(self.path)


@dataclass(frozen=True)
class Unit(Mover):
    """A module that owns parameters and turns inputs into outputs with them."""

    method: str
    module_type: str
    """The name of the module's class."""
    shape: tuple[tuple[int, ...], ...]
    """Of each floating output of a call, mere data aside."""
    calls: int
    """Of one layer, in one run of the model."""
    floats: bool
    """Whether some input is floating."""
    opaque: bool
    """Whether a custom reverse rule is inside, through which forward mode cannot go."""
    narrow: bool
    """Whether some output is float16."""
    ruled: bool = False
    """Whether it runs inside of a lifted custom reverse rule."""
    differentiated: bool = False
    """Whether the model itself differentiates it."""
    data_outputs: frozenset[int] = frozenset()
    """The numbers of floating outputs that no parameter of the model changes: masks,
    paddings. They have no factor and no statistics."""

    @property
    def key(self) -> UnitKey:
        """The unit's key in dicts of values: its path and its method."""
        return self.path, self.method

    @property
    def name(self) -> str:
        """The unit as users write it: "blocks/Dense_0", "wte/attend"."""
        return path_str(self.path, self.method)


@dataclass(frozen=True)
class ModelGraph:
    """The units of a model in call order, and the trace that they were read off."""

    units: tuple[Unit, ...]
    raw_parameters: tuple[Path, ...]
    """The parameters that belong to no unit."""
    movable: tuple[RawParameter, ...]
    """Those of them, floating, that some unit's input or the outputs depend on."""
    multiplied: Mapping[Path, bool]
    """The parameters that the model multiplies with; whether in sums of products."""
    uses_outputs: bool
    """Whether the loss depends on the model's outputs."""
    escaping: tuple[Path, ...]
    """Units from the inside of which the loss depends on values, past their outputs."""
    jaxpr: Jaxpr
    """The trace; the leaves of the parameters are its first inputs."""
    shapes: Mapping[Path, tuple[int, ...]]
    """Of the parameters."""
    consts: tuple[Any, ...] = ()
    """The arrays that the trace closes over."""
