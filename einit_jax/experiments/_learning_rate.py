"""`find_learning_rate`: short trainings at a grid of rates, and the best of these."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, SupportsIndex

import jax
import numpy as np
import optax
from jaxtyping import Float, PyTree

from ..binding import Model, any_library, setup, unscaled
from ..core import begun_again, check_not_zero, optimizer_at_one, unboxed, usual_rules
from ..reporting import Printable, power_of_two, rate_figure
from ..units import UPDATE, from_tree
from ._strategies import StartPoint
from ._training_runs import check_training_arguments, seed_keys, tail_of, training_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RATES_SEARCHED = tuple(2.0**e for e in range(-16, 4))
"""The learning rates by default."""
INFINITE = float("inf")
FLAT = 1.25
"""Losses up to so many times the least one are as good as it."""
GAINED = 0.5
"""The share of the best rate's gain from which on a rate learns."""


@dataclass(frozen=True, repr=False)
class LearningRates(Printable):
    """What a model learns at each learning rate, and the rate to train at.

    | attribute | meaning |
    |---|---|
    | `rates` | the learning rates, ascending |
    | `losses` | `float64[seeds, rates, steps]`: before each step; infinite once diverged |
    | `final` | `float64[seeds, rates]`: mean over the last `tail` steps |
    | `best` | the rate to train at |
    | `stable` | the largest rate that still learns |
    | `gradient_steps` | what it cost: steps of training, of all rates and seeds |
    """  # noqa: E501

    rates: tuple[float, ...]
    losses: Float[np.ndarray, "seeds rates steps"]
    tuned: bool
    """Whether rates are in units of `scale_updates`."""

    HEADS: ClassVar[Mapping[str, str]] = {
        name: name.replace("_", " ") for name in ("learning_rate", "loss", "spread")
    }

    @property
    def tail(self) -> int:
        """The number of last steps over which the final loss is the mean."""
        return tail_of(self.losses.shape[-1])

    @property
    def final(self) -> Float[np.ndarray, "seeds rates"]:
        """The loss at the end of each run."""
        return self.losses[..., -self.tail :].mean(-1)

    @property
    def gradient_steps(self) -> int:
        """The steps that were run: those of runs that diverged end early."""
        return int(np.isfinite(self.losses).sum())

    @cached_property
    def _least(self) -> int:
        """The place of the least final loss; raises where no loss became less."""
        final = self.final.mean(0)
        least = int(final.argmin())
        if not final[least] < self._start:
            raise ValueError(
                "the model learns at none of these rates: its loss is "
                f"{self._start:.4g} before training and {final[least]:.4g} after it; "
                "pass smaller learning_rates, more steps, or tuned scales"
            )
        return least

    @property
    def _start(self) -> float:
        return float(self.losses[:, :, 0].mean(0).min())

    @property
    def stable(self) -> float:
        """The largest rate that still learns: at it, and at all rates from the best
        one up to it, the loss falls by at least half of what it falls at the best.
        """
        return self.rates[self._edge]

    @cached_property
    def _edge(self) -> int:
        final, least = self.final.mean(0), self._least
        enough = self._start - GAINED * (self._start - final[least])
        learns = final[least:] <= enough
        return least + (len(learns) if learns.all() else int(learns.argmin())) - 1

    @property
    def best(self) -> float:
        """The rate to train at.

        Among the rates whose loss is within 1.25 times the least one: the largest that
        is an octave below `stable`; the one of the least loss, where none is.

        Raises:
            ValueError: at no rate the loss became less.
        """
        final, least = self.final.mean(0), self._least
        safe = [
            rate
            for rate, loss in zip(self.rates, final, strict=True)
            if loss <= FLAT * final[least] and rate <= self.stable / 2
        ]
        return max(safe, default=self.rates[least])

    def rows(self) -> list[dict[str, Any]]:
        """One dict per rate: mean and standard deviation of its final losses."""
        columns = zip(self.rates, self.final.T, strict=True)
        return [
            {
                "learning_rate": rate,
                "loss": float(final.mean()),
                "spread": float(final.std()) if np.isfinite(final).all() else INFINITE,
            }
            for rate, final in columns
        ]

    def plot(self) -> "Figure":
        """The curve with its spread over seeds; the best rate, and the stable one.

        Raises:
            ImportError: matplotlib is not installed.
        """
        marks = {"best": self.best, "stable": self.stable}
        return rate_figure(self.rates, self.final, marks, steps=self.losses.shape[-1])

    def summary(self) -> list[str]:
        """The best rate, and how far it is from the edge."""
        try:
            best, stable = map(power_of_two, (self.best, self.stable))
        except ValueError as error:
            return [str(error)]
        units = ", times scale_updates" if self.tuned else ""
        lines = [f"best: {best}{units}; the largest that learns: {stable}"]
        if self._least in (0, len(self.rates) - 1) and len(self.rates) > 1:
            where = "smaller" if self._least == 0 else "larger"
            lines.append(f"the least loss is at an end: try {where} learning_rates")
        return lines

    def _remarks(self) -> list[str]:
        """What losses are, and what it cost to find them."""
        seeds, _, steps = self.losses.shape
        return [
            f"loss: mean over the last {self.tail} of {steps} step(s) and {seeds} "
            f"seed(s); {self._start:.4g} before training",
            f"cost: {self.gradient_steps} gradient steps",
        ]

    def _cell(self, row: Mapping[str, Any], name: str) -> str:
        rate = name == "learning_rate"
        return power_of_two(row[name]) if rate else super()._cell(row, name)


