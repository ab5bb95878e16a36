"""`coordinate_check`: do activations and their changes keep their size over widths?"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from operator import index
from typing import Any, NoReturn, SupportsIndex

import jax
import numpy as np
import optax
from rich.progress import track

from ..binding import Model, is_model_type
from ..core import (
    as_integer,
    as_number,
    check_optimizer_factory,
    checked_key,
    default_key,
    describe,
    replayed,
    usual_rules,
)
from ..reporting import difference
from ._coordinate_result import CoordinateCheck
from ._coordinate_runs import CoordinateRun, WidthSetup


@usual_rules()
def coordinate_check(
    model_fn: Callable[[int], Model],
    widths: Sequence[SupportsIndex],
    input_fn: Any,
    loss_fn: Callable,
    *,
    optimizer: Callable[[float], optax.GradientTransformation] = optax.adam,
    learning_rate: float | Callable[[int], float] = 2.0**-8,
    steps: SupportsIndex = 5,
    seeds: SupportsIndex = 1,
    tune: bool | Mapping[str, Any] | Callable[[int], Mapping[str, Any]] = False,
    init_fn: Callable | None = None,
    key: jax.Array | None = None,
    batch_size: SupportsIndex | None = None,
    method: str | Callable | None = None,
    rngs: Sequence[str] = (),
    axis_name: str | None = None,
    flat: float = 0.2,
    progress: bool = False,
) -> CoordinateCheck:
    r"""Activations and their changes in the first steps of training, over widths.

    For each width a model is made, initialized and trained for some steps on one batch.
    After each step t every unit's output is compared with that at the start, on the
    same batch: `size = rms(y_t)`, `change = rms(y_t - y_0)`. A line is fitted through
    `log2 change` over `log2 width`; its slope is the exponent: 0 where the unit learns
    alike at every width (one learning rate serves them all), positive where wide models
    blow up, negative where they stop learning.

    Args:
        model_fn: `model_fn(width)` returns a Linen module, with the same units at every
            width; or `model_fn(width, rngs)` one of NNX, made with that `nnx.Rngs`.
        widths: two or more, positive.
        input_fn, loss_fn, batch_size, method, rngs, axis_name: as in `tune`: `method`
            and `rngs` go to `model.apply`, `axis_name` is the mapped axis it expects,
            `batch_size` the number of examples that `input_fn` is asked for;
            `input_fn(key)` draws a batch, or is a loader or a batch;
            `loss_fn(outputs, labels)` gets labels of pairs (x, y) and of `Batch`. The
            first batch of a loader serves all widths and seeds.
        optimizer: a function of the learning rate (`optax.adam`, or a `partial` of it).
        learning_rate: a number, or a function of the width.
        steps: the number of training steps; 0 looks at the initialization alone.
        seeds: the number of seeds, of parameters and batches; sizes and changes are
            geometric means over them.
        tune: whether models are tuned first, with the optimizer, and trained with
            their scales and `scale_updates`; or keywords of `tune`, such as
            `{"targets": ...}`; or a function of the width that returns either.
        init_fn: `init_fn(model, key, inputs)` returns variables in the place of
            `model.init(key, *inputs.args, **inputs.kwargs)`.
        key: a random key; default `jax.random.key(0)`.
        flat: the largest exponent, of either sign, that counts as flat.
        progress: whether a progress bar is shown.

    Returns:
        A `CoordinateCheck`: sizes and changes by width, step and row, exponents, a
        verdict for each unit; `str()` is a table, `plot()` the picture.

    Raises:
        TypeError, ValueError: wrong arguments, as in `tune`; models whose units differ
            between widths.
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
    widths = tuple(widths) if isinstance(widths, Iterable) else widths
    _check_coordinate_arguments(
        model_fn,
        widths,
        optimizer=optimizer,
        learning_rate=learning_rate,
        steps=steps,
        seeds=seeds,
        flat=flat,
        init_fn=init_fn,
        tune=tune,
    )
    options = {"batch_size": batch_size, "method": method, "rngs": rngs}
    options |= {"axis_name": axis_name}
    key = default_key() if key is None else checked_key(key)
    input_fn = replayed(input_fn)  # the same batch at every width
    steps, seeds = index(steps), index(seeds)
    keys = [jax.random.fold_in(key, i) for i in range(seeds)]

    def runs() -> Iterator[CoordinateRun]:
        for width in map(index, widths):
            rate = learning_rate(width) if callable(learning_rate) else learning_rate
            tuning = tune(width) if callable(tune) else tune
            if isinstance(tuning, bool):
                tuning = {} if tuning else None
            setup = WidthSetup(
                width,
                model_fn,
                seeds,
                input_fn,
                loss_fn,
                options=options,
                optimizer=optimizer(float(rate)),
                at_one=optimizer,
                steps=steps,
                tuning=tuning,
                init_fn=init_fn,
            )
            for seed_key in keys:
                yield setup.run(seed_key)

    total = len(widths) * seeds
    tracked = track(runs(), "coordinate check", total, disable=not progress)
    return _gather_runs(list(tracked), tuple(map(int, widths)), seeds, float(flat))


