"""The referee of `tune` and of `measure`: errors planted in the one or the other."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import einit_jax as ei
from einit_jax.core import ModelArgs, Partition, plain
from einit_jax.tuning import _tune, _update_factors
from einit_jax.units import ones
from einit_jax.verification import TotalUpdates
from tests.support.cases import Job, squared_error
from tests.support.checks import (
    KEY,
    batch_of,
    objective_of,
    params_of,
    quick,
    refuses,
    some,
    traced,
)
from tests.support.models import CASES
from tests.support.models.wrapped import Detached, HandTied, Pair

X = jax.random.normal(KEY, (16, 8))
WRONG = 1.1
too_large = lambda x: WRONG * x


@pytest.fixture
def planted(monkeypatch):
    """Multiplies factors of a unit between the sweep and what follows it."""

    def plant(unit, **by):
        solve = _tune.solve

        def planted_solve(spec, args):
            solution = solve(spec, args)
            own = solution.factors[(unit,), "__call__"]
            changed = {name: own[name] * by.get(name, 1.0) for name in own}
            factors = {**solution.factors, ((unit,), "__call__"): changed}
            return solution._replace(factors=factors)

        jax.clear_caches()  # nothing compiled before is to be taken
        monkeypatch.setattr(_tune, "solve", planted_solve)

    yield plant
    jax.clear_caches()


class Chain(nn.Module):
    """Two layers; the width tells one test's programs from another's."""

    width: int

    @nn.compact
    def __call__(self, x):
        x = jnp.tanh(nn.Dense(self.width, name="first")(x))
        return nn.Dense(4, name="last")(x)


# Outputs.


def test_an_output_that_misses_its_target_is_an_error(planted):
    """It names the unit, what was got, what was expected, and what to do."""
    model = Chain(9)
    params = params_of(model)
    planted("first", output=WRONG)
    tune = partial(ei.tune, model, params, X, squared_error)
    with refuses(ValueError, r"first has 1.1, expected 1.*exclude='first'"):
        tune()
    assert set(tune(verify=False)) == {"first", "last"}


def test_half_a_percent_is_none(planted):
    """The tolerance is 1%."""
    model = Chain(10)
    params = params_of(model)
    planted("first", output=1.005)
    assert ei.tune(model, params, X, squared_error)


def test_under_an_outer_jit_measure_flags_it(planted):
    """No exception can be raised there; on other batches 10% are no sign of it."""
    model = Chain(11)
    params = params_of(model)
    planted("last", output=1.3)
    scales = quick(lambda p: ei.tune(model, p, X, squared_error))(params)
    flags = lambda **how: [
        row["flag"] for row in ei.measure(model, params, X, squared_error, **how).rows()
    ]
    assert flags(scales=scales) == ["ok", "missed"]
    assert flags(scales=scales, targets={"last": 1.3}) == ["ok", "ok"]
    assert flags() == ["ok", "ok"]


@pytest.mark.parametrize("draws", [1, 3])
def test_targets_and_draws_are_what_outputs_are_compared_with(draws):
    """Factors that are averages over draws are no miss."""
    model = Chain(12)
    params = params_of(model)
    inputs = lambda key: jax.random.normal(key, (16, 8))
    how = {"targets": {"last": 0.3, "*": 1.0}, "draws": draws}
    scales = ei.tune(model, params, inputs, squared_error, **how)
    table = ei.measure(model, params, inputs, squared_error, scales=scales, **how)
    assert [row["flag"] for row in table.rows()] == ["ok", "ok"]
    np.testing.assert_allclose(
        table.output_rms, [1, 0.3], rtol=1e-5 if draws == 1 else 0.1
    )


def test_what_draws_miss_is_read_by_all_that_comes_after():
    """The first unit's inputs differ in size from draw to draw, the last one's do not.

    So the last one's factor is the same on every draw, and its output is not.
    """

    def inputs(key):
        size = jnp.exp(2 * jax.random.normal(jax.random.fold_in(key, 1)))
        return size * jax.random.normal(key, (16, 8))

    model = Chain(12)
    scales = ei.tune(model, params_of(model), inputs, squared_error, draws=3)
    how = {"scales": scales, "key": jax.random.key(3)}
    (row, last) = ei.measure(
        model, params_of(model), inputs, squared_error, **how
    ).rows()
    assert abs(row["output_rms"] - 1) > 0.1 < abs(last["output_rms"] - 1)


class Branches(nn.Module):
    """One layer for batches of positive sum, another one for the rest."""

    def setup(self):
        self.upper, self.lower, self.head = nn.Dense(8), nn.Dense(8), nn.Dense(4)

    def __call__(self, x):
        upper, lower = (lambda m, x: m.upper(x)), (lambda m, x: m.lower(10 * x))
        if self.is_initializing():
            upper(self, x), lower(self, x)
        return self.head(jnp.tanh(nn.cond(x.sum() > 0, upper, lower, self, x)))


def test_a_miss_is_seen_on_any_draw(planted):
    """Each draw is judged under its own factors, so that their scatter excuses none."""
    model = Chain(14)
    planted("first", output=WRONG)
    inputs = lambda key: jax.random.normal(key, (2, 8))
    with refuses(ValueError, "first has 1.1, expected 1"):
        ei.tune(model, params_of(model), inputs, squared_error, draws=3)


def test_draws_that_do_not_reach_a_unit_do_not_count_for_it():
    """Inputs differ by a sign alone, so what a draw says of a layer is exact."""
    model, params = Branches(), params_of(Branches())
    inputs = lambda key: jnp.abs(X) * jax.random.rademacher(key, ())
    scales = ei.tune(model, params, inputs, squared_error, draws=5)
    table = ei.measure(model, params, inputs, squared_error, scales=scales, draws=5)
    (head, *both) = sorted(table.rows(), key=lambda row: row["path"])
    assert {row["path"] for row in both} == {"upper", "lower"}
    for row in both:
        assert row["flag"] == "ok"
        np.testing.assert_allclose(row["output_rms"], 1, rtol=1e-5)
    deviations = dict(
        zip((row["path"] for row in table.rows()), table.output_deviation, strict=True)
    )
    assert head["flag"] == "ok" and float(deviations.pop("head")) > 1e-3
    assert max(map(float, deviations.values())) < 1e-5


def test_a_layer_behind_which_gradients_stop_keeps_its_size():
    """Units after it are tuned on the inputs that they get."""
    params = params_of(Detached())
    scales = ei.tune(Detached(), params, X, squared_error)
    table = ei.measure(Detached(), params, X, squared_error, scales=scales)
    assert {n: float(f) for n, f in scales["held"].items()} == dict.fromkeys(
        ("output", "input_grad", "output_grad"), 1.0
    )
    rows = {row["path"]: row for row in table.rows()}
    assert rows["held"]["flag"] == "zero" and rows["head"]["flag"] == "ok"
    np.testing.assert_allclose(rows["head"]["output_rms"], 1, rtol=1e-5)
    assert abs(rows["held"]["output_rms"] - 1) > 0.1


def test_where_gradients_reach_no_unit_nothing_can_be_tuned():
    params = params_of(Detached())
    with refuses(ValueError, "no gradient of the loss reaches held: no unit is left"):
        ei.tune(Detached(), params, X, squared_error, exclude="head")


def test_a_parameter_may_be_a_tuple_of_arrays():
    params = params_of(Pair())
    scales = ei.tune(Pair(), params, X, squared_error)
    table = ei.measure(Pair(), params, X, squared_error, scales=scales)
    np.testing.assert_allclose(table.output_rms, 1, rtol=1e-5)


# Gradients.


def test_gradients_that_are_not_true_are_an_error(planted):
    """Where a layer's parameters are used elsewhere, its own part must not outgrow."""
    params = params_of(HandTied())
    assert ei.tune(HandTied(), params, X, squared_error)
    planted("up", input_grad=0.5, output_grad=2.0)
    with refuses(ValueError, "the scaled gradients of up/kernel are not the true ones"):
        ei.tune(HandTied(), params, X, squared_error)