@any_library()
@usual_rules()
def find_learning_rate(
    model: Model,
    params: PyTree,
    input_fn: Any,
    loss_fn: Callable,
    *,
    optimizer: Callable[[Any], optax.GradientTransformation] = optax.adam,
    scales: Mapping[str, Any] | None = None,
    train: Any = None,
    steps: SupportsIndex = 100,
    learning_rates: Sequence[float] = RATES_SEARCHED,
    seeds: SupportsIndex = 1,
    key: jax.Array | None = None,
    batch_size: SupportsIndex | None = None,
    method: str | Callable | None = None,
    rngs: Sequence[str] | Mapping[str, jax.Array] = (),
    collections: Mapping[str, Any] | None = None,
    axis_name: str | None = None,
    progress: Callable[[int, int], Any] | None = None,
) -> LearningRates:
    r"""The learning rate at which a model trains best, found by training it.

    From the same parameters and on the same batches the model takes some steps at every
    rate of a grid, tuned or as it is. The rate to train at is the largest of those that
    learn as well as the best one (final loss within a quarter), an octave below the
    edge beyond which training fails. The known range test (`lr_find`) raises the rate
    within one short run, step by step, and reads a rate off where the loss falls
    fastest: cheaper, but what it sees at a rate is what earlier rates left. Here each
    rate has a training of its own, so that one which diverges late is told apart.

    It costs `rates x steps x seeds` gradient steps at most, 2000 by default; runs that
    diverge end early. All rates share one compiled step and each batch, and take turns;
    their parameters and optimizer states are in memory together.

    Args:
        model, params, input_fn, loss_fn, key, batch_size, method, rngs, collections,
            axis_name: as in `tune`: `method`, `rngs` and `collections` go to
            `model.apply`, `axis_name` is the mapped axis it expects, `batch_size` the
            number of examples that `input_fn` is asked for; `input_fn(key)` draws a
            batch, or is a loader or a batch; `loss_fn(outputs, labels)` gets labels of
            pairs (x, y) and of `Batch`.
        optimizer: a function of the learning rate (`optax.adam`, or a `partial` of
            `optax.sgd`); it gets a traced rate.
        scales: of `tune`: the scaled model is trained, with `scale_updates` where they
            have `update` factors. None: the model as it is.
        train: what to train on, if not on what `input_fn` gives: a function of a key
            or a loader, of batches with labels, or with keywords of `loss_fn`: `return
            images, {"labels": labels}`. A function gets a new key at each step, a
            loader's batches come in turn, pass after pass. A concrete batch of
            `input_fn` is trained on as a whole.
        steps: of training, at least 1.
        learning_rates: positive numbers, a run for each; powers of two by default, from
            2^-16 to 2^3.
        seeds: of batches; losses are means over them.
        progress: called as `progress(done, of)` after every step of training.

    Returns:
        `LearningRates`: `best`, `stable`, the curve as `rows()` and `plot()`; `str()`
        is a table.

    Raises:
        TypeError, ValueError: wrong arguments, as in `tune`, before anything is
            compiled.
        ValueError: from `best`, `stable` and `plot()`, where no rate learns.
        ImportError: from `plot()`, where matplotlib is not installed.

    Example:
        >>> import flax.linen as nn, jax, jax.numpy as jnp, einit_jax as ei
        >>> model = nn.Sequential([nn.Dense(32), jnp.tanh, nn.Dense(4)])
        >>> x = jax.random.normal(jax.random.key(1), (64, 8))
        >>> params = model.init(jax.random.key(0), x)["params"]
        >>> loss = lambda y: jnp.mean(jnp.square(y - jnp.sin(x[:, :4])))
        >>> rates = [2.0**e for e in (-12, -8, -4, 0, 4)]
        >>> found = ei.find_learning_rate(
        ...     model, params, x, loss, steps=20, learning_rates=rates
        ... )
        >>> found.best
        0.0625

    Source: L. N. Smith, arXiv 1506.01186, for the range test; fast.ai's `lr_find`. The
    grid and the rule are ours.
    """
    model, learning_rates = unscaled(model), tuple(learning_rates)
    check_training_arguments(
        train=train, steps=steps, learning_rates=learning_rates, optimizer=optimizer,
        seeds=seeds,
    )  # fmt: skip
    if progress is not None and not callable(progress):
        raise TypeError(
            f"progress is {progress!r}, expected a function of the steps done and of "
            "all steps"
        )
    optimizer_at_one(optimizer)
    input_fn, train = begun_again(input_fn), begun_again(train)
    bound = setup(
        model,
        params,
        input_fn,
        loss_fn,
        key=key,
        batch_size=batch_size,
        method=method,
        rngs=rngs,
        collections=collections,
        axis_name=axis_name,
    )
    check_not_zero(bound.arrays.batches)
    factors = {} if scales is None else from_tree(scales, unboxed(params))
    rates = tuple(sorted(map(float, learning_rates)))
    training = training_of(
        bound,
        input_fn=input_fn,
        train=train,
        optimizer=optimizer,
        rates=rates,
        steps=steps,
        rngs=rngs,
        batch_size=batch_size,
    )
    keys = seed_keys(bound.arrays.key, seeds)
    of = training.steps * len(keys)
    done = itertools.count(1)
    tick = lambda: progress(next(done), of) if progress else None
    start = StartPoint(params, scales)
    losses = np.stack([training.losses(start, k, tick) for k in keys])
    tuned = any(UPDATE in own for own in factors.values())
    return LearningRates(rates, losses, tuned)
