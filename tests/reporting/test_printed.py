"""What is printed: it fits the console, no digit is cut, and long tables are folded."""

import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import einit_jax as ei
from tests.reporting.test_report_parts import comparison
from tests.support.checks import refuses, synthetic
from tests.support.processes import run_python

ESSENTIAL = ["layer", "shape", "output", "gradient", "total update", "amplification"]


def deep(table: ei.Measurement, layers: int) -> ei.Measurement:
    """The first row, many times under long names, each of other small numbers."""
    take = lambda x: jnp.resize(x[0], layers) if x.ndim and x.shape != (0,) else x
    first, *_ = table.rows_of
    path = "encoder_blocks/MultiHeadDotProductAttention_0/query[{}]"
    rows = [first._replace(path=path.format(i), inside=i) for i in range(layers)]
    many = replace(jax.tree.map(take, table), rows_of=tuple(rows), probes=())
    small = -1.2345e-05 * (1 + jnp.arange(layers) / layers)
    return replace(many, output_mean=small, potential=-small)


def parts_of(text: str) -> tuple[str, list[str], str]:
    """The summary, the lines of the table, and the notes."""
    summary, table, notes = text.split("\n\n")
    return summary, table.splitlines(), notes


def numbers_in(line: str) -> list[str]:
    return [word for word in line.split() if re.fullmatch(r"-?[\d.]+(e[-+]\d+)?", word)]


@pytest.mark.parametrize("width", [60, 80, 100, 120, 160, 240])
def test_lines_fit_and_digits_are_whole(before, width):
    """More columns where there is room; names are cut, numbers are not."""
    table = deep(before, 12)
    text = table.to_string(width=width)
    assert max(map(len, text.splitlines())) <= width
    _, lines, _ = parts_of(text)
    start = next(i for i, line in enumerate(lines) if line.startswith("──")) + 1
    exact = [f"{value:.3g}" for row in table.rows() for value in row.values()
             if isinstance(value, float | int)]  # fmt: skip
    for line in lines[start:]:
        numbers = numbers_in(line)
        assert len(numbers) >= 3 + (width >= 80)
        assert set(numbers) <= set(exact)
    assert ("amplification" in " ".join(lines)) == (width >= 80)
    assert ("-1.23e-05" in text) == (width >= 160)


def test_a_width_of_80_shows_what_decides(before):
    _, lines, _ = parts_of(deep(before, 12).to_string(width=80))
    heads = " ".join(lines[:2]).split()
    assert {word for head in ESSENTIAL for word in head.split()} <= set(heads)
    assert lines[1].split()[0] == "layer" and lines[1].split()[-1] == "flag"


def test_the_console_decides_where_no_width_is_given(before, monkeypatch):
    table = deep(before, 12)
    for width in (80, 132):
        monkeypatch.setenv("COLUMNS", str(width))
        assert str(table) == repr(table) == table.to_string(width=width)
    assert table.to_string(width=80) != table.to_string(width=132)


def test_without_a_console_there_are_80_columns():
    code = (
        "import os; os.environ.pop('COLUMNS', None)\n"
        "from tests.support.checks import synthetic\n"
        "print(str(synthetic(0.5)) == synthetic(0.5).to_string(width=80))"
    )
    assert run_python(code).stdout.strip() == "True"


def test_columns_are_those_asked_for(before):
    """Whatever the width; the names of rows come first."""
    text = before.to_string(columns=["cosine", "param_rms", "output_rms"], width=40)
    _, lines, _ = parts_of(text)
    heads = " ".join(lines[:2]).split()
    assert heads == ["parameter", "layer", "cosine", "rms", "output"]
    with refuses(ValueError, match="there is no 'rms', 'a'; expected some of path, "):
        before.to_string(columns=["rms", "a"])
    for words in ({"width": 0}, {"max_rows": 0}):
        with refuses(ValueError, match="=0: expected a positive number, or None"):
            before.to_string(**words)
    with refuses(TypeError, match="width=80.0: expected a whole number"):
        before.to_string(width=80.0)


def test_factors_are_not_called_like_statistics(before, after):
    """They are there where they are not 1, by the keys of scales."""
    heads = lambda table: " ".join(parts_of(table.to_string(width=300))[1][:2])
    assert "factor" not in heads(before)
    assert heads(after).count("factor") == 3
    row = after.rows()[0]
    assert {"output_factor", "input_grad_factor", "output_grad_factor",
            "update_factor"} < row.keys()  # fmt: skip
    assert not {"output", "input_grad", "output_grad", "update"} & row.keys()