class PenalizedAttention(nn.Module):
    """A norm of the parameters has a part in the outputs."""

    @nn.compact
    def __call__(self, x):
        attention = nn.MultiHeadDotProductAttention(1)
        y = attention(x)
        leaves = jax.tree.leaves(attention.variables["params"])
        return y + 1e-3 * sum(jnp.sum(jnp.square(w)) for w in leaves)


def test_a_gradient_that_is_rounding_alone_is_not_compared():
    """That of the bias of keys is zero in truth, and has no direction to be true to."""
    x = jax.random.normal(KEY, (8, 3, 8))
    params = PenalizedAttention().init(KEY, x)["params"]
    scales = ei.tune(PenalizedAttention(), params, x, squared_error)
    table = ei.measure(PenalizedAttention(), params, x, squared_error, scales=scales)
    np.testing.assert_allclose(table.output_rms, 1, rtol=1e-5)
    assert "exact" in table.modes()["gradients"]


# Total updates.


def total_of(model, params):
    scales = ei.tune(model, params, X, squared_error)
    table = ei.measure(model, params, X, squared_error, scales=scales)
    return float(jnp.max(table.total_update_rms)), table.modes()["update"]


def test_measure_and_tune_find_the_total_update_apart(monkeypatch, planted):
    """What is wrong in either is seen in measure's table, and only then."""
    model = Chain(13)
    params = params_of(model)
    total, held = total_of(model, params)
    np.testing.assert_allclose(total, 1, rtol=1e-5)
    assert held == ("total",)
    changes = _update_factors.output_changes
    wrong = lambda *args, **how: jax.tree.map(too_large, changes(*args, **how))
    with monkeypatch.context() as patch:
        jax.clear_caches()
        patch.setattr(_update_factors, "output_changes", wrong)
        total, held = total_of(model, params)
        np.testing.assert_allclose(total, 1 / WRONG, rtol=1e-5)
        assert held == ()
    along = TotalUpdates.along
    wrong = lambda *args: jax.tree.map(too_large, along(*args))
    with monkeypatch.context() as patch:
        jax.clear_caches()
        patch.setattr(TotalUpdates, "along", wrong)
        total, held = total_of(model, params)
        np.testing.assert_allclose(total, WRONG, rtol=1e-5)
        assert held == ()


