"""Strategies side by side: the same numbers as by hand, and what fails is said."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import einit_jax as ei
from einit_jax.experiments import OCTAVE_COLUMNS, default_strategies
from einit_jax.experiments._training_runs import _step_run
from tests.support.compared import (
    KEY,
    LOSS,
    MODEL,
    MOMENTUM,
    PARAMS,
    RATES,
    STEPS,
    X,
    halved,
    loss_of,
)


def noisy(model, params, input_fn, loss_fn, *, key, **options):
    """One that draws."""
    keys = dict(zip(params, jax.random.split(key, len(params)), strict=True))
    draw = lambda k, w: jax.random.normal(k, w.shape) / 4
    return {n: jax.tree.map(partial(draw, keys[n]), own) for n, own in params.items()}


def lost(model, params, input_fn, loss_fn, *, key):
    raise FloatingPointError("rms of layers_0 is not finite\nand more")


def zeros(model, params, input_fn, loss_fn, *, key):
    return jax.tree.map(jnp.zeros_like, params)


STRATEGIES = {
    "as it is": None,
    "halved": halved,
    "lost": lost,
    "tuned": ei.tune,
    "noisy": noisy,
    "zeros": zeros,
}
SHORT = {"steps": STEPS, "learning_rates": RATES, "key": KEY, "optimizer": MOMENTUM}


@pytest.fixture(scope="module")
def table():
    return ei.compare(MODEL, PARAMS, X, LOSS, strategies=STRATEGIES, **SHORT)


def by_hand(params, scales, rate):
    """Full-batch training as one writes it, with momentum written out."""
    model = MODEL if scales is None else ei.scaled(MODEL)
    extra = {} if scales is None else {"scales": scales}
    of = jax.jit(
        jax.value_and_grad(lambda p: LOSS(model.apply({"params": p, **extra}, X)))
    )
    move = jax.tree.map(jnp.zeros_like, params)
    seen = []
    for _ in range(STEPS):
        value, gradient = of(params)
        move = jax.tree.map(lambda m, g: 0.9 * m + g, move, gradient)
        step = move
        if scales is not None:
            step = {n: jax.tree.map(lambda m, n=n: m * scales[n]["update"], move[n])
                    for n in move}  # fmt: skip
        params = jax.tree.map(lambda p, s: p - rate * s, params, step)
        seen.append(float(value))
    return np.array(seen)


def test_losses_are_those_of_training_by_hand(table):
    """The mean over the last two of twelve steps; the tuned model with its scales."""
    scales = ei.tune(MODEL, PARAMS, X, LOSS, key=KEY, optimizer=MOMENTUM(1.0))
    starts = {"as it is": (PARAMS, None), "tuned": (PARAMS, scales)}
    starts["halved"] = (halved(0, PARAMS, 0, 0, key=0), None)
    trials = {t.name: t for t in table.trials}
    for name, start in starts.items():
        for i, rate in enumerate(RATES[:3]):
            want = by_hand(*start, rate)
            # float32 rounding grows while training: twelve steps of at most 1e-6
            assert trials[name].losses[0, i] == pytest.approx(
                want[-2:].mean(), rel=1e-4
            )
            assert trials[name].start_loss == pytest.approx(want[0], rel=1e-5)


def test_pillars_are_those_of_measure(table):
    rows = {row["strategy"]: row for row in table.rows()}
    unit = MOMENTUM(1.0)
    seen = ei.measure(MODEL, PARAMS, X, LOSS, key=KEY, optimizer=unit)
    worst = seen.worst()
    row = rows["as it is"]
    assert row["activations"] == pytest.approx(worst["output_rms"][1], rel=1e-5)
    assert row["gradients"] == pytest.approx(worst["input_grad_rms"][1], rel=1e-5)
    total, own = np.asarray(seen.total_update_rms), np.asarray(seen.update_rms)
    assert row["updates"] == pytest.approx(abs(np.log2(total.max())), rel=1e-4)
    assert row["uneven"] == pytest.approx(np.log2(own.max() / own.min()), rel=1e-4)
    tuned = rows["tuned"]
    assert max(tuned[name] for name in OCTAVE_COLUMNS) < 0.01
    assert max(row[name] for name in OCTAVE_COLUMNS) > 1
    dead = rows["zeros"]  # not probed: the zeros are the strategy's own
    assert dead["activations"] == dead["gradients"] == np.inf


def test_rows_are_in_order_and_failures_are_rows(table):
    rows = table.rows()
    assert [row["strategy"] for row in rows] == list(STRATEGIES)
    failed = rows[2]
    assert failed["error"] == "FloatingPointError: rms of layers_0 is not finite"
    assert all(np.isnan(failed[n]) for n in ("seconds", "loss", "learning_rate"))
    assert "lost failed: FloatingPointError: rms" in str(table)
    assert "and more" not in str(table)
    assert "2^-8 to 2^10" in str(table)
    assert not any(name.startswith("lost/") for name in table.scalars())
    best = min((r for r in rows if r["strategy"] != "lost"), key=lambda r: r["loss"])
    assert table.scalars()[f"{best['strategy']}/loss"] == best["loss"]


def test_best_rates_and_their_ends(table):
    """What blows up is infinite; a best rate at an end of the grid is marked."""
    for trial, row in zip(table.trials, table.rows(), strict=True):
        if not trial.error:
            assert row["loss"] == trial.losses.min()
            assert row["learning_rate"] == RATES[trial.losses[0].argmin()]
            assert row["at_end"] == (row["learning_rate"] in (RATES[0], RATES[-1]))
    wild = partial(optax.sgd, momentum=2.0)
    short = SHORT | {"learning_rates": (1e38, 3e38), "optimizer": wild}
    only = {"as it is": None}
    broken = ei.compare(MODEL, PARAMS, X, LOSS, strategies=only, **short)
    assert broken.rows()[0]["loss"] == np.inf
    assert np.isnan(broken.rows()[0]["learning_rate"])
    assert len(broken.plot().axes) == 4


@pytest.mark.slow
def test_same_key_same_numbers(table):
    """All but the seconds; another key gives other draws and other losses."""
    less = {n: STRATEGIES[n] for n in ("tuned", "noisy")}
    again = ei.compare(MODEL, PARAMS, X, LOSS, strategies=less, **SHORT)
    other = SHORT | {"key": jax.random.key(4)}
    moved = ei.compare(MODEL, PARAMS, X, LOSS, strategies=less, **other)
    named = {t.name: t for t in table.trials}
    for trial in again.trials:
        np.testing.assert_array_equal(trial.losses, named[trial.name].losses)
        assert trial.updates == named[trial.name].updates
    assert not np.allclose(moved.trials[1].losses, named["noisy"].losses)


def test_seeds_are_keys_of_strategies():
    """The first seed's loss is that of the key; a function without draws has one."""
    both = {"noisy": noisy, "halved": halved}
    short = SHORT | {"learning_rates": RATES[1:2]}
    two = ei.compare(MODEL, PARAMS, X, LOSS, strategies=both, seeds=2, **short)
    one = ei.compare(MODEL, PARAMS, X, LOSS, strategies=both, **short)
    for a, b in zip(two.trials, one.trials, strict=True):
        assert a.losses.shape == (2, 1)
        assert a.losses[0] == b.losses[0]
    assert two.trials[0].losses[1] != two.trials[0].losses[0]
    assert two.trials[1].losses[1] == two.trials[1].losses[0]
    assert two.rows()[0]["loss"] == pytest.approx(two.trials[0].losses.mean())


