"""Each strategy in turn: timed, measured and trained."""

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.typing import ArrayLike
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress, TimeElapsedColumn

from ..core import Draw, ModelArgs, Params, plain, unboxed
from ..measurement import FLAGS, Measurement, measure
from ..reporting import format_number, power_of_two
from ._comparison import Comparison, Trial
from ._strategies import StartPoint, start_point
from ._timing import CallCost, median_seconds, time_against
from ._training_runs import TrainingSetup, plain_gradient, tail_of

FAILURES = (FloatingPointError, ValueError, NotImplementedError)
"""What a strategy raises for a model that it cannot initialize."""


class StrategyArguments(NamedTuple):
    """What each strategy is called with, besides a key and options."""

    model: Any
    params: Params
    input_fn: Any
    loss_fn: Callable


@dataclass(frozen=True)
class Comparer:
    """What is the same for all strategies, and how each becomes a row."""

    arguments: StrategyArguments
    options: Mapping[str, Any]
    """Keywords of `measure` that strategies may take, too."""
    optimizer: Callable
    """A function of the learning rate, which is 1 where pillars are measured."""
    training: TrainingSetup
    batch: Draw
    """For the gradient steps by which costs are counted."""

    def compare(
        self,
        strategies: Mapping[str, Callable | None],
        keys: Sequence[jax.Array],
        progress: bool,
    ) -> Comparison:
        """All strategies, one after the other, with a key for each seed."""
        steps, seeds = self.training.steps, len(keys)
        plain_start = StartPoint(self.arguments.params)
        with _progress(progress, tuple(strategies), seeds * steps) as shown:
            probes = self._measure(plain_start, keys[0]).probed_paths()
            step_seconds = median_seconds(self._step)
            trials = []
            for name, strategy in strategies.items():
                shown.begin(name)
                trial = self._trial(
                    name,
                    strategy,
                    keys=keys,
                    probes=frozenset(probes),
                    tick=shown.tick,
                )
                trials.append(trial)
                shown.end(name, self._result_of(trial))
        return Comparison(
            trials=tuple(trials),
            learning_rates=self.training.rates,
            steps=steps,
            tail=tail_of(steps),
            seeds=seeds,
            step_seconds=step_seconds,
            probes=tuple(probes),
        )

    def _result_of(self, trial: Trial) -> str:
        """What came of a strategy, in a few words."""
        best = trial.best()
        if best is None:
            return trial.error or "diverged at every rate"
        loss = format_number(float(trial.losses[:, best].mean()))
        return f"loss {loss} at rate {power_of_two(self.training.rates[best])}"

    def _step(self) -> Any:
        """The gradient step of the plain model."""
        params = plain(unboxed(self.arguments.params))
        args = ModelArgs(params, self.training.collections, self.batch)
        return plain_gradient(args, None, objective=self.training.objective)

    def _trial(
        self,
        name: str,
        strategy: Callable | None,
        *,
        keys: Sequence[jax.Array],
        probes: frozenset[str],
        tick: Callable[[], Any],
    ) -> Trial:
        """One strategy, all seeds; its error where it cannot do this model."""
        try:
            starts, cost = self._starts(name, strategy, keys)
        except FAILURES as error:
            first_line, *_ = str(error).splitlines() or [""]
            why = f"{type(error).__name__}: {first_line}"
            return Trial(name, np.empty((0, 0)), error=why)
        pairs = list(zip(starts, keys, strict=True))
        distances = [
            pillar_distances(self._measure_own_zeros(start, key, probes))
            for start, key in pairs
        ]
        largest = {n: max(each[n] for each in distances) for n in distances[0]}
        losses = np.stack([self.training.losses(*pair, tick) for pair in pairs])
        return Trial(
            name,
            losses[..., -tail_of(losses.shape[-1]) :].mean(-1),
            first_seconds=cost.first,
            seconds=cost.seconds,
            gradient_steps=cost.steps,
            start_loss=float(losses[:, 0, 0].mean()),
            **largest,  # pyright: ignore[reportArgumentType]
        )

    def _starts(
        self, name: str, strategy: Callable | None, keys: Sequence[jax.Array]
    ) -> tuple[list[StartPoint], CallCost]:
        """Where training starts, for each seed, and what the first start costs."""
        params = self.arguments.params
        if strategy is None:
            return [StartPoint(params)] * len(keys), CallCost(0.0, 0.0, 0.0)
        calls = [partial(strategy, *self.arguments, key=key) for key in keys]
        first, cost = time_against(calls[0], self._step)
        returned = [first, *(call() for call in calls[1:])]
        return [start_point(name, each, params) for each in returned], cost

    def _measure_own_zeros(
        self, start: StartPoint, key: jax.Array, probes: frozenset[str]
    ) -> Measurement:
        """The pillars; zeros that the strategy itself brought in are not probed."""
        measurement = self._measure(start, key)
        if probes.issuperset(measurement.probed_paths()):
            return measurement
        return self._measure(start, key, probe=False)

    def _measure(
        self, start: StartPoint, key: jax.Array, probe: bool = True
    ) -> Measurement:
        """The pillars at a start."""
        model, _, input_fn, loss_fn = self.arguments
        return measure(
            model,
            start.params,
            input_fn,
            loss_fn,
            scales=start.scales,
            key=key,
            optimizer=self.optimizer,
            probe=probe,
            **self.options,
        )