@some("compact_mlp", "two_sizes", "tied_lm", "two_outputs")
def test_tangents_and_differences_agree(case):
    """Two ways to the same changes; differences are off by the curve of the model."""
    job: Job = CASES[case.name].build()
    graph, objective, batch = traced(job), objective_of(job), batch_of(job)
    args = ModelArgs(job.params, job.options.get("collections", {}), batch)
    keys = jax.random.split(KEY, 100)
    floats = Partition(plain(job.params)).floats
    step = [jax.random.normal(k, x.shape) for k, x in zip(keys, floats, strict=False)]

    def found(captured):
        updates = TotalUpdates(objective, graph.units, ones(graph.units), captured)
        return quick(lambda: updates.along(args, step))()

    tangents, differences = found(graph.units), found(())
    np.testing.assert_allclose(differences, tangents, rtol=5e-3)


class ScaledBlock(nn.Module):
    """A branch with a LayerScale."""

    size: float

    @nn.compact
    def __call__(self, x, _=None):
        constant = nn.initializers.constant(self.size, jnp.float32)
        gain = self.param("gain", constant, x.shape[-1:])
        return x + gain * jnp.tanh(nn.Dense(x.shape[-1], name="up")(x)), None


class ScaledBlocks(nn.Module):
    """Three of them, in a loop or one by one."""

    size: float
    loop: bool

    @nn.compact
    def __call__(self, x):
        if self.loop:
            axes = {"params": 0}
            split = {"params": True}
            block = nn.scan(ScaledBlock, variable_axes=axes, split_rngs=split, length=3)
            return nn.Dense(3)(block(self.size, name="blocks")(x, None)[0])
        for i in range(3):
            x, _ = ScaledBlock(self.size, name=str(i))(x)
        return nn.Dense(3)(x)


@pytest.mark.parametrize(
    ("size", "wide"), [(1e-1, False), (1e-6, False), (1e-12, False), (1e-6, True)]
)
def test_differences_are_derivatives_where_a_parameter_is_next_to_zero(size, wide):
    """By as much as it may move no other moves by more than its rounding."""
    with jax.enable_x64(wide):
        check_total_updates_of_blocks(size)


def check_total_updates_of_blocks(size):
    """In a loop, by differences, as they are one by one, by tangents."""
    x = jax.random.normal(jax.random.key(1), (32, 8), jnp.float32)
    loss_fn = lambda y: jnp.mean(jnp.square(y - 1))
    loop, apart = ScaledBlocks(size, loop=True), ScaledBlocks(size, loop=False)
    params = loop.init(jax.random.key(0), x)["params"]
    scales = ei.tune(loop, params, x, loss_fn)

    def one_by_one(tree):
        rest = {name: own for name, own in tree.items() if name != "blocks"}
        layer = lambda i: jax.tree.map(lambda t: t[i], tree["blocks"])
        return {str(i): layer(i) for i in range(3)} | rest

    table = ei.measure(loop, params, x, loss_fn, scales=scales)
    wanted = ei.measure(
        apart, one_by_one(params), x, loss_fn, scales=one_by_one(scales)
    )
    totals = lambda t: [row["total_update_rms"] for row in t.rows()]
    np.testing.assert_allclose(totals(table), totals(wanted), rtol=3e-3)
    assert "total" in table.modes()["update"]
