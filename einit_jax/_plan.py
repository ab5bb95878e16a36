"""The units of a problem, found and checked while the problem is traced."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import errors
from flax import linen as nn

from ._graph import Graph, discover
from ._math import is_float
from ._paths import flatten, show, unboxed
from ._problem import Batch, Problem, over_axis, value_of


def plan(problem: Problem, params: Any, collections: Mapping, batch: Batch) -> Graph:
    """The units of a problem, or an error that says what does not fit.

    Raises:
        ValueError: params of another model, no parameters, no units, inputs that the
            model cannot take, a loss that is no floating scalar or that does not depend
            on the outputs.
    """
    if isinstance(params, Mapping) and set(params) == {"params"}:
        raise ValueError("params hold an entry 'params'; pass variables['params']")
    if not isinstance(params, Mapping) or not flatten(params):
        raise ValueError(
            "params are empty: pass model.init(key, inputs)['params'] of a model that "
            "has parameters"
        )

    def run(params, hook, mark, collections, batch):
        def inside():
            with nn.intercept_methods(hook):
                out, _ = outputs_of(problem, params, collections, batch)
                outputs = mark(out)
            return checked_loss(problem, outputs, batch)

        return over_axis(problem.axis_name, inside)

    graph = discover(run, params, collections, batch)
    if not graph.units:
        raise ValueError(
            f"{type(value_of(problem.model)).__name__} has no units: no module turns "
            "inputs into outputs with parameters of its own; parameters that belong "
            f"to no unit: {', '.join(show(p) for p in graph.loose)}"
        )
    if not graph.uses_outputs:
        raise ValueError(
            "the loss does not depend on the model's outputs; loss_fn receives them as "
            "its first argument"
        )
    _refuse_foreign(problem, params, batch, graph)
    return graph


def outputs_of(
    problem: Problem, params: Any, collections: Mapping, batch: Batch, **options: Any
) -> Any:
    """Outputs and written collections; errors speak of params and inputs."""
    name = type(value_of(problem.model)).__name__
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


def checked_loss(problem: Problem, outputs: Any, batch: Batch) -> jax.Array:
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


def describe(tree: Any) -> str:
    """A pytree with each array shown by dtype and shape."""
    spec: Callable = lambda x: _Shown(
        f"{x.dtype}{list(x.shape)}" if hasattr(x, "dtype") else repr(x)
    )
    return repr(jax.tree.map(spec, tree))


class _Shown(str):
    """A string that shows itself without quotes."""

    def __repr__(self) -> str:
        return str(self)


def _refuse_foreign(problem: Problem, params: Any, batch: Batch, graph: Graph) -> None:
    """Raises where params have entries that the model itself would not make.

    Parameters that no unit of this call uses are asked of `model.init`; those that it
    makes too are merely unreached.
    """
    if problem.method is not None or not graph.loose:
        return

    def init(batch):
        model, inputs = value_of(problem.model), batch.inputs
        return over_axis(
            problem.axis_name,
            lambda: model.init(dict(batch.rngs), *inputs.args, **inputs.kwargs)[
                "params"
            ],
        )

    try:
        made = jax.eval_shape(init, batch)
    except Exception:  # a model that is initialized in another way than it is called
        return
    known = set(flatten(unboxed(made)))
    foreign = [show(p) for p in graph.loose if p not in known]
    if foreign:
        raise ValueError(
            f"params have entries that {type(value_of(problem.model)).__name__} has "
            f"not: {', '.join(foreign[:8])}; pass model.init(key, inputs)['params']"
        )


def floats_of(outputs: Any) -> list:
    """The floating leaves of the model's outputs."""
    return [t for t in jax.tree.leaves(outputs) if is_float(t)]


def any_output(outputs: Any) -> jax.Array:
    """A loss that depends on every floating output: the trace wants one."""
    means = [jnp.mean(jnp.real(t).astype(jnp.float32)) for t in floats_of(outputs)]
    return sum(means, jnp.float32(0))


@jax.custom_vjp
def anchor(outputs: list[jax.Array]) -> jax.Array:
    """Zero, with gradients of zero: makes every output of the model part of the loss.

    Units behind an output that the loss ignores are then swept like all others.
    """
    return jnp.zeros((), jnp.float32)


def _anchor_forward(outputs):
    return jnp.zeros((), jnp.float32), outputs


def _anchor_backward(outputs, cotangent):
    return ([jnp.zeros_like(t) for t in outputs],)


anchor.defvjp(_anchor_forward, _anchor_backward)
