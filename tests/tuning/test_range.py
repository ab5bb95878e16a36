"""Inputs, weights and losses of any size in float32: right factors, or an error.

Everything is homogeneous: each relation is exact but for the logarithms of potentials,
whose rounding of 100 octaves is some 1e-5.
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import einit_jax as ei
from einit_jax.tuning._state import Findings
from tests.support.checks import KEY, factors_of, refuses
from tests.support.optimizers import ADAM

SIZES = [2.0**-100, 2.0**-63, 2.0**63, 2.0**100]  # near 1e-30, 1e-19, 1e19, 1e30
X = jax.random.normal(KEY, (16, 8))
SGD = optax.sgd(1.0)


class Net(nn.Module):
    """Bias-free, so that kernels and inputs can be scaled; the loss sees its size."""

    calls: int = 1

    @nn.compact
    def __call__(self, x, size):
        dense = partial(nn.Dense, use_bias=False)
        middle = dense(8, name="middle")
        h = nn.tanh(dense(8, name="first")(x))
        for _ in range(self.calls):
            h = h + nn.tanh(middle(h))
        return dense(4, name="last")(h)


def sized(outputs, inputs):
    """A loss of a given size, to targets that do not depend on the size of inputs."""
    return inputs[1] * jnp.mean((outputs - jnp.sign(inputs[0][:, :4])) ** 2)


NET, TWICE = Net(), Net(2)
PARAMS: Any = NET.init(KEY, X, 1.0)["params"]


def batch(inputs: float = 1.0, loss: float = 1.0) -> tuple:
    return (jnp.float32(inputs) * X, jnp.float32(loss))


def params(**sizes: float) -> dict:
    """The parameters with the kernels of some units multiplied."""
    by = lambda path, w: jnp.float32(sizes.get(path[0].key, 1.0)) * w
    return jax.tree.map_with_path(by, PARAMS)


def tuned(model: nn.Module = NET, sizes: Any = (), **options: Any) -> dict:
    sizes = dict(sizes)
    x = batch(sizes.pop("inputs", 1.0), sizes.pop("loss", 1.0))
    return ei.tune(model, params(**sizes), x, sized, **options)


def measured(model: nn.Module = NET, sizes: Any = (), **options: Any):
    sizes = dict(sizes)
    x = batch(sizes.pop("inputs", 1.0), sizes.pop("loss", 1.0))
    return ei.measure(model, params(**sizes), x, sized, **options)


def related(found: dict, base: dict, powers: dict[str, dict[str, float]]) -> None:
    """Asserts that factors are those at sizes of 1 times the powers given."""
    found, base = factors_of(found), factors_of(base)
    for unit, own in base.items():
        for name, value in own.items():
            by = powers.get(unit, {}).get(name, 1.0)
            wanted = np.float64(value) * by
            np.testing.assert_allclose(
                np.float64(found[unit][name]),
                wanted,
                rtol=2e-5,
                err_msg=f"{unit} {name}",
            )


RULES = {
    "exact": {},
    "unit": {"gradients": "unit", "update": "local"},
    "plain": {"gradients": "plain", "optimizer": SGD},
    "exact_local_sgd": {"optimizer": SGD, "update": "local"},
}


def powers(rule: str, what: str, s: float) -> dict[str, dict[str, float]]:
    """By what the factors of units change, where something is s times as large."""
    plain = rule == "plain"
    if what == "inputs":
        return {"first": {"output": 1 / s, "input_grad": 1.0 if plain else s}}
    if what == "loss" and plain:
        return {unit: {"update": 1 / s} for unit in PARAMS}
    if what == "loss":
        return {"last": {"output_grad": 1 / s}}
    own = {"update": s**2} if plain else {"output_grad": s**2, "input_grad": s**-2}
    return {what: {"output": 1 / s, **own}}


SLOW = [pytest.param(rule, marks=pytest.mark.slow) for rule in RULES if rule != "exact"]


@pytest.mark.parametrize("rule", ["exact", *SLOW])
def test_factors_follow_sizes(rule):
    """Those of inputs, of losses, and of weights as far as their squares go."""
    base = tuned(**RULES[rule])
    cases = [(what, s) for what in ("inputs", "loss") for s in SIZES]
    cases += [("middle", 2.0**-57), ("first", 2.0**57)]
    for what, s in cases:
        related(tuned(sizes={what: s}, **RULES[rule]), base, powers(rule, what, s))


def test_kernels_of_very_different_sizes():
    """1e-9 in one layer and 1e18 in another, the loss large: each has its own part."""
    sizes = {"first": 2.0**-30, "last": 2.0**58, "loss": 2.0**60}
    wanted = {what: {} for what in ("first", "last")}
    for what, s in sizes.items():
        for unit, own in powers("exact", what, s).items():
            for name, by in own.items():
                wanted[unit][name] = wanted[unit].get(name, 1.0) * by
    related(tuned(sizes=sizes), tuned(), wanted)


@pytest.mark.slow
def test_updates_of_adam_follow_sizes():
    """Adam sees gradients of the same size, whatever that of inputs and losses."""
    base = tuned(optimizer=ADAM)
    for what, s in [("inputs", SIZES[0]), ("loss", SIZES[-1])]:
        found = tuned(sizes={what: s}, optimizer=ADAM)
        related(found, base, powers("exact", what, s))


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(NET, id="once"),
        pytest.param(TWICE, id="twice", marks=pytest.mark.slow),
    ],
)
def test_measure_agrees(model):
    """Rules hold and all is well with the factors; and without, numbers are as large
    as the loss."""
    plain = measured(model)
    for what, s in [("inputs", SIZES[0]), ("inputs", SIZES[3]),
                    ("loss", SIZES[0]), ("loss", SIZES[3])]:  # fmt: skip
        scales = tuned(model, {what: s})
        table = measured(model, {what: s}, scales=scales)
        assert {row["flag"] for row in table.rows()} == {"ok"}
        np.testing.assert_allclose(table.output_rms, 1, rtol=1e-2)
        assert "exact" in table.modes()["gradients"]
        assert "total" in table.modes()["update"]
        if what == "loss":
            large = measured(model, {what: s})
            for name in ("input_grad_rms", "update_rms", "total_update_rms"):
                ratio = np.float64(getattr(large, name)) / getattr(plain, name)
                np.testing.assert_allclose(ratio, s, rtol=1e-5)


def test_small_outputs_of_several_calls_are_measured():
    """Not taken for zeros, although their squares are."""
    sizes = {"inputs": 2.0**-80, "middle": 2.0**-10}
    table = measured(TWICE, sizes)
    row = {r["path"]: r for r in table.rows()}["middle"]
    first, middle = (PARAMS[n]["kernel"] for n in ("first", "middle"))
    h = X @ first  # tanh is the identity at this size
    wanted = 2.0**-90 * jnp.sqrt(jnp.mean(jnp.square(h @ middle)))
    np.testing.assert_allclose(row["output_rms"], wanted, rtol=1e-3)
    assert 0.5 < row["output_spread"] < 1.001


def test_under_jit_all_sizes_are_right():
    """Nobody can look and begin anew there."""
    run = jax.jit(lambda x: ei.tune(NET, PARAMS, x, sized))
    base = tuned()
    for what, s in [("inputs", SIZES[0]), ("inputs", SIZES[3]), ("loss", SIZES[0])]:
        related(run(batch(**{what: s})), base, powers("exact", what, s))


def test_one_program_does_not_see_all_sizes(monkeypatch):
    """The negative: squares alone take what is small for nothing."""
    monkeypatch.setattr(Findings, "needs_more", lambda self: False)
    ratio = tuned(sizes={"loss": SIZES[0]})["last"]["output_grad"]
    ratio = np.float64(ratio) / np.float64(tuned()["last"]["output_grad"])
    assert not np.isclose(ratio * SIZES[0], 1, rtol=0.5)


JITTED = jax.jit(partial(ei.tune, NET, loss_fn=sized))


@pytest.mark.parametrize(
    ("sizes", "unit"),
    [
        ({"middle": 1e30}, "middle"),
        ({"middle": 1e-30}, "middle"),
        ({"loss": 1e38}, "last"),
        ({"first": 1e-12, "inputs": 1e-26}, "first"),
    ],
    ids=str,
)
def test_factors_beyond_float32_are_refused(sizes, unit):
    """By name; under jit they are finite, and the row of the unit is not ok."""
    with refuses(FloatingPointError, match=f"unit '{unit}' needs factors beyond"):
        tuned(sizes=sizes)
    rest = {n: s for n, s in sizes.items() if n in PARAMS}
    x = batch(sizes.get("inputs", 1.0), sizes.get("loss", 1.0))
    scales = JITTED(params(**rest), x)
    assert all(np.isfinite(s) and s > 0 for s in jax.tree.leaves(scales))
    flags = {r["path"]: r["flag"] for r in measured(sizes=sizes, scales=scales).rows()}
    assert flags[unit] != "ok"


def test_optimizers_that_need_no_c_reach_further():
    """Kernels of 1e30, where c would be 1e60, by steps of one size."""
    lion = optax.lion(1.0)
    scales = tuned(sizes={"middle": 2.0**100}, gradients="plain", optimizer=lion)
    assert all(np.isfinite(s) and s > 0 for s in jax.tree.leaves(scales))
    np.testing.assert_array_equal(scales["middle"]["output_grad"], 1)


def test_what_overflows_in_the_model_is_refused():
    with refuses(FloatingPointError, match="activations at unit 'first'"):
        tuned(sizes={"inputs": 1e30, "first": 1e12})


def test_true_zeros_are_no_small_sizes():
    """Dead inputs leave factors at 1, and are flagged."""
    x = (jnp.zeros_like(X), jnp.float32(1))
    scales = ei.tune(NET, PARAMS, x, sized)
    assert set(map(float, jax.tree.leaves(scales["first"]))) == {1.0}
    table = ei.measure(NET, PARAMS, x, sized, scales=scales)
    assert {row["flag"] for row in table.rows()} == {"zero"}


class Gated(nn.Module):
    """A layer whose inputs are zero at the start, as those of a state are."""

    @nn.compact
    def __call__(self, x):
        state = nn.Dense(8, name="state")(jnp.zeros_like(x))
        return nn.Dense(4, name="head")(jnp.tanh(nn.Dense(8, name="body")(x) + state))


@pytest.mark.parametrize("wide", [False, True])
def test_targets_of_zeros_change_nothing(wide):
    """No factor brings them there: gradients and updates are as without a target."""
    to_signs = lambda y: jnp.mean((y - jnp.sign(X[:, :4])) ** 2)
    params = Gated().init(KEY, X)["params"]
    how = {"targets": {"state": 0.5, "*": 1.0}, "gradients": "unit", "update": "local"}
    tune = lambda params: ei.tune(Gated(), params, X, to_signs, **how)
    scales = jax.jit(tune)(params) if wide else tune(params)
    table = ei.measure(Gated(), params, X, to_signs, scales=scales)
    (row,) = (row for row in table.rows() if row["path"] == "state")
    assert (row["flag"], row["output_factor"]) == ("zero", 1.0)
    np.testing.assert_allclose([row["input_grad_rms"], row["update_rms"]], 1, rtol=1e-5)


@pytest.mark.parametrize("target", [1e-300, 9e-31, 1.1e30, {"last": 1e-40}], ids=str)
def test_targets_out_of_range_are_refused(target):
    with refuses(ValueError, match="from 1e-30 to 1e\\+30"):
        tuned(targets=target)


@pytest.mark.slow
@pytest.mark.parametrize("target", [1e-30, 1e30])
def test_targets_at_the_ends_are_met(target):
    scales = tuned(targets={"first": target}, gradients="plain", optimizer=SGD)
    table = measured(scales=scales)
    np.testing.assert_allclose(table.output_rms[0], target, rtol=1e-5)
