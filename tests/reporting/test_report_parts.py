"""The parts of a report: four kinds of ours and any other, their cells and order."""

import re
import shutil

import flax.linen as nn
import numpy as np
import pytest

import einit_jax as ei
from einit_jax.experiments._comparison import Trial
from einit_jax.reporting import empty_figure
from tests.support.checks import synthetic
from tests.support.reported import measurement_of

RATES = (2.0**-8, 2.0**-5, 2.0**-2)
ERROR = "ValueError: <b>inf</b> at head[3]"
LOSSES = {
    "tune": (2.0, 0.5, 0.25),
    "2": (np.inf, np.inf, np.inf),  # names that look like numbers are words
    "inf": (2.0, 1.0, np.inf),
    "lsuv [mine]": (2.0, 0.125, 3.0),
}


def comparison() -> ei.Comparison:
    """Three strategies that learn, one that diverges, one that fails."""
    trials = [
        Trial(name, np.array([losses]), 1.5, 0.01, 3.0, 0.5, np.inf, 1.0, 2.0, 2.3)
        for name, losses in LOSSES.items()
    ]
    failed = Trial("lost", np.empty((0, 0)), error=ERROR)
    return ei.Comparison((*trials, failed), RATES, 20, 2, 1, 0.001, ())


def headings(text: str) -> list[str]:
    return re.findall("<h2>(.*?)</h2>", text)


def cells(text: str) -> list[list[str]]:
    """The cells of the last table, row by row."""
    body = text.rpartition("<tbody>")[2]
    return [re.findall("<td[^>]*>(.*?)</td>", row) for row in body.split("</tr>")[:-1]]


def test_all_kinds_of_parts_are_in_one_file(before, after, history, tmp_path):
    """In order; figures that parts share stand before the first of these."""
    parts = {"history": history, "before": before, "my_ways": comparison()}
    parts |= {"after": after, "widths": synthetic(0.0, 0.5)}
    text = ei.report(tmp_path / "run.html", **parts).read_text()
    assert headings(text) == [
        "history", "the three pillars", "before", "my ways", "after", "widths"
    ]  # fmt: skip
    alts = ["history, activations", "history, gradients", "before, after", "my ways",
            "widths"]  # fmt: skip
    assert re.findall('<img alt="(.*?)"', text) == alts


def test_measurements_of_different_units_have_their_figures_themselves(
    before, tmp_path
):
    class Other(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(4)(x)

    parts = {"one_net": before, "two": measurement_of(Other())}
    text = ei.report(tmp_path / "run.html", **parts).read_text()
    assert headings(text) == ["one net", "two"]
    assert re.findall('<img alt="(.*?)"', text) == ["one net", "two"]


def test_cells_of_a_comparison(tmp_path):
    """Every row of it, numbers and words; what is no number leaves its cell empty."""
    table = comparison()
    text = ei.report(tmp_path / "run.html", ways=table).read_text()
    heads = re.findall("<button.*?>(.*?)</button>", text)
    assert heads[0] == "strategy"
    assert heads[-1] == "error"
    assert len(heads) == len(table.rows()[0])
    by_name = {row[0]: dict(zip(heads, row, strict=True)) for row in cells(text)}
    assert list(by_name) == [*LOSSES, "lost"]
    assert by_name["lost"]["error"] == "ValueError: &lt;b&gt;inf&lt;/b&gt; at head[3]"
    assert by_name["lost"]["loss"] == by_name["lost"]["seconds"] == ""
    assert by_name["2"] | {"loss": "inf", "learning rate": ""} == by_name["2"]
    assert by_name["tune"]["at end"] == "True"
    assert by_name["lsuv [mine]"]["loss"] == "0.125"
    assert "<b>" not in text


def test_names_in_brackets_are_no_markup():
    """Tables as text keep what a user's name has in brackets."""
    assert "lsuv [mine]" in str(comparison())
    assert f"lost failed: {ERROR}" in str(comparison())


class Own:
    """A user's own part, with rows of different columns."""

    def __init__(self, *rows):
        self._rows = list(rows)

    def rows(self):
        return self._rows

    def notes(self):
        return ["1 < 2"]

    def figures(self):
        return {"left": empty_figure(2.0, 2.0), "right": empty_figure(2.0, 2.0)}


def test_parts_of_users_are_shown(tmp_path):
    part = Own({"name": "a", "size": 1}, {"name": "b", "share": np.float32(0.5)})
    text = ei.report(tmp_path / "run.html", mine=part).read_text()
    assert cells(text) == [["a", "1", ""], ["b", "", "0.5"]]
    assert "<p>1 &lt; 2</p>" in text
    assert re.findall('<img alt="(.*?)"', text) == ["mine, left", "mine, right"]
    text = ei.report(tmp_path / "run.html", mine=Own()).read_text()
    assert cells(text) == []


@pytest.mark.slow
def test_a_comparison_sorts_in_a_browser(tmp_path):
    """Words by alphabet, numbers by value, empty cells last in both directions."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    if browser is None:
        pytest.skip("needs Debian's chromium")
    from playwright.sync_api import sync_playwright

    path = ei.report(tmp_path / "run.html", ways=comparison())
    names = ["2", "inf", "lost", "lsuv [mine]", "tune"]
    by_loss = ["lsuv [mine]", "tune", "inf", "2"]
    heads = list(comparison().rows()[0])
    with sync_playwright() as play:
        chromium = play.chromium.launch(
            executable_path=browser, args=["--no-sandbox", "--disable-gpu"]
        )
        page = chromium.new_page()
        page.goto(path.as_uri())

        def sorted_by(name: str) -> list[str]:
            page.locator(".scroll th button").nth(heads.index(name)).click()
            return page.locator(".scroll td:first-child").all_text_contents()

        assert sorted_by("strategy") == names
        assert sorted_by("strategy") == names[::-1]
        assert sorted_by("loss") == [*by_loss, "lost"]
        assert sorted_by("loss") == [*by_loss[::-1], "lost"]
        assert sorted_by("error")[0] == "lost"
        assert sorted_by("error")[0] == "lost"
        chromium.close()
