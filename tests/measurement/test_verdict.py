"""The verdict: what is off is named, by the rules in force; what is well is not."""

from dataclasses import replace
from functools import cache
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import einit_jax as ei
from tests.support.checks import KEY

X = jax.random.normal(KEY, (32, 8))
LOSS = lambda y: jnp.mean(jnp.square(y - jnp.sin(X[:, :4])))


class Branched(nn.Module):
    """Gradients of the two branches differ, so that exact ones are not all 1."""

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(16, name="stem")(x)
        x = x + nn.Dense(16, name="down")(nn.tanh(nn.Dense(16, name="up")(x)))
        return nn.Dense(4, name="head")(x)


MODEL = Branched()
PARAMS: Any = MODEL.init(KEY, X)["params"]
UNTUNED = ei.measure(MODEL, PARAMS, X, LOSS)


@cache
def tuned(**options: Any) -> ei.Measurement:
    scales = ei.tune(MODEL, PARAMS, X, LOSS, **options)
    optimizer = options.get("optimizer")
    return ei.measure(MODEL, PARAMS, X, LOSS, scales=scales, optimizer=optimizer)


def with_values(table: ei.Measurement, **factors: float) -> ei.Measurement:
    """The table with the second row's values multiplied."""
    times = lambda name, k: getattr(table, name).at[1].multiply(k)
    return replace(table, **{name: times(name, k) for name, k in factors.items()})


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "gradients exact, in each region 1 on average, updates equal, the larg"),
        ({"like": "original"}, "gradients 1, updates 1, each by itself"),
        ({"optimizer": optax.adam}, "gradients exact, in each region 1 on average"),
        ({"optimizer": optax.adam, "gradients": "plain"}, "gradients as they are"),
        ({"exclude": "up"}, "gradients exact, updates equal"),
    ],
)
def test_what_is_tuned_is_well_by_its_own_rules(options, words):
    table = tuned(**options)
    line, *others = table.summary()
    layers = 3 if "exclude" in options else 4
    assert line.startswith(f"OK: all {layers} layers within 1%: outputs 1, {words}")
    assert all(octaves < 0.015 for _, octaves in table.worst().values())
    named = [line.split(":")[0].strip() for line in others]
    assert named == (["left out"] if "exclude" in options else [])


def test_the_rule_in_force_decides_which_update_is_judged():
    """A total update of 1 is no failure though each one is far below; a local update
    of 1 is none though the total is far above."""
    total, local = tuned(), tuned(like="original")
    assert (total.judgement.update, local.judgement.update) == ("total", "local")
    assert np.max(total.update_rms) < 0.5 < 1.5 < np.max(local.total_update_rms)
    assert "total_update_rms" in total.worst()
    assert "total_update_rms" not in local.worst()


def test_factors_of_an_optimizer_are_not_measured_by_sgd_in_silence():
    scales = ei.tune(MODEL, PARAMS, X, LOSS, optimizer=optax.adam)
    says = lambda table: (
        "the scales are for an optimizer" in " ".join(str(table).split())
    )
    assert says(ei.measure(MODEL, PARAMS, X, LOSS, scales=scales))
    by_its_own = ei.measure(MODEL, PARAMS, X, LOSS, scales=scales, optimizer=optax.adam)
    assert not says(by_its_own)
    assert not says(tuned())


