"""The report: one whole file, or none."""

import shutil
import sys

import flax.linen as nn
import jax
import numpy as np
import pytest

import einit_jax as ei
from einit_jax.reporting import _files
from tests.support.checks import refuses, synthetic
from tests.support.reported import Net, X, measurement_of

CHROMIUM = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip


@pytest.fixture
def no_matplotlib(monkeypatch):
    for name in ("matplotlib", "matplotlib.figure", "matplotlib.backends.backend_agg"):
        monkeypatch.setitem(sys.modules, name, None)


def test_without_matplotlib_the_extra_is_named(
    before, history, no_matplotlib, tmp_path
):
    words = r"pip install 'einit_jax\[plot\]'"
    for draw in (before.plot, history.plot, synthetic(0.0).plot):
        with refuses(ImportError, match=words):
            draw()
    with refuses(ImportError, match=words):
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

    path = ei.report(tmp_path / "run.html", one=before, two=measurement_of(Other()))
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
        with refuses(ValueError, match=words):
            ei.report(path, before=before)
    with refuses(TypeError, match="expected a str or a Path"):
        ei.report(3, before=before)  # pyright: ignore
    with refuses(ValueError, match="nothing to report"):
        ei.report(file)
    with refuses(TypeError, match="before is a list"):
        ei.report(file, before=before.rows())
    with refuses(ValueError, match="the history is empty"):
        ei.report(file, before=before, history=empty)
    assert not list(tmp_path.iterdir())
    file.write_text("old")

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(_files.os, "replace", fail)
    with refuses(OSError, match="disk full"):
        ei.report(file, history=history)
    assert [p.name for p in tmp_path.iterdir()] == ["run.html"]
    assert file.read_text() == "old"


@pytest.fixture(scope="module")
def chromium():
    """A browser without a window."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    if browser is None:
        pytest.skip("needs Debian's chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        running = play.chromium.launch(executable_path=browser, args=CHROMIUM)
        yield running
        running.close()


OVERFLOW = "all => all.filter(e => e.scrollWidth > e.clientWidth).length"
COLOUR = "getComputedStyle(document.body).backgroundColor"


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [420, 1280])
def test_report_in_a_browser(width, scheme, chromium, before, after, history, tmp_path):
    """No complaint in the console; nothing is wider than the screen or scrolls in it;
    light and dark; a click sorts, whatever the rows look like."""
    path = whole(tmp_path / "run.html", before, after, history)
    said: list[str] = []
    size = {"width": width, "height": 900}
    page = chromium.new_page(viewport=size, color_scheme=scheme)
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: said.append(request.url))
    page.goto(path.as_uri())
    widths = page.eval_on_selector_all("img", "all => all.map(i => i.naturalWidth)")
    assert len(widths) == 4
    assert min(widths) > 300
    dark = page.evaluate(COLOUR) != "rgb(255, 255, 255)"
    assert dark == (scheme == "dark")
    folded = page.locator("details")
    assert not any(f.get_attribute("open") is not None for f in folded.all())
    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert page.eval_on_selector_all(".wide", OVERFLOW) == 0
    table = page.locator("details .rows table").first  # of before
    heads = table.locator("th button").all_text_contents()
    column = f"td:nth-child({heads.index('output') + 1})"
    names = [row["path"] for row in before.rows()]
    order = np.argsort(np.array(before.output_rms))
    for want in (order, order[::-1]):
        table.locator("th button").nth(heads.index("output")).click()
        shown = table.locator("td:first-child").all_text_contents()
        assert shown == [names[i] for i in want]
        values = [float(v) for v in table.locator(column).all_text_contents()]
        assert values in (sorted(values), sorted(values, reverse=True))
    page.close()
    assert [line for line in said if not line.startswith(("file:", "data:"))] == []


@pytest.mark.slow
def test_a_printer_unfolds_all(chromium, before, tmp_path):
    page = chromium.new_page()
    page.goto(ei.report(tmp_path / "run.html", before=before).as_uri())
    count = lambda: page.locator("details:not([open])").count()
    folded = count()
    assert folded > 2
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert count() == 0
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert count() == folded
    page.close()
