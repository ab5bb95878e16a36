"""What is tuned and measured: a model, how it is called, and its loss."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import flax
import jax
import jax.numpy as jnp
from flax import linen as nn

from ._inputs import Inputs

FIXED = ("params", "scales", "intermediates")


class Batch(NamedTuple):
    """One draw: what the model is called with, and the random keys of that call."""

    inputs: Inputs
    key: jax.Array
    rngs: Mapping[str, jax.Array]


@dataclass(frozen=True)
class Static:
    """Hashable by identity: lets a jitted function take what cannot be hashed."""

    value: Any

    def __hash__(self) -> int:
        return id(self.value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Static) and self.value is other.value


def static(value: Any) -> Any:
    """The value where it can be hashed, else the value hashed by identity."""
    try:
        hash(value)
    except TypeError:
        return Static(value)
    return value


def value_of(static_value: Any) -> Any:
    return static_value.value if isinstance(static_value, Static) else static_value


@dataclass(frozen=True)
class Problem:
    """A pure function of parameters and a batch; everything static about it."""

    model: Any
    loss_fn: Any
    method: Any
    axis_name: Any
    names: tuple[str, ...]
    """The parameters besides the outputs that loss_fn wants: "key", "inputs"."""

    def apply(
        self, params: Any, collections: Mapping, batch: Batch, **options: Any
    ) -> Any:
        """The model's outputs and the collections that it wrote."""

        return value_of(self.model).apply(
            {**collections, "params": params},
            *batch.inputs.args,
            rngs=dict(batch.rngs),
            method=value_of(self.method),
            mutable=flax.core.DenyList(FIXED),
            **options,
            **batch.inputs.kwargs,
        )

    def loss(self, outputs: Any, batch: Batch) -> jax.Array:
        """The loss of outputs."""
        known = {"key": batch.key, "inputs": given(batch.inputs)}
        return value_of(self.loss_fn)(outputs, **{n: known[n] for n in self.names})