def test_an_untuned_network_is_told_what_mends_it():
    line, *_ = UNTUNED.summary()
    assert line.startswith("NOT TUNED: output ")
    assert line.endswith("; ei.tune(model, params, input_fn, loss_fn) mends it")
    for name, word in (("output_rms", "output"), ("input_grad_rms", "gradient")):
        values = np.asarray(getattr(UNTUNED, name))
        row = int(np.argmax(np.abs(np.log(values))))
        assert f"{word} {values[row]:.3g} at {UNTUNED.rows_of[row].path}" in line
    assert f"total update {np.max(UNTUNED.total_update_rms):.3g} at " in line
    by_adam = ei.measure(MODEL, PARAMS, X, LOSS, optimizer=optax.adam)
    assert "loss_fn, optimizer=...) mends it" in by_adam.summary()[0]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"output_rms": 1.2}, "off: up (output 1.2, not 1): "),
        ({"input_grad_rms": 8.0}, "off: up (gradient "),
        ({"update_rms": 2.0}, "off: up (update "),
        ({"output_rms": np.nan}, "off: up (output nan): "),
        ({"output_rms": 1.05, "update_rms": 1.3}, ""),
    ],
)
def test_a_layer_that_is_off_is_named(change, words):
    """With its value and what is due; up to 10% of an output, half an octave of the
    others, are well."""
    first, *lines = with_values(tuned(), **change).summary()
    assert first.startswith("OFF: " if words else "OK: all 4 layers within 30%")
    assert len(lines) == bool(words)
    off = with_values(tuned(), **change).layers_off()
    assert [row["path"] for row in off][:1] == ["up"] * bool(words)
    assert all(line.strip().startswith(words) for line in lines)


@pytest.mark.parametrize(
    ("flag", "change", "words"),
    [
        ("zero", {"output_rms": 0.0}, "zero output: up (output 0): draw other weights"),
        ("zero", {"input_grad_rms": 0.0}, "zero: up (gradient 0): no gradient gets"),
        ("non-finite", {}, "non-finite: up: jax.config.update('jax_debug_nans', True)"),
        ("out of range", {}, "out of range: up: a factor is hardly a float32"),
        ("missed", {"output_rms": 2.0}, "missed: up (output 2, not 1): measure with"),
        ("unreached", {}, "unreached: up: no input got there"),
    ],
)
def test_every_flag_has_a_remedy(flag, change, words):
    table = with_values(tuned(), **change)
    flags = table.flag.at[1].set(ei.measurement.FLAGS.index(flag))
    first, *lines = replace(table, flag=flags).summary()
    assert first.startswith("OK: all 3" if flag == "unreached" else "OFF: 1 of 4")
    assert [line for line in lines if line.startswith(f"  {words}")]
    off = replace(table, flag=flags).layers_off()
    assert [row["path"] for row in off] == ["up"] * (flag != "unreached")
    assert all(words.startswith(row["trouble"].partition(":")[0]) for row in off)


def test_the_three_worst_of_a_trouble_are_named():
    off = tuned().output_rms * jnp.array([2.0, 8.0, 1.5, 4.0])
    first, line = replace(tuned(), output_rms=off).summary()
    assert first == "OFF: 4 of 4 layers"
    names = ("up (output 8, not 1)", "head (output 4, not 1)", "stem (output 2, not 1)")
    assert line.startswith(f"  off: {', '.join(names)} and 1 more: ")
    first, *_ = replace(tuned(), output_rms=off).layers_off()
    assert first["trouble"] == "off: output 8, not 1"
    assert first["output_rms"] == pytest.approx(8, rel=1e-5)


def test_outputs_are_judged_by_their_targets():
    """Without them an output that is as it was tuned has missed 1."""
    targets = {"up": 0.5, "*": 1.0}
    scales = ei.tune(MODEL, PARAMS, X, LOSS, targets=targets)
    run = lambda **options: ei.measure(MODEL, PARAMS, X, LOSS, scales=scales, **options)
    first, *others = run(targets=targets).summary()
    assert first.startswith("OK: all 4 layers within 1%: outputs on target, ")
    assert not others
    assert "  missed: up (output 0.5, not 1): " in run().summary()[1]
    assert [row["output_target"] for row in run(targets=targets).rows()] == [
        1,
        0.5,
        1,
        1,
    ]


def test_inputs_that_collapse_are_told_with_what_mends_it():
    """Though all sizes are 1."""
    many = replace(tuned(), outputs_amplification=jnp.float32(9.0))
    first, last = many.summary()
    assert first.startswith("OK: ")
    assert last.startswith("but inputs ") and "looks_linear" in last
    assert not any("looks_linear" in line for line in tuned().summary())


def test_notes_begin_with_the_summary():
    for table in (UNTUNED, tuned()):
        summary = table.summary()
        assert table.notes()[: len(summary)] == summary
        assert any(n.startswith("rules that hold within 1%") for n in table.notes())