def test_training_batches_bring_their_labels():
    """Labels of the wrong rows teach nothing; a numpy loader does as well."""
    data = np.asarray(jax.random.normal(jax.random.key(7), (256, 8)))
    labels = data[:, :3].argmax(1)

    def train(key, shift=0):
        rows = np.asarray(jax.random.randint(key, (64,), 0, 256))
        return data[rows], {"labels": labels[(rows + shift) % 256]}

    short = SHORT | {"steps": 60, "learning_rates": (2.0**-4,)}
    only = {"as it is": None}
    case = (MODEL, PARAMS, X, LOSS)
    right = ei.compare(*case, strategies=only, train=train, **short)
    wrong = ei.compare(*case, strategies=only, train=partial(train, shift=1), **short)
    assert right.rows()[0]["loss"] < 0.35
    assert wrong.rows()[0]["loss"] > 0.8


def test_compilations_do_not_grow_with_learning_rates():
    """Nor with strategies that return parameters of the same kind."""
    before = _step_run._cache_size()
    rule = partial(optax.sgd, momentum=0.5)  # a new one: nothing is compiled yet
    short = SHORT | {"optimizer": rule}
    few = {"as it is": None, "halved": halved}
    for rates in (RATES[:1], RATES):
        ei.compare(MODEL, PARAMS, X, LOSS, strategies=few, **short | {"steps": 2,
                   "learning_rates": rates})  # fmt: skip
    assert _step_run._cache_size() == before + 1


