"""The README: its code runs, and its names are public."""

import re
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_readme_code_runs(tmp_path, monkeypatch):
    """Every Python block of the README, one after the other, as a user would."""
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "README.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert blocks
    space: dict = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), space)
    assert np.allclose(space["table"].output_rms, 1, rtol=1e-3)
    tuned = space["tuned"].apply(
        {"params": space["params"], "scales": space["scales"]}, space["x"]
    )
    assert np.allclose(space["logits"], tuned, atol=1e-4)
    assert int(space["state"].step) == 4
    assert (tmp_path / "run.html").read_text().count("<img") == 4
    assert set(space["check"].verdicts().values()) <= {"flat", "grows", "shrinks"}
    assert np.isfinite(space["history"].gradients.std[:3]).all()


def test_door_lists_what_readme_names():
    """Every `ei.name` in the README is public."""
    import einit_jax

    names = set(re.findall(r"\bei\.([A-Za-z_]+)", (ROOT / "README.md").read_text()))
    assert names
    assert not {name for name in names if not hasattr(einit_jax, name)}
