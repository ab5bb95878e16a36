"""The parts of a report: four kinds of ours and any other, their cells and order."""

import re
import shutil
from html import escape

import flax.linen as nn
import numpy as np
import pytest

import einit_jax as ei
from einit_jax.experiments._comparison import Trial
from einit_jax.pages._glossary import GLOSSARY, WIDE_TABLE, column_groups
from einit_jax.pages._training_curves import training_curves
from einit_jax.reporting import empty_figure
from tests.support.checks import refuses, synthetic
from tests.support.reported import measurement_of

RATES = (2.0**-8, 2.0**-5, 2.0**-2)
ERROR = "ValueError: <b>inf</b> at head[3]"
ABOUT = "about this page"
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
    """The cells of the last table of rows, row by row."""
    body = text.rpartition('class="wide rows">')[2].partition("<tbody>")[2]
    body = body.partition("</tbody>")[0]
    return [re.findall("<td[^>]*>(.*?)</td>", row) for row in body.split("</tr>")[:-1]]


def test_all_kinds_of_parts_are_in_one_file(before, after, history, tmp_path):
    """In order; figures that parts share stand before the first of these."""
    parts = {"history": history, "before": before, "my_ways": comparison()}
    parts |= {"after": after, "widths": synthetic(0.0, 0.5)}
    text = ei.report(tmp_path / "run.html", **parts).read_text()
    assert headings(text) == [
        "history", "the three pillars", "before", "my ways", "after", "widths", ABOUT
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
    assert headings(text) == ["one net", "two", ABOUT]
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
    assert "<b>inf" not in text


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


def test_curves_of_training_come_first(before, tmp_path):
    """A dict of losses is a part; diverged ones count as infinite, and come last."""
    losses = {"plain": [2.0, np.nan], "tuned": np.array([2.0, 0.5])}
    text = ei.report(tmp_path / "run.html", before=before, runs=losses).read_text()
    assert headings(text)[:3] == ["runs", "the three pillars", "before"]
    assert re.findall('<img alt="(.*?)"', text) == ["runs", "before"]
    told = "<b>runs</b> loss after 2 steps: tuned 0.5; plain diverged"
    assert text.index(told) < text.index("<h2>")


@pytest.mark.parametrize(
    ("losses", "exception", "words"),
    [
        ({}, ValueError, r"runs is empty, expected losses by name"),
        ({"a": []}, ValueError, r"runs\['a'\] is empty, expected a loss per step"),
        ({"a": 3.0}, TypeError, r"runs\['a'\] is a float, expected the losses"),
        ({"a": [[1.0]]}, TypeError, r"runs\['a'\] is a list, expected the losses"),
        ({"a": "loss"}, TypeError, r"runs\['a'\] is a str, expected the losses"),
    ],
)
def test_what_are_no_losses_is_refused(losses, exception, words, tmp_path):
    with refuses(exception, match=words):
        ei.report(tmp_path / "run.html", runs=losses)
    assert not list(tmp_path.iterdir())


class Judged(Own):
    """A part that knows which of its rows are off."""

    def layers_off(self):
        return [row for row in self.rows() if row["size"] > 1]


def shown_first(text: str) -> list[str]:
    """The names in the first table of rows."""
    return re.findall('<td class="text" data-label="layer">(.*?)<', tables_of(text)[0])


def tables_of(text: str) -> list[str]:
    return text.split('class="wide rows">')[1:]


def test_layers_that_are_off_are_shown(tmp_path):
    """The first of them, before the table, which is folded; or that none is."""
    rows = [{"path": f"layer_{i}", "size": 7 - i} for i in range(7)]
    report = lambda *rows: ei.report(tmp_path / "run.html", mine=Judged(*rows))
    text = report(*rows).read_text()
    assert shown_first(text) == [f"layer_{i}" for i in range(5)]
    assert "<p>off, the worst 5 of 6 layers:</p>" in text
    assert "mine: all 7 rows, notes</summary>" in text
    well = report(*rows[6:]).read_text()
    assert "<p>no layer is off</p>" in well
    assert len(tables_of(well)) == 1
    assert (
        "<details><summary>mine"
        not in ei.report(tmp_path / "run.html", mine=Own(*rows)).read_text()
    )


def test_layers_that_are_off_are_those_of_the_verdict(before, after, tmp_path):
    """Which is there once, above; the dead layer comes first."""
    text = ei.report(tmp_path / "run.html", before=before).read_text()
    off = [row["path"] for row in before.layers_off()]
    assert shown_first(text) == off[:5]
    assert off[0] == "dead"
    for line in before.summary():
        assert text.count(escape(line)) == 1
    assert escape(before.notes()[-1]) in text
    assert after.summary()[0].startswith("OK: ") == (not after.layers_off())


def test_parts_say_what_they_come_to(tmp_path):
    """At the top, after their names, curves first; nothing where they say nothing."""

    class Summarized(Own):
        def summary(self):
            return ["is <fine>", "and tuned"]

    curves = training_curves("runs", {"a": [2.0, 1.0]})
    parts = {"mine": Summarized({"a": 1}), "my_runs": curves, "other": Own({"a": 1})}
    text = ei.report(tmp_path / "run.html", **parts).read_text()
    verdict = text.partition("<h2>")[0].partition("</h1>")[2]
    assert re.findall("<b>(.*?)</b> (.*?)</p>", verdict) == [
        ("my runs", "loss after 2 steps: a 1"),
        ("mine", "is &lt;fine&gt;"),
        ("mine", "and tuned"),
    ]


def test_every_column_of_ours_is_explained(before, tmp_path):
    """By a tooltip on its head, and in the list at the end."""
    curves = training_curves("runs", {"a": [1.0]})
    parts = [before, comparison(), synthetic(0.0, 0.5), curves]
    names = {name for part in parts for name in part.rows()[0]}
    assert names - GLOSSARY.keys() == {"error"}
    text = ei.report(tmp_path / "run.html", before=before).read_text()
    meaning = escape(GLOSSARY["output_rms"])
    assert f'title="{meaning}">output</button>' in text
    assert f"<dt>output</dt><dd>{meaning}</dd>" in text


def test_wide_tables_are_shown_in_groups_that_lose_no_column(before):
    names = list(before.rows()[0])
    groups = column_groups(names)
    assert list(groups) == ["pillars", "factors", "more"]
    assert all(group[0] == "path" for group in groups.values())
    assert max(map(len, groups.values())) <= WIDE_TABLE
    rest = [name for group in groups.values() for name in group[1:]]
    assert sorted(rest) == sorted(names[1:])
    few = ["path", "output", "other"]
    assert column_groups(few) == {"": few}


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
            page.locator(".rows th button").nth(heads.index(name)).click()
            return page.locator(".rows td:first-child").all_text_contents()

        assert sorted_by("strategy") == names
        assert sorted_by("strategy") == names[::-1]
        assert sorted_by("loss") == [*by_loss, "lost"]
        assert sorted_by("loss") == [*by_loss[::-1], "lost"]
        assert sorted_by("error")[0] == "lost"
        assert sorted_by("error")[0] == "lost"
        chromium.close()
