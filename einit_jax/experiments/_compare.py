"""`compare`: ways to initialize a model, side by side on that model."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import jax
import numpy as np
import optax
from flax import linen as nn
from jaxtyping import PyTree
from rich.progress import Progress

from ..core import (
    Batch,
    as_static,
    check_optimizer_factory,
    draw_batches,
    plain,
    static_value,
    unboxed,
)
from ..linen import Scaled, make_objective, trace_model
from ..measurement import FLAGS, Measurement, measure
from ._comparison import Comparison, Trial
from ._strategies import (
    StartPoint,
    Strategy,
    default_strategies,
    resolve_strategies,
    start_point,
)
from ._timing import CallCost, median_seconds, time_against
from ._training_runs import TrainingSetup, plain_gradient

RATES = tuple(2.0**e for e in range(-12, 3))


TAIL_SHARE = 10
"""The loss is the mean over the last steps, one out of so many."""


FAILURES = (FloatingPointError, ValueError, NotImplementedError)
"""What a strategy raises of a model that it cannot initialize."""


def compare(
    model: nn.Module | Scaled,
    params: PyTree,
    input_fn: Any,
    loss_fn: Callable,
    *,
    strategies: Mapping[str, Strategy] | None = None,
    train: Callable[..., Any] | None = None,
    steps: int = 100,
    learning_rates: Sequence[float] = RATES,
    optimizer: Callable[[Any], optax.GradientTransformation] = optax.adam,
    seeds: int = 1,
    key: jax.Array | None = None,
    batch_size: int | None = None,
    method: str | Callable | None = None,
    rngs: Sequence[str] | Mapping[str, jax.Array] = (),
    collections: Mapping[str, Any] | None = None,
    axis_name: str | None = None,
    progress: bool = False,
) -> Comparison:
    r"""Ways to initialize a model, side by side: cost, pillars, and what it learns.

    For each strategy: what it costs, in seconds and in gradient steps of the same model
    that take turns with it; how far the worst unit is from an rms of 1 in each pillar,
    by `measure`; and the loss after some steps of training, at the best learning rate
    of a grid. A strategy is

    - a function `(model, params, input_fn, loss_fn, *, key, ...)` that returns
      parameters: it receives `key`, and of `batch_size`, `method`, `rngs`,
      `collections` and `axis_name` those that are given here;
    - `tune`, or a `functools.partial` of it: the model is measured and trained with the
      scales that it returns, found for `optimizer` at learning rate 1 where it is told
      no other one, and with `scale_updates`;
    - a function that returns `{"params": ..., "scales": ...}`: both at once;
    - the name of a preset;
    - None: the parameters as they are.

    All are trained on the same batches. What the model writes to mutable collections is
    thrown away.

    Args:
        model, params, input_fn, loss_fn, batch_size, method, rngs, collections,
            axis_name: as in `tune`; strategies are given them, and the pillars are
            measured with them.
        strategies: by the names that the table gives them: functions (model, params,
            input_fn, loss_fn, *, key, ...) that return parameters, such as `ei.lsuv`;
            `ei.tune`; presets of `initialize` by name; None for params as they are.
            By default these, "pytorch", "keras", "he_normal", `lsuv`, `autoinit`,
            `tune`, and `unit_params` tuned.
        train: `train(key)` draws a batch to train on and the keywords of `loss_fn` that
            belong to it: `return images, {"labels": labels}`, for a loss such as
            `functools.partial(cross_entropy, labels=...)`. It is called outside of jit,
            once a step. None: `input_fn` and `loss_fn` with a new key at each step; a
            concrete batch is trained on as a whole.
        steps: of training, at least 1.
        learning_rates: positive numbers; a run for each. The models of all rates are in
            memory together.
        optimizer: a function of the learning rate (`optax.adam`, or a `partial` of
            `optax.sgd`); the rate that it gets is traced.
        seeds: of strategies and batches; losses are means over them.
        key: a random key; default `jax.random.key(0)`. The first seed's own.
        progress: whether a progress bar is shown.

    Returns:
        A `Comparison`: a row a strategy, in the order given. `str()` is a table,
        `rows()` a list of dicts, `plot()` the picture. A strategy that cannot do this
        model (FloatingPointError, ValueError, NotImplementedError) has its error in the
        place of numbers.

    Raises:
        TypeError, ValueError: wrong arguments, as in `tune`, before anything is
            compiled; of a strategy that returns something else, when it does.
        ImportError: from `plot()`, where matplotlib is not installed.

    Example:
        >>> import flax.linen as nn, jax, jax.numpy as jnp, einit_jax as ei
        >>> model = nn.Sequential([nn.Dense(32), jnp.tanh, nn.Dense(4)])
        >>> x = jax.random.normal(jax.random.key(1), (64, 8))
        >>> params = model.init(jax.random.key(0), x)["params"]
        >>> loss = lambda y: jnp.mean(jnp.square(y - jnp.sin(x[:, :4])))
        >>> def halved(model, params, input_fn, loss_fn, *, key):
        ...     return jax.tree.map(lambda w: w / 2, params)
        >>> table = ei.compare(
        ...     model, params, x, loss, steps=5, learning_rates=(2**-6, 2**-2),
        ...     strategies={"Flax": None, "halved": halved, "tuned": ei.tune},
        ... )
        >>> [f"{row['strategy']}: {row['activations']:.1f}" for row in table.rows()]
        ['Flax: 0.5', 'halved: 2.1', 'tuned: 0.0']

    Source: ours. Each strategy at its own best learning rate: at a common one the table
    would tell which of them that rate suits.
    """
    model = model.model if isinstance(model, Scaled) else model
    task = make_objective(model, loss_fn, method, axis_name)
    _check_compare_arguments(train, steps, learning_rates, optimizer, seeds)
    unit = _optimizer_at_one(as_static(optimizer))
    shared = {"batch_size": batch_size, "method": method, "rngs": rngs}
    shared |= {"collections": collections, "axis_name": axis_name}
    options = {n: v for n, v in shared.items() if v is not None and v != ()}
    todo = resolve_strategies(
        default_strategies(unit) if strategies is None else strategies, options, unit
    )
    key = jax.random.key(0) if key is None else key
    (batch,) = draw_batches(input_fn, key, rngs, batch_size, 1)
    collections = dict(collections or {})
    trace_model(task, params, collections, batch)
    rates = tuple(map(float, learning_rates))
    draw = (train or input_fn, train is not None, rngs, batch_size)
    how = (as_static(optimizer), rates, int(steps), collections)
    learning = TrainingSetup(task, *how, *draw)
    learning.check(params, key)
    case = (model, params, input_fn, loss_fn)
    bench = _Comparer(case, options, unit, learning, batch)
    keys = [key, *(jax.random.fold_in(key, 2**20 + i) for i in range(1, seeds))]
    return bench.comparison(todo, keys, progress)


@lru_cache(maxsize=32)
def _optimizer_at_one(optimizer: Any) -> optax.GradientTransformation:
    """The optimizer at learning rate 1.

    The same one at each call: `tune` and `measure` compile anew for another one.
    """
    return static_value(optimizer)(1.0)


@dataclass(frozen=True)
class _Comparer:
    """What is the same for all strategies."""

    case: tuple
    options: Mapping[str, Any]
    unit: optax.GradientTransformation
    learning: TrainingSetup
    batch: Batch

    def comparison(
        self, todo: Mapping[str, Callable | None], keys: list, progress: bool
    ) -> Comparison:
        """All strategies, one after the other."""
        steps, seeds = self.learning.steps, len(keys)
        probes = self._measured(StartPoint(self.case[1]), keys[0]).probed_paths()
        once = median_seconds(self._step)
        with Progress(transient=True, disable=not progress) as bar:
            task = bar.add_task("compare", total=len(todo) * seeds * steps)
            trials = []
            for i, (name, strategy) in enumerate(todo.items()):
                bar.update(task, description=name, completed=i * seeds * steps)
                given = (name, strategy, keys, frozenset(probes))
                trials.append(self._trial(*given, partial(bar.advance, task)))
        rates, tail = self.learning.rates, _tail(steps)
        shown = (steps, tail, seeds, once, tuple(probes))
        return Comparison(tuple(trials), rates, *shown)

    def _step(self) -> Any:
        params = plain(unboxed(self.case[1]))
        given = (params, None, self.learning.collections, self.batch)
        return plain_gradient(self.learning.task, *given)

    def _trial(
        self,
        name: str,
        strategy: Callable | None,
        keys: list,
        probes: frozenset[str],
        tick: Callable[[], Any],
    ) -> Trial:
        """One strategy, all seeds."""
        try:
            starts, spent = self._starts(name, strategy, keys)
        except FAILURES as error:
            first, *_ = str(error).splitlines() or [""]
            why = f"{type(error).__name__}: {first}"
            return Trial(name, np.empty((0, 0)), error=why)
        pairs = list(zip(starts, keys, strict=True))
        far = [
            _pillar_distances(self._as_meant(start, key, probes))
            for start, key in pairs
        ]
        worst = {pillar: max(each[pillar] for each in far) for pillar in far[0]}
        runs = np.stack([self.learning.losses(*pair, tick) for pair in pairs])
        return Trial(
            name,
            runs[..., -_tail(runs.shape[-1]) :].mean(-1),
            first_seconds=spent.first,
            seconds=spent.seconds,
            gradient_steps=spent.steps,
            start_loss=float(runs[:, 0, 0].mean()),
            **worst,  # pyright: ignore[reportArgumentType]
        )

    def _starts(
        self, name: str, strategy: Callable | None, keys: list
    ) -> tuple[list[StartPoint], CallCost]:
        """Where training starts, for each seed, and what the first one costs."""
        params = self.case[1]
        if strategy is None:
            return [StartPoint(params)] * len(keys), CallCost(0.0, 0.0, 0.0)
        calls = [partial(strategy, *self.case, key=key) for key in keys]
        made, spent = time_against(calls[0], self._step)
        all_made = [made, *(call() for call in calls[1:])]
        return [start_point(name, each, params) for each in all_made], spent

    def _as_meant(
        self, start: StartPoint, key: jax.Array, probes: frozenset[str]
    ) -> Measurement:
        """The pillars; zeros that the strategy itself brought in are not probed."""
        found = self._measured(start, key)
        if probes.issuperset(found.probed_paths()):
            return found
        return self._measured(start, key, probe=False)

    def _measured(
        self, start: StartPoint, key: jax.Array, probe: bool = True
    ) -> Measurement:
        model, _, input_fn, loss_fn = self.case
        how = {"scales": start.scales, "key": key, "optimizer": self.unit}
        given = (model, start.params, input_fn, loss_fn)
        return measure(*given, probe=probe, **how, **self.options)


def _tail(steps: int) -> int:
    return -(-steps // TAIL_SHARE)


def _pillar_distances(table: Measurement) -> dict[str, float]:
    """How far each pillar is from where it is meant to be, in octaves."""
    worst = {name: far for name, (_, far) in table.worst().items()}
    reached = np.asarray(table.flag) != FLAGS.index("unreached")
    own = np.asarray(table.update_rms, np.float64)[reached]
    largest = np.max(np.asarray(table.total_update_rms, np.float64))
    with np.errstate(divide="ignore", invalid="ignore"):
        updates = float(np.abs(np.log2(largest)))
        uneven = float(np.log2(own.max() / own.min()))
    return {
        "activations": worst["output_rms"],
        "gradients": worst["input_grad_rms"],
        "updates": float("inf") if np.isnan(updates) else updates,
        "uneven": float("inf") if np.isnan(uneven) else uneven,
    }


def _check_compare_arguments(
    train: Any, steps: Any, rates: Any, optimizer: Any, seeds: Any
) -> None:
    if train is not None and not callable(train):
        raise TypeError(
            f"train is a {type(train).__name__}, expected a function of a key that "
            "returns inputs and a dict of keywords for loss_fn"
        )
    check_optimizer_factory(optimizer)
    whole = lambda x: isinstance(x, int | np.integer) and not isinstance(x, bool)
    for name, value in (("steps", steps), ("seeds", seeds)):
        if not whole(value) or value < 1:
            raise ValueError(f"{name}={value!r}, expected an integer >= 1")
    numbers = np.asarray(rates, np.float64) if np.ndim(rates) == 1 else np.empty(0)
    if not numbers.size or not np.all(np.isfinite(numbers) & (numbers > 0)):
        raise ValueError(
            f"learning_rates={rates!r}, expected positive numbers: (2**-6, 2**-4, ...)"
        )