@pytest.mark.parametrize("max_rows", [1, 2, 5, 30])
def test_long_tables_keep_the_first_the_worst_and_the_last(before, max_rows):
    table = deep(before, 99)
    table = replace(table, output_rms=table.output_rms.at[50].set(77.0))
    _, lines, _ = parts_of(table.to_string(max_rows=max_rows, width=80))
    shown = [line for line in lines if re.search(r"\[\d+\]", line)]
    hidden = [int(n) for n in re.findall(r"… (\d+) more", "\n".join(lines))]
    assert len(shown) == max_rows and len(shown) + sum(hidden) == 99
    assert "[0]" in shown[0]
    if max_rows > 1:
        assert "[98]" in shown[-1]
    if max_rows > 2:
        assert any("[50]" in line and "77" in line for line in shown)


def test_all_rows_are_shown_on_demand(before):
    for layers, hidden in ((30, 0), (31, 1)):
        table = deep(before, layers)
        assert str(table).count("… 1 more") == hidden
        text = table.to_string(max_rows=None)
        assert all(f"[{i}]" in text for i in range(layers)) and "…  more" not in text


def test_shapes_of_several_outputs_have_a_line_each(before):
    """Their digits are not cut either."""
    first, *others = before.rows_of
    shape = ((128, 1024), (128, 1024), (128, 512))
    rows = (first._replace(shape=shape), *others)
    _, lines, _ = parts_of(replace(before, rows_of=rows).to_string(width=80))
    found = [line.strip() for line in lines if "128x" in line]
    assert len(found) == 3 and found[1:] == ["128x1024", "128x512"]


def test_what_has_no_numbers_is_named(before):
    """Under `jit`, and several runs at once."""
    seen = []
    jax.jit(lambda table: seen.append(str(table)))(before)
    many = jax.tree.map(lambda x: jnp.stack([x, x]), before)
    about = "Measurement of 3 layers"
    assert [*seen, str(many)] == [f"{about} (traced)", f"{about}, 2 runs"]
    assert "3 layers" in many._repr_html_()


def test_notebooks_show_a_table(before, history):
    """All columns, the summary first; names are no markup."""
    html = before._repr_html_()
    assert html.index("NOT TUNED") < html.index("<table>") < html.index("rules that")
    heads = re.findall(r"<th [^>]*>(.*?)</th>", html)
    assert heads[0] == "layer" and heads[-1] == "flag" and "total update" in heads
    assert html.count("<tr>") == 1 + len(before.rows_of)
    assert "… 1 more" in deep(before, 31)._repr_html_()
    html = comparison()._repr_html_()
    assert "&lt;b&gt;inf" in html and "<b>" not in html
    assert "<table>" in history._repr_html_()


def test_a_data_frame_has_the_rows(before, history):
    pandas = pytest.importorskip("pandas", reason="pip install 'einit_jax[pandas]'")
    for part in (before, history, comparison(), synthetic(0.5)):
        frame = part.to_pandas()
        pandas.testing.assert_frame_equal(frame, pandas.DataFrame(part.rows()))
    assert frame["path"].tolist() == ["row0"]


def test_without_pandas_the_error_says_what_to_install(before, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pandas", None)
    with refuses(ImportError, match=r"pip install 'einit_jax\[pandas\]'"):
        before.to_pandas()


def test_others_say_first_what_matters():
    flat, steep = synthetic(0.0, 0.1), synthetic(0.0, 0.5, 2.0, -1.0)
    assert str(flat).startswith("OK: flat over widths in all 2 layer(s)\n")
    assert str(steep).startswith("OFF: grows: row2, row1; shrinks: row3\n")
    first, *_ = str(comparison()).splitlines()
    assert first == "least loss: lsuv [mine], 0.125 at learning rate 2^-5"


def test_a_history_says_what_is_not_finite(history):
    assert history.summary()[0].startswith("OK: all finite; at most ")
    shares = history.gradients.nonfinite.at[2, 1].set(0.25)
    broken = replace(history, gradients=replace(history.gradients, nonfinite=shares))
    (line,) = broken.summary()
    assert line == f"NOT FINITE: up to 0.25 of the gradients at {history.paths[1]}"
    assert np.isnan(history.gradients.nonfinite[3:]).all()  # as nothing was read there
