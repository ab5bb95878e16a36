"""`compare`: ways to initialize a model, side by side on that model."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, SupportsIndex

import jax
import optax
from jaxtyping import PyTree

from ..binding import Model, any_library, bind, setup, unscaled
from ..core import (
    check_not_zero,
    optimizer_at_one,
    replayed,
    usual_rules,
)
from ._comparer import Comparer, StrategyArguments
from ._comparison import Comparison
from ._strategies import Strategy, default_strategies, resolve_strategies
from ._training_runs import RATES, check_training_arguments, seed_keys, training_of


@any_library()
@usual_rules()
def compare(
    model: Model,
    params: PyTree,
    input_fn: Any,
    loss_fn: Callable,
    *,
    strategies: Mapping[str, Strategy] | None = None,
    train: Any = None,
    steps: SupportsIndex = 100,
    learning_rates: Sequence[float] = RATES,
    optimizer: Callable[[Any], optax.GradientTransformation] = optax.adam,
    seeds: SupportsIndex = 1,
    key: jax.Array | None = None,
    batch_size: SupportsIndex | None = None,
    method: str | Callable | None = None,
    rngs: Sequence[str] | Mapping[str, jax.Array] = (),
    collections: Mapping[str, Any] | None = None,
    axis_name: str | None = None,
    progress: bool = False,
) -> Comparison:
    r"""Compares ways to initialize a model: cost, pillars, and what the model learns.

    For each strategy: its cost, in seconds and in gradient steps of the same model that
    take turns with it; how far the worst unit is from an rms of 1 in each pillar, by
    `measure`; and the loss after some steps of training, at the best learning rate of a
    grid. A strategy is

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
    dropped.

    Args:
        model, params, input_fn, loss_fn, batch_size, method, rngs, collections,
            axis_name: as in `tune`: `method`, `rngs` and `collections` go to
            `model.apply`, `axis_name` is the mapped axis it expects, `batch_size` the
            number of examples that `input_fn` is asked for; `input_fn(key)` draws a
            batch, or is a loader or a batch; `loss_fn(outputs, labels)` gets labels of
            pairs (x, y) and of `Batch`. Strategies are given them, and the pillars are
            measured with them.
        strategies: by the names that the table gives them: functions (model, params,
            input_fn, loss_fn, *, key, ...) that return parameters, such as `ei.lsuv`;
            `ei.tune`; presets of `initialize` by name; None for params as they are.
            Default: params as they are, "pytorch", "keras", "he_normal", `lsuv`,
            `autoinit`, `tune`, and `looks_linear` and `unit_params` tuned.
        train: what to train on, if not on what `input_fn` gives: a function of a key
            or a loader, of batches with labels, or with keywords of `loss_fn`: `return
            images, {"labels": labels}`, for a loss such as
            `functools.partial(cross_entropy, labels=...)`. A function gets a new key at
            each step. A loader's batches come in turn, pass after pass, and are kept in
            memory, so that all strategies see the same ones. A concrete batch of
            `input_fn` is trained on as a whole.
        steps: of training, at least 1.
        learning_rates: positive numbers, a run for each. The models of all rates are in
            memory together.
        optimizer: a function of the learning rate (`optax.adam`, or a `partial` of
            `optax.sgd`); it gets a traced rate.
        seeds: of strategies and batches; losses are means over them.
        key: a random key; default `jax.random.key(0)`. The first seed's own.
        progress: whether standard error shows how far it is: a line when a strategy is
            done, with its loss and about how long the others take; on a terminal and in
            a notebook a bar, too.

    Returns:
        A `Comparison`: a row per strategy, in the order given. `str()` is a table,
        `rows()` a list of dicts, `plot()` the figure. A strategy that cannot initialize
        this model (FloatingPointError, ValueError, NotImplementedError) has its error
        in the place of numbers.

    Raises:
        TypeError, ValueError: wrong arguments, as in `tune`, before anything is
            compiled; a strategy that returns something else, after it has run.
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
    model = unscaled(model)
    bind(model, loss_fn, method, axis_name)
    if isinstance(learning_rates, Iterable):
        learning_rates = tuple(learning_rates)
    check_training_arguments(
        train=train, steps=steps, learning_rates=learning_rates, optimizer=optimizer,
        seeds=seeds,
    )  # fmt: skip
    optimizer_at_one(optimizer)
    shared = {"batch_size": batch_size, "method": method, "rngs": rngs}
    shared |= {"collections": collections, "axis_name": axis_name}
    options = {n: v for n, v in shared.items() if v is not None and v != ()}
    if strategies is None:
        strategies = default_strategies(optimizer)
    # every strategy sees the same batches, of a loader that shuffles, too
    input_fn, train = replayed(input_fn), replayed(train)
    resolved = resolve_strategies(strategies, options, optimizer)
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
    args, key = bound.arrays.args, bound.arrays.key
    training = training_of(
        bound,
        input_fn=input_fn,
        train=train,
        optimizer=optimizer,
        rates=learning_rates,
        steps=steps,
        rngs=rngs,
        batch_size=batch_size,
    )
    comparer = Comparer(
        arguments=StrategyArguments(model, params, input_fn, loss_fn),
        options=options,
        optimizer=optimizer,
        training=training,
        batch=args.batch,
    )
    keys = seed_keys(key, seeds)
    return comparer.compare(resolved, keys, progress)
