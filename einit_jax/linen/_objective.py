"""What is tuned and measured: a model, how it is called, and its loss."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import flax
import jax
import jax.numpy as jnp
from flax import errors
from flax import linen as nn

from ..core import Batch, as_static, describe, float_leaves, static_value, user_inputs

FIXED = ("params", "scales", "intermediates")


@dataclass(frozen=True)
class Objective:
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

        return static_value(self.model).apply(
            {**collections, "params": params},
            *batch.inputs.args,
            rngs=dict(batch.rngs),
            method=static_value(self.method),
            mutable=flax.core.DenyList(FIXED),
            **options,
            **batch.inputs.kwargs,
        )

    def loss(self, outputs: Any, batch: Batch) -> jax.Array:
        """The loss of outputs."""
        known = {"key": batch.key, "inputs": user_inputs(batch.inputs)}
        return static_value(self.loss_fn)(outputs, **{n: known[n] for n in self.names})


def over_mapped_axis(axis_name: Any, run: Callable[[], Any]) -> Any:
    """`run()` under a mapped axis of size one, for models that ask for its name.

    Gradients are taken inside of it: collectives in a backward pass need the axis too.
    """
    if axis_name is None:
        return run()
    mapped = jax.vmap(lambda _: run(), axis_name=axis_name, axis_size=1)
    return jax.tree.map(lambda x: x[0], mapped(jnp.zeros(1)))


def make_objective(
    model: nn.Module, loss_fn: Callable, method: Any, axis_name: str | None
) -> Objective:
    """Checks what can be checked before any batch is drawn.

    Raises:
        TypeError: model is no Linen module, or loss_fn takes other arguments.
        ValueError: the model has no such method.
    """
    check_module(model)
    if isinstance(method, str) and not callable(getattr(model, method, None)):
        raise ValueError(
            f"{type(model).__name__} has no method {method!r}; pass the name of one of "
            "its methods, or a function of the module as in model.apply"
        )
    if method is not None and not isinstance(method, str) and not callable(method):
        raise TypeError(f"method is {method!r}, expected a name or a function")
    names = _loss_arguments(loss_fn)
    return Objective(
        as_static(model), as_static(loss_fn), as_static(method), axis_name, names
    )


def check_module(model: Any) -> None:
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


def outputs_of(
    problem: Objective, params: Any, collections: Mapping, batch: Batch, **options: Any
) -> Any:
    """Outputs and written collections; errors speak of params and inputs."""
    name = type(static_value(problem.model)).__name__
    try:
        return problem.apply(params, collections, batch, **options)
    except (errors.ScopeParamNotFoundError, errors.ScopeParamShapeError) as error:
        raise ValueError(
            f"params do not fit {name} called with {describe(batch.inputs)}: {error}; "
            "pass model.init(key, inputs)['params'] of such inputs"
        ) from error
    except NameError as error:
        raise ValueError(
            f"{name} needs a mapped axis: {error}; pass axis_name='...'"
        ) from error
    except Exception as error:
        raise ValueError(
            f"{name} cannot take the inputs {describe(batch.inputs)}: "
            f"{type(error).__name__}: {error}"
        ) from error


def checked_loss(problem: Objective, outputs: Any, batch: Batch) -> jax.Array:
    """The loss, a floating scalar."""
    try:
        loss = problem.loss(outputs, batch)
    except Exception as error:
        raise ValueError(
            f"loss_fn failed on the outputs {describe(outputs)}: "
            f"{type(error).__name__}: {error}"
        ) from error
    dtype, shape = getattr(loss, "dtype", None), getattr(loss, "shape", None)
    real = dtype is not None and jnp.issubdtype(dtype, jnp.floating)
    if shape != () or not real:
        hint = "; take the mean over the batch" if real else " that depends on outputs"
        raise ValueError(
            f"loss_fn returned {describe(loss)}, expected a floating scalar{hint}"
        )
    return loss


def any_output(outputs: Any) -> jax.Array:
    """A loss that depends on every floating output: the trace wants one."""
    means = [jnp.mean(jnp.real(t).astype(jnp.float32)) for t in float_leaves(outputs)]
    return sum(means, jnp.float32(0))
