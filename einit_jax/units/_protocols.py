"""The seam: what a binding to a neural network library has to give.

A binding makes an `Objective` of a model and hands each call of a unit, a `UnitCall`,
to whoever measures. All that measures and tunes is written against these two protocols,
and imports no Flax.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
from jaxtyping import Array, Float

from ..core import Collections, Draw, ModelArgs, Params, Path
from ._unit import ModelGraph, Unit, UnitKey


@runtime_checkable
class UnitCall(Protocol):
    """One call of a unit, about to run, as a pure function of floating arrays.

    After `proceed`, `vjp`, `jvp` or `rescaled` has run, `finish` gives the caller what
    the unit returns: arrays that are not floating, and what is static, are kept.
    """

    path: Path
    method: str
    entries: Mapping[str, Any]
    """What is carried to the module, by method."""
    inputs: list[Array]
    """The floating inputs."""

    @property
    def params(self) -> list[Array]:
        """The unit's own floating parameters, in the order of their paths."""
        ...

    def has_method(self, name: str) -> bool:
        """Whether the module has a method of that name."""
        ...

    def has_data(self) -> bool:
        """Whether some input is an array, random keys aside."""
        ...

    def proceed(self, inputs: list[Array]) -> list[Array]:
        """The floating outputs of other inputs."""
        ...

    def vjp(self, inputs: list[Array]) -> tuple[list[Array], Callable]:
        """The floating outputs, and the function that transposes the derivative.

        It takes cotangents of the outputs and returns two lists, those of the unit's
        own parameters and those of the inputs; it is a pytree, and linear.
        """
        ...

    def jvp(
        self, inputs: list[Array], step: list[Array], *, by_transposing: bool
    ) -> tuple[list[Array], list[Array]]:
        """The floating outputs, and their derivative along a step of the parameters.

        `by_transposing` goes through reverse mode, for units with a custom vjp.
        """
        ...

    def rescaled(self, factor: Float[Array, ""]) -> list[Array]:
        """The floating outputs with the unit's own parameters times a factor.

        Called again, the unit draws the same random numbers.
        """
        ...

    def finish(self, outputs: list[Array]) -> Any:
        """What the unit returns, with other floating arrays in it."""
        ...


class Interception(NamedTuple):
    """What is carried to units under a name, and who handles their calls."""

    name: str
    entries: Mapping[UnitKey, Any]
    """Pytrees of arrays, in the shape in which each unit carries them."""
    handle: Callable[[UnitCall, Any], Any]
    """Gets a call and its entry, and returns what the unit is to return."""
    otherwise: Callable[[UnitCall], None] = lambda call: None
    """Sees the calls of a carrying module through methods without an entry."""


@runtime_checkable
class Objective(Protocol):
    """A model, how it is called, and its loss: all that is static; hashable."""

    @property
    def model_type(self) -> str:
        """The name of the model's class."""
        ...

    @property
    def loss_arguments(self) -> tuple[str, ...]:
        """What the loss takes besides outputs, by name (see `core.split_batch`)."""
        ...

    @property
    def convolution_transposes(self) -> tuple[type, ...]:
        """The classes of the library's transposed convolutions."""
        ...

    def trace(self, args: ModelArgs, estimated: tuple[type, ...] = ()) -> ModelGraph:
        """The units of the model, or an error that says what does not fit.

        Calls of modules of the classes `estimated` are marked, too (see `graph.Mark`).
        """
        ...

    def trace_run(self, args: ModelArgs) -> ModelGraph:
        """The units of the model alone, whatever they are; the loss is not called."""
        ...

    def module_types(self, args: ModelArgs) -> dict[Path, type]:
        """The class of each module that is called and has parameters at or below it."""
        ...

    def run(
        self,
        args: ModelArgs,
        *interceptions: Interception,
        capture: tuple[Unit, ...] = (),
    ) -> tuple[Any, dict[UnitKey, list[list[Array]]]]:
        """The model's outputs, its units' calls intercepted, the first one outermost.

        Also, call by call, the floating outputs of the units to `capture`, of those all
        of whose calls the library lets out.
        """
        ...

    def loss(self, outputs: Any, batch: Draw) -> Float[Array, ""]:
        """The loss of outputs, checked to be a floating scalar."""
        ...

    def over_axis(self, run: Callable[[], Any]) -> Any:
        """`run()` under the mapped axis that the model asks for, of size one."""
        ...

    def init(
        self, key: jax.Array, batch: Draw, init_fn: Callable | None = None
    ) -> tuple[Params, Collections]:
        """New parameters, and further collections."""
        ...

    def with_loss_keywords(self, keywords: Mapping[str, Any]) -> "Objective":
        """The objective with some keywords of its loss bound."""
        ...
