"""Pictures, flat scalars and the report: right numbers, nothing shown, whole files."""

import itertools
import pickle
import shutil
import struct
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorboardX
from matplotlib.figure import Figure
from tensorboardX.proto.event_pb2 import Event

import einit_jax as ei
from einit_jax.reporting import LABELS, _files, pillar_panels, shortened
from tests.models import CASES
from tests.test_coordinates import synthetic

X = jax.random.normal(jax.random.key(1), (32, 8))
CHROMIUM = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip


class Net(nn.Module):
    """The last layer but one gives zeros, and so has no gradient to give."""

    @nn.compact
    def __call__(self, x):
        x = nn.tanh(nn.Dense(16)(x))
        x = x + nn.Dense(16, kernel_init=nn.initializers.zeros, name="dead")(x)
        return nn.Dense(4, name="head")(x)


def measured(model, scales=None, probe=False):
    params = model.init(jax.random.key(0), X)["params"]
    loss = lambda y: jnp.mean(jnp.square(y - 1))
    if scales == "tuned":
        scales = ei.tune(model, params, X, loss)
    return ei.measure(model, params, X, loss, scales=scales, probe=probe)


@pytest.fixture(scope="module")
def before():
    return measured(Net())


@pytest.fixture(scope="module")
def after():
    return measured(Net(), "tuned")


@pytest.fixture(scope="module")
def history():
    model, stats = Net(), ei.activation_stats(Net(), slots=4)
    params = model.init(jax.random.key(0), X)["params"]
    state = stats.init({"params": params}, X)
    loss = lambda t: jnp.sum(stats.apply({"params": params, "taps": t}, X) ** 2)
    for _ in range(3):
        state = stats.update(state, jax.grad(loss)(state.taps))
    return stats.value(state)


def test_lines_are_the_logarithms_of_the_table(before, after):
    """Each panel has both tables; what is zero is a mark and not a point."""
    figure = ei.plot(before, after)
    assert isinstance(figure, Figure)
    names = ("output_rms", "input_grad_rms", "update_rms")
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
    row = {"output_rms": 1.0, "input_grad_rms": 0.5, "update_rms": np.inf,
           "total_update_rms": 1.0, "flag": "non-finite"}  # fmt: skip
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


def test_long_names_keep_their_levels_and_numbers():
    name = "encoder/encoderblock_0/MultiHeadDotProductAttention_12/query[3]"
    assert shortened(name, 30) == "enc…/enc…_0/Mul…_12/que…[3]"
    assert shortened("Dense_0", 30) == "Dense_0"
    assert shortened("a_1/" * 20 + "b", 10) == "…a_1/a_1/b"


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
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == "False"


def test_scalars_are_taken_by_a_summary_writer(before, history, tmp_path):
    """Tags and values come back from the event file as they were."""
    scalars = before.scalars() | history.scalars() | synthetic(0.5).scalars()
    assert scalars["Dense_0/output_rms"] == pytest.approx(float(before.output_rms[0]))
    with tensorboardX.SummaryWriter(str(tmp_path)) as writer:
        for name, value in scalars.items():
            writer.add_scalar(name, value, 0)
    (file,) = tmp_path.iterdir()
    data, found = file.read_bytes(), {}
    while data:  # records: length, its checksum, an event, its checksum
        (length,) = struct.unpack("<Q", data[:8])
        event = Event.FromString(data[12 : 12 + length])
        found |= {v.tag: v.simple_value for v in event.summary.value}
        data = data[16 + length :]
    assert found == pytest.approx(scalars)


