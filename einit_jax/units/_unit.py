"""Which modules of a model are units, read off the model's own jaxpr.

One trace of the model with every module's inputs and outputs marked (the equation of
`jax.ad_checkpoint.checkpoint_name`) shows, through `pjit`, `scan`, `remat`, `cond` and
`custom_vjp` alike, which calls turn activations into activations with parameters of
their own. Nothing runs and nothing is compiled.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jax.extend.core import Jaxpr

from ..core import Path, path_str

UnitKey = tuple[Path, str]
"""A unit's key: its path and the method through which it is called."""


@dataclass(frozen=True)
class Unit:
    """A module that owns parameters and turns inputs into outputs with them."""

    path: Path
    method: str
    kind: str
    shape: tuple[tuple[int, ...], ...]
    calls: int
    lift: tuple[int, ...]
    floats: bool
    opaque: bool
    narrow: bool

    @property
    def key(self) -> UnitKey:
        """The unit's key in dicts of values: its path and its method."""
        return self.path, self.method

    @property
    def name(self) -> str:
        """The unit as users write it: "blocks/Dense_0", "wte/attend"."""
        return path_str(self.path, self.method)

    @property
    def layers(self) -> tuple[int, ...]:
        """The sizes of the lifted axes, in order of position."""
        return tuple(n for n in self.lift if n)

    @property
    def size(self) -> int:
        """The number of layers, 1 where no axis is lifted."""
        return int(np.prod(self.layers, dtype=int))

    @property
    def ride_shape(self) -> tuple[int, ...]:
        """The shape in which a scalar per layer rides beside the parameters."""
        return tuple(n or 1 for n in self.lift)


@dataclass(frozen=True)
class ModelGraph:
    """The units of a model in call order, and what belongs to none of them.

    `jaxpr` is the trace they were read off, the parameters' leaves its first inputs, of
    the given `shapes`; `consts` are the arrays that it closes over.
    """

    units: tuple[Unit, ...]
    loose: tuple[Path, ...]
    factors: Mapping[Path, bool]
    uses_outputs: bool
    jaxpr: Jaxpr
    shapes: Mapping[Path, tuple[int, ...]]
    consts: tuple[Any, ...] = ()