def _gather_runs(
    runs: list[CoordinateRun], widths: tuple[int, ...], seeds: int, flat: float
) -> CoordinateCheck:
    """Geometric means over seeds, for units that are the same at every width."""
    first, *others = runs
    for other in others:
        if other.paths != first.paths:
            _raise_other_units(first, other)

    def means(name: str) -> np.ndarray:
        """The means of a field, by width, step and row."""
        values = np.stack([getattr(run, name) for run in runs]).astype(np.float64)
        with np.errstate(divide="ignore"):
            logs = np.log2(values)
        return np.exp2(logs.reshape(len(widths), seeds, *logs.shape[1:]).mean(1))

    return CoordinateCheck(
        means("sizes"),
        means("changes"),
        widths=widths,
        paths=first.paths,
        seeds=seeds,
        flat=flat,
    )


def _check_coordinate_arguments(
    model_fn: Any,
    widths: Any,
    *,
    optimizer: Any,
    learning_rate: Any,
    steps: Any,
    seeds: Any,
    flat: Any,
    init_fn: Any,
    tune: Any,
) -> None:
    """Raises where an argument of `coordinate_check` is wrong."""
    if is_model_type(type(model_fn)) or not callable(model_fn):
        raise TypeError(
            f"model_fn is a {type(model_fn).__name__}, expected a function of the "
            "width: lambda width: MyModel(width)"
        )
    check_optimizer_factory(optimizer)
    sizes = [as_integer(w) for w in widths] if isinstance(widths, tuple) else []
    if len(set(sizes)) < 2 or not all(n is not None and n > 0 for n in sizes):
        raise ValueError(f"widths={widths!r}, expected two or more positive integers")
    for name, value, least in (("steps", steps, 0), ("seeds", seeds, 1)):
        integer = as_integer(value)
        if integer is None or integer < least:
            raise ValueError(f"{name}={value!r}, expected an integer >= {least}")
    if not (callable(learning_rate) or (as_number(learning_rate) or 0) > 0):
        raise ValueError(f"learning_rate={learning_rate!r}, expected a positive number")
    if not (as_number(flat) or 0) >= 0 or as_number(flat) is None:
        raise ValueError(f"flat={flat!r}, expected an exponent >= 0")
    if init_fn is not None and not callable(init_fn):
        raise TypeError(
            f"init_fn is {describe(init_fn)}, expected a function (model, key, inputs) "
            "that returns variables, or None"
        )
    if not isinstance(tune, bool | Mapping) and not callable(tune):
        raise TypeError(
            f"tune is {describe(tune)}, expected True, False, keywords of ei.tune, or "
            "a function of the width that returns either"
        )


def _raise_other_units(first: CoordinateRun, other: CoordinateRun) -> NoReturn:
    """Raises an error that names the units in which two widths differ."""
    differ = difference(first.paths, other.paths)
    raise ValueError(
        f"the models of width {first.width} and {other.width} have different units, of "
        f"the second: {differ or 'another order'}; model_fn must change widths alone"
    )