def test_wrong_measurements_are_refused(before):
    class Other(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(4)(nn.tanh(nn.Dense(8)(x)))

    with pytest.raises(ValueError, match=r"different units: it lacks dead, head; it"):
        ei.plot(before, measured(Other()))
    with pytest.raises(TypeError, match=r"expected what ei.measure returned"):
        ei.plot(before, before.rows())
    for many in ((), (before, before, before)):
        with pytest.raises(ValueError, match=r"plot\(glorot=..., kaiming=...\)"):
            ei.plot(*many)
    words = ei.plot(before, third=before).legends[0].get_texts()
    assert [word.get_text() for word in words][:2] == ["before", "third"]


@pytest.fixture
def no_matplotlib(monkeypatch):
    for name in ("matplotlib", "matplotlib.figure", "matplotlib.backends.backend_agg"):
        monkeypatch.setitem(sys.modules, name, None)


def test_without_matplotlib_the_extra_is_named(
    before, history, no_matplotlib, tmp_path
):
    words = r"pip install 'einit_jax\[plot\]'"
    for draw in (before.plot, history.plot, synthetic(0.0).plot):
        with pytest.raises(ImportError, match=words):
            draw()
    with pytest.raises(ImportError, match=words):
        ei.report(tmp_path / "run.html", before=before)
    assert not list(tmp_path.iterdir())


def whole(path, before, after, history):
    return ei.report(
        path, before=before, after=after, history=history,
        coordinates=synthetic(0.0, 0.5), model=Net(), seed=0,
        notes={"learning rate": "<0.25>"},
    )  # fmt: skip


def test_report_is_one_file_without_addresses(before, after, history, tmp_path):
    """The same bytes each time; nothing is fetched; what users write is escaped."""
    path = whole(tmp_path / "run.html", before, after, history)
    text = path.read_text()
    assert [p.name for p in tmp_path.iterdir()] == ["run.html"]
    assert text.count("<img") == 4
    assert "http" not in text
    assert "&lt;0.25&gt;" in text
    assert f"jax {jax.__version__}" in text
    again = whole(tmp_path / "again.html", before, after, history)
    assert again.read_text() == text


def test_measurements_of_different_models_have_a_figure_each(before, tmp_path):
    class Other(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(4)(x)

    path = ei.report(tmp_path / "run.html", one=before, two=measured(Other()))
    assert path.read_text().count("<img") == 2


def test_unwritable_paths_are_refused(before, history, tmp_path, monkeypatch):
    empty = ei.activation_stats(Net()).value(
        ei.activation_stats(Net()).init(
            {"params": Net().init(jax.random.key(0), X)["params"]}, X
        )
    )
    file = tmp_path / "run.html"
    for path, words in (
        (tmp_path, "it is a folder"),
        (tmp_path / "none" / "run.html", "No such file or directory"),
    ):
        with pytest.raises(ValueError, match=words):
            ei.report(path, before=before)
    with pytest.raises(TypeError, match="expected a str or a Path"):
        ei.report(3, before=before)  # pyright: ignore
    with pytest.raises(ValueError, match="nothing to report"):
        ei.report(file)
    with pytest.raises(TypeError, match="before is a list"):
        ei.report(file, before=before.rows())
    with pytest.raises(ValueError, match="the history is empty"):
        ei.report(file, before=before, history=empty)
    assert not list(tmp_path.iterdir())
    file.write_text("old")

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(_files.os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        ei.report(file, history=history)
    assert [p.name for p in tmp_path.iterdir()] == ["run.html"]
    assert file.read_text() == "old"


@pytest.mark.slow
def test_report_in_a_browser(before, after, history, tmp_path):
    """No complaint in the console, all figures drawn, a click sorts a column."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    if browser is None:
        pytest.skip("needs Debian's chromium")
    from playwright.sync_api import sync_playwright

    path = whole(tmp_path / "run.html", before, after, history)
    said: list[str] = []
    with sync_playwright() as play:
        chromium = play.chromium.launch(executable_path=browser, args=CHROMIUM)
        page = chromium.new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: said.append(request.url))
        page.goto(path.as_uri())
        widths = page.eval_on_selector_all("img", "all => all.map(i => i.naturalWidth)")
        assert len(widths) == 4
        assert min(widths) > 300
        table = page.locator(".scroll table").first
        column = "td:nth-child(6)"  # output rms
        names = [row["path"] for row in before.rows()]
        order = np.argsort(np.array(before.output_rms))
        for want in (order, order[::-1]):
            table.locator("th button").nth(5).click()
            shown = table.locator("td:first-child").all_text_contents()
            assert shown == [names[i] for i in want]
            values = [float(v) for v in table.locator(column).all_text_contents()]
            assert values in (sorted(values), sorted(values, reverse=True))
        chromium.close()
    assert [line for line in said if not line.startswith(("file:", "data:"))] == []
