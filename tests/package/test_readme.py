"""The README and the guide: their code runs, and their names are public."""

import re
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import pytest

import einit_jax as ei

ROOT = Path(__file__).parents[2]
PAGES = ("README.md", "notebooks/guide.md", "notebooks/method.md", "notebooks/api.md")


@pytest.fixture
def run_blocks(tmp_path, monkeypatch):
    """Runs every Python block of a page, one after the other, as a user would."""
    monkeypatch.chdir(tmp_path)

    def run(page: str) -> dict[str, Any]:
        blocks = re.findall(
            r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL
        )
        assert blocks
        space: dict[str, Any] = {}
        for block in blocks:
            exec(compile(block, page, "exec"), space)
        return space

    return run


@pytest.mark.slow
def test_readme_code_runs(run_blocks, capsys):
    """What it trains learns what the README says, and NNX as well as Linen."""
    space = run_blocks("README.md")
    assert "flag" in capsys.readouterr().out
    assert space["value"] < 0.1
    outputs = space["tuned_net"](space["images"][:8])
    assert outputs.shape == (8, 10)
    assert np.isfinite(outputs).all()


@pytest.mark.slow
def test_guide_code_runs(run_blocks, tmp_path):
    space = run_blocks("notebooks/guide.md")
    assert np.allclose(space["table"].output_rms, 1, rtol=1e-3)
    plain = space["model"].apply({"params": space["params"]}, space["x"])
    same = space["tuned"].apply(
        {"params": space["params"], "scales": space["scales"]}, space["x"]
    )
    head = space["scales"]["head"]["output"]
    assert np.allclose(plain * head, same, atol=1e-4 * abs(np.asarray(same)).max())
    assert int(space["state"].step) == 4
    artist = ("generator", "artist", "noise", "artist_loss", "artist_scales")
    judge = ("discriminator", "judge", "both", "is_real_loss", "judge_scales")
    space["artist_loss"] = space["fooling"](space["tuned_judge"])
    for names in (artist, judge):
        *args, scales = (space[name] for name in names)
        measured = ei.measure(*args, scales=scales, optimizer=optax.adam)
        assert np.allclose(measured.output_rms, 1, rtol=1e-3)
        assert np.isclose(np.max(measured.total_update_rms), 1, rtol=0.01)
    assert jax.tree.all(jax.tree.map(np.array_equal, space["scales"], space["again"]))
    assert (tmp_path / "run.html").read_text().count("<img") == 4
    assert list((tmp_path / "logs").iterdir())
    assert set(space["check"].verdicts().values()) <= {"flat", "grows", "shrinks"}
    assert np.isfinite(space["history"].gradients.std[:3]).all()
    for sharded, alone in zip(
        jax.tree.leaves(space["sharded_scales"]),
        jax.tree.leaves(space["forward"]),
        strict=True,
    ):
        assert np.allclose(sharded, alone, rtol=1e-4)


@pytest.mark.parametrize("page", PAGES)
def test_door_lists_what_pages_name(page):
    """Every `ei.name` on it is public."""
    names = set(re.findall(r"\bei\.([A-Za-z_]+)", (ROOT / page).read_text()))
    assert names or page == "notebooks/method.md"
    assert not {name for name in names if not hasattr(ei, name)}


@pytest.mark.parametrize("page", [*PAGES, "tests/benchmarks/README.md"])
def test_links_lead_somewhere(page):
    """To files that are there, and to headings that they have."""
    folder = (ROOT / page).parent
    links = re.findall(
        r"\]\(([^)\s]+)\)", re.sub(r"\s*\n\s*", " ", (ROOT / page).read_text())
    )
    local = [link for link in links if not link.startswith("http")]
    assert local
    for link in local:
        name, _, heading = link.partition("#")
        target = folder / name if name else ROOT / page
        assert target.exists(), link
        if heading:
            assert heading in headings(target.read_text()), link


def headings(text: str) -> set[str]:
    """The anchors of a page's headings."""
    found = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    plain = [re.sub(r"[^\w\- ]", "", line.lower()) for line in found]
    return {line.replace(" ", "-") for line in plain}


def test_the_readme_is_short():
    """What is longer belongs to the guide, the method or the benchmarks."""
    assert len((ROOT / "README.md").read_text().splitlines()) <= 220