def stack(batches: Sequence[Batch]) -> Batch:
    """The batches along a new first axis."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *batches)


def over_axis(axis_name: Any, run: Callable[[], Any]) -> Any:
    """`run()` under a mapped axis of size one, for models that ask for its name.

    Gradients are taken inside of it: collectives in a backward pass need the axis too.
    """
    if axis_name is None:
        return run()
    mapped = jax.vmap(lambda _: run(), axis_name=axis_name, axis_size=1)
    return jax.tree.map(lambda x: x[0], mapped(jnp.zeros(1)))


def given(inputs: Inputs) -> Any:
    """The inputs as the user draws them: the single argument, a tuple, or Inputs."""
    if inputs.kwargs:
        return inputs
    return inputs.args[0] if len(inputs.args) == 1 else tuple(inputs.args)


def problem(
    model: nn.Module, loss_fn: Callable, method: Any, axis_name: str | None
) -> Problem:
    """Checks what can be checked before any batch is drawn.

    Raises:
        TypeError: model is no Linen module, or loss_fn takes other arguments.
        ValueError: the model has no such method.
    """
    refuse_other(model)
    if isinstance(method, str) and not callable(getattr(model, method, None)):
        raise ValueError(
            f"{type(model).__name__} has no method {method!r}; pass the name of one of "
            "its methods, or a function of the module as in model.apply"
        )
    if method is not None and not isinstance(method, str) and not callable(method):
        raise TypeError(f"method is {method!r}, expected a name or a function")
    names = _loss_arguments(loss_fn)
    return Problem(static(model), static(loss_fn), static(method), axis_name, names)


def refuse_other(model: Any) -> None:
    """Raises where model is no instance of a Linen module."""
    if isinstance(model, nn.Module):
        return
    hint = ""
    if isinstance(model, type) and issubclass(model, nn.Module):
        hint = f"; make an instance: {model.__name__}(...)"
    raise TypeError(
        f"model is a {type(model).__name__}, expected a flax.linen.Module{hint}"
    )


def _loss_arguments(loss_fn: Callable) -> tuple[str, ...]:
    if not callable(loss_fn):
        raise TypeError(f"loss_fn is {loss_fn!r}, expected a function of the outputs")
    try:
        given = list(inspect.signature(loss_fn).parameters.values())
    except ValueError:
        return ()
    named = [p for p in given[1:] if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    bound = getattr(loss_fn, "keywords", {})  # by functools.partial
    named = [p for p in named if p.name not in bound]
    wanted = tuple(p.name for p in named if p.name in ("key", "inputs"))
    extra = [p.name for p in named if p.name not in wanted and p.default is p.empty]
    if extra or not given:
        raise TypeError(
            f"loss_fn takes ({', '.join(p.name for p in given)}), expected (outputs) "
            "and, if it needs them, arguments named key and inputs; bind others with "
            "functools.partial"
        )
    return wanted


def draw_batches(
    input_fn: Any,
    key: jax.Array,
    rngs: Sequence[str] | Mapping[str, jax.Array],
    batch_size: int | None,
    draws: int,
) -> tuple[Batch, ...]:
    """`draws` batches, each with a key for the loss and one per random stream.

    Raises:
        TypeError: input_fn takes other arguments than a key (and batch_size).
        ValueError: draws is no positive integer; batch_size is given and input_fn
            takes none.
    """
    if not isinstance(draws, int) or draws < 1:
        raise ValueError(f"draws is {draws!r}, expected a positive integer")
    given_keys = dict(rngs) if isinstance(rngs, Mapping) else {}
    names = (rngs,) if isinstance(rngs, str) else tuple(rngs)
    keys = _keys(key, tuple(dict.fromkeys(("params", *names))), draws)
    return tuple(
        Batch(
            as_inputs(_draw(input_fn, of_inputs, batch_size)),
            of_loss,
            streams | given_keys,
        )
        for of_inputs, of_loss, streams in keys
    )


@partial(jax.jit, static_argnums=(1, 2))
def _keys(key: jax.Array, names: tuple[str, ...], draws: int) -> list:
    """For each draw a key of the inputs, one of the loss, and one per stream."""

    def of_draw(i):
        inputs, loss, rngs = (
            jax.random.fold_in(jax.random.fold_in(key, i), j) for j in range(3)
        )
        streams = {name: jax.random.fold_in(rngs, j) for j, name in enumerate(names)}
        return inputs, loss, streams

    return [of_draw(i) for i in range(draws)]


def _draw(input_fn: Any, key: jax.Array, batch_size: int | None) -> Any:
    if not callable(input_fn):
        if batch_size is not None:
            raise ValueError(
                "batch_size is given, but input_fn is a concrete batch; leave it out"
            )
        return input_fn
    try:
        parameters = inspect.signature(input_fn).parameters
    except ValueError:
        return input_fn(key)
    sizes = "batch_size" in parameters
    if batch_size is not None and not sizes:
        raise ValueError(
            "batch_size is given, but input_fn has no parameter of that name; add it: "
            "input_fn(key, batch_size)"
        )
    named = {"batch_size": batch_size} if batch_size is not None else {}
    if (
        sizes
        and batch_size is None
        and parameters["batch_size"].default is inspect.Parameter.empty
    ):
        named = {"batch_size": 64}
    try:
        inspect.signature(input_fn).bind(key, **named)
    except TypeError as error:
        raise TypeError(
            f"input_fn takes ({', '.join(parameters)}), expected (key) or "
            f"(key, batch_size): {error}"
        ) from None
    return input_fn(key, **named)


def as_inputs(drawn: Any) -> Inputs:
    """What was drawn as arguments of one call; a plain tuple holds several."""
    if isinstance(drawn, Inputs):
        return drawn
    if type(drawn) is tuple:
        return Inputs(*drawn)
    return Inputs(drawn)
