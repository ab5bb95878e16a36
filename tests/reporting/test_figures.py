"""Figures: the right numbers, readable, and nothing shown."""

import itertools
import pickle
from dataclasses import replace

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.patches import StepPatch

import einit_jax as ei
from einit_jax.reporting import LABELS, pillar_panels
from tests.support.checks import refuses, synthetic
from tests.support.models import CASES
from tests.support.processes import run_python
from tests.support.reported import measurement_of


def test_lines_are_the_logarithms_of_the_table(before, after):
    """Each panel has both tables; what is zero is a mark and not a point. The update
    is the total one, which the rule is about."""
    figure = ei.plot(before, after)
    assert isinstance(figure, Figure)
    names = ("output_rms", "input_grad_rms", "total_update_rms")
    for ax, name in zip(figure.axes, names, strict=True):
        for label, table in {"before": before, "after": after}.items():
            (line,) = (x for x in ax.get_lines() if x.get_label() == label)
            want = np.array(getattr(table, name), np.float64)
            with np.errstate(divide="ignore"):
                want = np.where(want > 0, np.log2(want), np.nan)
            np.testing.assert_allclose(
                np.array(line.get_ydata(), float), want, rtol=1e-6
            )
    dead = [c for c in figure.axes[0].collections if c.get_label() == "_zero"]
    assert [len(c.get_offsets()) for c in dead] == [1, 1]
    words = [text.get_text() for text in figure.legends[0].get_texts()]
    assert "dead (zero)" in words
    assert "non-finite" not in words


def bands(ax) -> np.ndarray:
    """The least and the largest value of the grey band at each place."""
    (band,) = (patch for patch in ax.patches if isinstance(patch, StepPatch))
    values, _, baseline = band.get_data()
    return np.stack([baseline, values])


def test_the_band_is_what_the_rules_in_force_ask_for(before, after):
    """Within a factor of 2: of 1 or a target, of exact gradients with a mean of 1, of
    a largest total update of 1; what is tuned lies in the middle."""
    middles = [bands(ax).mean(0) for ax in ei.plot(before, after).axes]
    for middle, name in zip(middles, after.judgement.due, strict=False):
        if name == "output_rms":
            np.testing.assert_allclose(middle, 0, atol=1e-6)
    total = np.log2(np.asarray(after.total_update_rms, np.float64))
    np.testing.assert_allclose(middles[2], total - total.max(), atol=1e-5)
    untuned = bands(before.plot().axes[2])
    largest = np.nanmax(np.log2(before.total_update_rms))
    np.testing.assert_allclose(np.nanmax(untuned.mean(0)), 0, atol=1e-6)
    assert abs(largest) > 0.5
    low, high = untuned
    np.testing.assert_allclose(high - low, 2, rtol=1e-6)
    target = jnp.array([1.0, 1.0, 0.25])
    moved = bands(replace(after, output_target=target).plot().axes[0]).mean(0)
    np.testing.assert_allclose(moved, [0, 0, -2], atol=1e-6)


def test_a_local_rule_draws_the_own_update(after):
    total = jnp.array([1.0, 3.0, 9.0])
    local = replace(after, update_rms=jnp.ones(3), total_update_rms=total)
    assert local.judgement.update == "local"
    ax = local.plot().axes[2]
    assert ax.get_ylabel().endswith("\nupdate")
    (other,) = (line for line in ax.get_lines() if line.get_label() == "_other")
    np.testing.assert_allclose(other.get_ydata(), np.log2(total), rtol=1e-6)
    assert after.plot().axes[2].get_ylabel().endswith("\ntotal update")


def test_scanned_layers_are_one_place_with_a_bar():
    job = CASES["scan_layers"].build()
    table = ei.measure(*job[:4], **job.options)
    ax = table.plot().axes[0]
    names = [tick.get_text() for tick in table.plot().axes[-1].get_xticklabels()]
    units = list(dict.fromkeys(row["path"].partition("[")[0] for row in table.rows()))
    assert names == units
    bars = [c for c in ax.collections if hasattr(c, "get_segments")]
    scanned = [u for u in units if any(r["path"] == f"{u}[0]" for r in table.rows())]
    assert sum(len(b.get_segments()) for b in bars) == len(scanned) > 0
    first = np.log2([r["output_rms"] for r in table.rows() if scanned[0] in r["path"]])
    ends = bars[0].get_segments()[0][:, 1]
    np.testing.assert_allclose(ends, [first.min(), first.max()], rtol=1e-5)


@pytest.mark.parametrize("count", [12, 300])
def test_names_are_readable(count):
    """No more than fit, none on top of its neighbour."""
    row = {"output_rms": 1.0, "input_grad_rms": 0.5, "update_rms": 1.0,
           "total_update_rms": np.inf, "flag": "non-finite"}  # fmt: skip
    name = "transformer/encoder_block_{}/attention/query"
    figure = pillar_panels(
        {"": [{"path": name.format(i), **row} for i in range(count)]}
    )
    figure.draw_without_rendering()
    ticks = figure.axes[-1].get_xticklabels()
    assert len(ticks) == (count if count <= LABELS else 38)
    boxes = [tick.get_window_extent() for tick in ticks]
    assert all(a.x1 <= b.x0 + 1 for a, b in itertools.pairwise(boxes))
    assert boxes[0].y0 >= 0
    marks = [c for c in figure.axes[2].collections if c.get_label() == "_non-finite"]
    assert len(marks[0].get_offsets()) == count


def test_every_value_draws(before, history):
    """The figures of all kinds of values render, and show in notebooks."""
    check = synthetic(0.0, 0.5, -1.0)
    for figure in (
        before.plot(),
        history.plot(),
        history.plot("gradients"),
        check.plot(),
        synthetic(0.0, steps=0).plot(),
    ):
        png = figure._repr_png_()
        assert png.startswith(b"\x89PNG")
        assert pickle.loads(pickle.dumps(figure)).axes
    means, deviations, dead = history.plot().subfigs[0].axes[:3]
    np.testing.assert_allclose(
        np.array(deviations.get_lines()[0].get_ydata(), float),
        history.activations.std[:3, 0],
    )
    np.testing.assert_allclose(
        dead.images[0].get_array(), np.array(history.activations.dead[:3]).T
    )
    assert len(means.get_lines()) == 1 + len(history.paths)


def test_nothing_is_shown_and_pyplot_is_left_alone():
    code = (
        "import sys\nfrom einit_jax.reporting import pillar_panels\n"
        "row = dict(path='a', flag='ok', output_rms=1., input_grad_rms=1.,"
        " update_rms=1., total_update_rms=1.)\n"
        "pillar_panels({'': [row]})._repr_png_()\n"
        "print('matplotlib.pyplot' in sys.modules)"
    )
    run = run_python(code)
    assert run.stdout.strip() == "False"


def test_wrong_measurements_are_refused(before):
    class Other(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(4)(nn.tanh(nn.Dense(8)(x)))

    with refuses(ValueError, match=r"different units: it lacks dead, head; it"):
        ei.plot(before, measurement_of(Other()))
    with refuses(TypeError, match=r"expected what ei.measure returned"):
        ei.plot(before, before.rows())
    for many in ((), (before, before, before)):
        with refuses(ValueError, match=r"plot\(glorot=..., kaiming=...\)"):
            ei.plot(*many)
    words = ei.plot(before, third=before).legends[0].get_texts()
    assert [word.get_text() for word in words][:2] == ["before", "third"]
