"""`coordinate_check`: do activations and their changes keep their size over widths?"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from rich.progress import track

from ..core import (
    Batch,
    Partition,
    check_optimizer_factory,
    draw_batches,
    plain,
    static_value,
    unboxed,
)
from ..linen import (
    SCALE,
    Objective,
    carry_entries,
    checked_loss,
    make_objective,
    outputs_of,
    over_mapped_axis,
    scaling_interceptor,
    trace_model,
)
from ..reporting import difference
from ..tuning import scale_updates
from ..tuning import tune as tuned
from ..units import Unit, call_order, concat_units, from_tree
from ._coordinate_result import CoordinateCheck
from ._output_drift import output_drift


def coordinate_check(
    model_fn: Callable[[int], nn.Module],
    widths: Sequence[int],
    input_fn: Any,
    loss_fn: Callable,
    *,
    optimizer: Callable[[float], optax.GradientTransformation] = optax.adam,
    learning_rate: float | Callable[[int], float] = 2.0**-8,
    steps: int = 5,
    seeds: int = 1,
    tune: bool | Mapping[str, Any] | Callable[[int], Mapping[str, Any]] = False,
    init_fn: Callable | None = None,
    key: jax.Array | None = None,
    batch_size: int | None = None,
    method: str | Callable | None = None,
    rngs: Sequence[str] = (),
    axis_name: str | None = None,
    flat: float = 0.2,
    progress: bool = False,
) -> CoordinateCheck:
    r"""Activations and their changes in the first steps of training, over widths.

    For each width a model is made, initialized and trained for some steps on one batch.
    After each step t every unit's output is compared with its own at the start, on the
    same batch: `size = rms(y_t)`, `change = rms(y_t - y_0)`. A line is fitted through
    `log2 change` over `log2 width`; its slope is the exponent: 0 where the unit learns
    alike at every width (one learning rate serves them all), positive where wide models
    blow up, negative where they stop learning.

    Args:
        model_fn: `model_fn(width)`, a Linen module; of the same units at every width.
        widths: two or more, positive.
        input_fn, loss_fn, batch_size, method, rngs, axis_name: as in `tune`.
        optimizer: a function of the learning rate (`optax.adam`, or a `partial` of it).
        learning_rate: a number, or a function of the width.
        steps: of training; 0 looks at the initialization alone.
        seeds: of parameters and batches; sizes are geometric means over them.
        tune: whether models are tuned first, with the optimizer, and trained with
            their scales and `scale_updates`; or keywords of `tune`, such as
            `{"targets": ...}`; or a function of the width that returns them.
        init_fn: `init_fn(model, key, inputs)` returns variables in the place of
            `model.init(key, *inputs.args, **inputs.kwargs)`.
        key: a random key; default `jax.random.key(0)`.
        flat: exponents of at most that size are flat.
        progress: whether a progress bar is shown.

    Returns:
        A `CoordinateCheck`: sizes and changes by width, step and row, exponents, a
        verdict a unit; `str()` is a table, `plot()` the picture.

    Raises:
        TypeError, ValueError: wrong arguments, as in `tune`; models of different units
            at different widths.
        ImportError: from `plot()`, where matplotlib is not installed.

    Example:
        >>> import flax.linen as nn, jax, jax.numpy as jnp, optax, einit_jax as ei
        >>> def model_fn(width):
        ...     return nn.Sequential([nn.Dense(width), jnp.tanh, nn.Dense(4)])
        >>> x = jax.random.normal(jax.random.key(1), (32, 8))
        >>> loss = lambda y: jnp.mean(jnp.square(y - 1))
        >>> check = ei.coordinate_check(
        ...     model_fn, (32, 64, 128), x, loss, optimizer=optax.adam, steps=2
        ... )
        >>> check.verdicts()["layers_2"]  # Adam moves a wide readout too far
        'grows'

    Source: the coordinate check of mup, Yang and Hu, arXiv 2203.03466, appendix D.1;
    exponents, verdicts and any optimizer's tuned updates are ours.
    """
    _check_coordinate_arguments(
        model_fn, widths, optimizer, learning_rate, steps, seeds, flat
    )
    given = {"batch_size": batch_size, "method": method, "rngs": rngs}
    given |= {"axis_name": axis_name}
    key = jax.random.key(0) if key is None else key
    keys = [jax.random.fold_in(key, i) for i in range(seeds)]

    def runs() -> Iterator[tuple]:
        for width in widths:
            model = model_fn(width)
            rate = learning_rate(width) if callable(learning_rate) else learning_rate
            own = tune(width) if callable(tune) else tune
            how = None if own is False else given | ({} if own is True else dict(own))
            by = optimizer(float(rate)), optimizer(1.0)
            each = _Width(model, input_fn, loss_fn, *by, steps, how, init_fn)
            for k in keys:
                yield width, *each.run(k, **given)

    total = len(widths) * seeds
    shown = track(runs(), "coordinate check", total, disable=not progress)
    return _gather_runs(list(shown), tuple(map(int, widths)), seeds, float(flat))


def _gather_runs(
    runs: list[tuple], widths: tuple[int, ...], seeds: int, flat: float
) -> CoordinateCheck:
    """Geometric means over seeds, for units that are the same at every width."""
    first, paths, *_ = runs[0]
    for width, found, *_ in runs:
        if found != paths:
            _raise_other_units(first, paths, width, found)

    def means(i: int) -> np.ndarray:
        with np.errstate(divide="ignore"):
            logs = np.log2(np.stack([run[i] for run in runs]).astype(np.float64))
        return np.exp2(logs.reshape(len(widths), seeds, *logs.shape[1:]).mean(1))

    return CoordinateCheck(means(2), means(3), widths, paths, seeds, flat)


@dataclass(frozen=True)
class _Width:
    """The models of one width: all that is the same for every seed."""

    model: nn.Module
    input_fn: Any
    loss_fn: Callable
    tx: optax.GradientTransformation
    unit: optax.GradientTransformation
    """The same at learning rate 1, to tune with."""
    steps: int
    tuning: dict[str, Any] | None
    init_fn: Callable | None

    def run(self, key: jax.Array, **given: Any) -> tuple:
        """Paths, sizes and changes of one seed."""
        model, input_fn, loss_fn = self.model, self.input_fn, self.loss_fn
        task = make_objective(model, loss_fn, given["method"], given["axis_name"])
        drawn = given["rngs"], given["batch_size"], 1
        (batch,) = draw_batches(input_fn, key, *drawn)
        params, collections = _initialize_model(task, self.init_fn, key, batch)
        scales = None
        if self.tuning is not None:
            common = {"collections": collections, "key": key, "optimizer": self.unit}
            how = common | self.tuning
            scales = tuned(model, params, input_fn, loss_fn, **how)
        graph = trace_model(task, params, collections, batch)
        params = plain(unboxed(params))
        units = graph.units
        case = params, collections, batch, scales
        seen = _train_and_look(task, units, self.tx, self.steps, *case)
        paths, order = call_order(units)
        return paths, *(np.asarray(t)[:, order] for t in seen)


@partial(jax.jit, static_argnums=(0, 1))
def _initialize_model(
    task: Objective, init_fn: Any, key: jax.Array, batch: Batch
) -> tuple:
    """Parameters and further collections of one model."""
    inputs, model = batch.inputs, static_value(task.model)

    def made() -> Any:
        if init_fn is not None:
            return init_fn(model, key, inputs)
        keys = {**batch.rngs, "params": key}
        return model.init(
            keys, *inputs.args, method=static_value(task.method), **inputs.kwargs
        )

    variables = dict(over_mapped_axis(task.axis_name, made))
    if "params" not in variables:
        raise ValueError(
            f"init_fn returned {sorted(variables)}, expected variables with 'params', "
            "as model.init returns"
        )
    return variables.pop("params"), variables


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _train_and_look(
    task: Objective,
    units: tuple[Unit, ...],
    tx: optax.GradientTransformation,
    steps: int,
    params: Any,
    collections: Mapping,
    batch: Batch,
    scales: Mapping | None,
) -> tuple[jax.Array, jax.Array]:
    """Sizes and changes of all units, after 0, 1, ..., `steps` steps."""
    values = {}
    if scales is not None:
        values = from_tree(scales, params)
        tx = optax.chain(tx, scale_updates(scales))

    def loss(floats, leaves):
        filled = carry_entries(leaves.build(floats), SCALE, values)
        with nn.intercept_methods(scaling_interceptor(set())):
            out, _ = outputs_of(task, filled, collections, batch)
        return checked_loss(task, out, batch)

    def look(now):
        seen = output_drift(task, units, params, now, collections, batch, values)
        pick = lambda name: concat_units(units, {k: v[name] for k, v in seen.items()})
        return pick("size"), pick("change")

    def step(carry, _):
        now, state = carry
        leaves = Partition(now)
        of = lambda: jax.grad(loss)(leaves.floats, leaves)
        found = over_mapped_axis(task.axis_name, of)
        gradient = leaves.build(found, [jnp.zeros_like(t) for t in leaves.arrays])
        change, state = tx.update(gradient, state, now)
        now = optax.apply_updates(now, change)
        return (now, state), look(now)

    first = look(params)
    _, later = jax.lax.scan(step, (params, tx.init(params)), None, length=steps)
    both = zip(first, later, strict=True)
    sizes, changes = (jnp.concatenate([a[None], b]) for a, b in both)
    return sizes, changes


def _check_coordinate_arguments(
    model_fn: Any,
    widths: Any,
    optimizer: Any,
    rate: Any,
    steps: Any,
    seeds: Any,
    flat: Any,
) -> None:
    if isinstance(model_fn, nn.Module) or not callable(model_fn):
        raise TypeError(
            f"model_fn is a {type(model_fn).__name__}, expected a function of the "
            "width: lambda width: MyModel(width)"
        )
    check_optimizer_factory(optimizer)
    whole = lambda x: isinstance(x, int | np.integer) and not isinstance(x, bool)
    if len(set(widths)) < 2 or not all(whole(w) and w > 0 for w in widths):
        raise ValueError(f"widths={widths!r}, expected two or more positive integers")
    for name, value, least in (("steps", steps, 0), ("seeds", seeds, 1)):
        if not whole(value) or value < least:
            raise ValueError(f"{name}={value!r}, expected an integer >= {least}")
    if not callable(rate) and not (isinstance(rate, int | float) and rate > 0):
        raise ValueError(f"learning_rate={rate!r}, expected a positive number")
    if not isinstance(flat, int | float) or not flat >= 0:
        raise ValueError(f"flat={flat!r}, expected an exponent >= 0")


def _raise_other_units(first: int, expected: tuple, width: int, found: tuple) -> None:
    differ = difference(expected, found)
    raise ValueError(
        f"the models of width {first} and {width} have different units, of the second: "
        f"{differ or 'another order'}; model_fn must change widths alone"
    )