def pillar_distances(measurement: Measurement) -> dict[str, float]:
    """How far the worst unit is from 1 in each pillar, in octaves; see `Trial`."""
    reached = np.asarray(measurement.flag) != FLAGS.index("unreached")
    floats = np.array([row.floats for row in measurement.rows_of])
    own = np.asarray(measurement.update_rms, np.float64)[reached]
    largest = np.max(np.asarray(measurement.total_update_rms, np.float64))
    with np.errstate(divide="ignore", invalid="ignore"):
        uneven = float(np.log2(own.max() / own.min()))
    return {
        "activations": _octaves(measurement.output_rms, reached),
        "gradients": _octaves(measurement.input_grad_rms, reached & floats),
        "updates": _octaves(largest, np.True_),
        "uneven": float("inf") if np.isnan(uneven) else uneven,
    }


def _octaves(values: ArrayLike, counted: np.ndarray | np.bool_) -> float:
    """The largest |log2| of what counts; infinite where something is zero or is not
    finite, NaN where nothing counts."""
    with np.errstate(divide="ignore", invalid="ignore"):
        octaves = np.abs(np.log2(np.asarray(values, np.float64)[counted]))
    octaves = np.where(np.isnan(octaves), np.inf, octaves)
    return float(octaves.max()) if octaves.size else float("nan")


class _Shown:
    """What is under way, on standard error: a bar, and a line when a strategy ends."""

    def __init__(
        self, bars: Progress, names: Sequence[str], *, ticks: int, has_bars: bool
    ) -> None:
        """`ticks` are those of one strategy; without bars lines are printed plainly."""
        self.bars, self.names, self.ticks, self.has_bars = bars, names, ticks, has_bars
        self.bar = bars.add_task("the plain model", total=len(names) * ticks)
        self.start, self.ended = time.monotonic(), 0

    def begin(self, name: str) -> None:
        """A strategy's turn."""
        done = self.ended * self.ticks
        self.bars.update(self.bar, description=escape(name), completed=done)

    def tick(self) -> None:
        """A step of training."""
        self.bars.advance(self.bar)

    def end(self, name: str, result: str) -> None:
        """The end of a turn: its result, and how long the others may take."""
        self.ended += 1
        seconds = time.monotonic() - self.start
        left = len(self.names) - self.ended
        times = f"{seconds:.0f} s"
        if left:
            times += f", about {seconds * left / self.ended:.0f} s left"
        line = f"{self.ended}/{len(self.names)} {name}: {result} ({times})"
        if self.has_bars:
            self.bars.console.print(line, markup=False, highlight=False, soft_wrap=True)
        elif sys.stderr is not None:
            with suppress(OSError):  # nobody reads it
                print(line, file=sys.stderr, flush=True)


class _Silent(_Shown):
    """Shows nothing."""

    def end(self, name: str, result: str) -> None:
        self.ended += 1


@contextmanager
def _progress(wanted: bool, names: Sequence[str], ticks: int) -> Iterator[_Shown]:
    """Bars where there is a terminal or a notebook to show them, lines in any case."""
    console = Console(stderr=True)
    is_terminal = console.is_terminal and not console.is_dumb_terminal
    has_bars = is_terminal or console.is_jupyter
    with Progress(
        *Progress.get_default_columns(),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        # what is printed goes round the bars only where both would meet
        redirect_stdout=Console().is_terminal,
        disable=not (wanted and has_bars),
    ) as bars:
        shown = _Shown if wanted else _Silent
        yield shown(bars, names, ticks=ticks, has_bars=has_bars)