class Dropped(nn.Module):
    """A model that needs a random stream and has a collection."""

    @nn.compact
    def __call__(self, x):
        x = nn.BatchNorm(use_running_average=False)(nn.Dense(8)(x))
        return nn.Dense(3)(nn.Dropout(0.5, deterministic=False)(x))


def test_options_reach_strategies_and_training():
    """Streams, collections and batch sizes; both scales and parameters at once."""
    model = Dropped()
    keys = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
    variables = model.init(keys, X)
    given = {"rngs": ("dropout",), "batch_size": 16,
             "collections": {"batch_stats": variables["batch_stats"]}}  # fmt: skip
    seen = {}

    def redrawn(model, params, input_fn, loss_fn, *, key, **options):
        seen.update(options)
        params = ei.unit_params(params, key)
        scales = ei.tune(model, params, input_fn, loss_fn, key=key, **options)
        return {"params": params, "scales": scales}

    def input_fn(key, batch_size=4):
        return jax.random.normal(key, (batch_size, 8))

    loss = lambda y, inputs: loss_of(y, jnp.argmax(inputs[:, :3], 1))
    short = SHORT | {"learning_rates": (2.0**-3,), "steps": 3}
    params, both = variables["params"], {"as it is": None, "redrawn": redrawn}
    found = ei.compare(model, params, input_fn, loss, strategies=both, **given, **short)
    assert seen == given
    assert all(np.isfinite(row["loss"]) for row in found.rows())
    assert found.rows()[1]["activations"] < 0.01 < found.rows()[0]["activations"]


def test_figure_has_all_strategies(table, tmp_path):
    figure = table.plot()
    curves, pillars, cost, _ = figure.axes
    assert [t.get_text() for t in pillars.get_yticklabels()] == list(STRATEGIES)
    assert len(curves.lines) == len(STRATEGIES) - 1  # "lost" has no curve
    assert {t.get_text() for t in cost.texts} == {"0", "failed"}
    figure.savefig(tmp_path / "figure.png")


def test_linear_starts_are_tuned_for_the_sizes_that_they_chose():
    """Among the default strategies: outputs before waves are smaller, and stay so."""
    wave = lambda x: jnp.sin(3 * x)
    layers = [layer for _ in range(6) for layer in (nn.Dense(16), wave)]
    model = nn.Sequential([*layers, nn.Dense(3)])
    x = jax.random.normal(jax.random.key(1), (32, 8))
    params = jax.jit(model.init)(jax.random.key(0), x)["params"]
    start = default_strategies(optax.adam)["looks_linear, tune"]
    loss = lambda y: jnp.mean(jnp.square(y - 1))
    start = start(model, params, x, loss, key=jax.random.key(2))
    table = ei.measure(model, start["params"], x, loss, scales=start["scales"])
    assert 0.1 < table.output_rms[0] < 0.9
    np.testing.assert_allclose(table.output_rms[:-1], table.output_rms[0], rtol=1e-4)
    np.testing.assert_allclose(table.output_rms[-1], 1, rtol=1e-4)
