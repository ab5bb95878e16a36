"""The notebooks run from top to bottom, and are kept as they ran."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
EVERY = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def test_there_are_notebooks():
    assert NOTEBOOKS


SMALL = {"STEPS": 12, "DEPTH": 6, "BLOCKS": 2, "WIDTHS": (32, 64)}
"""So that it is all run, and not all learned."""


@pytest.mark.slow
@EVERY
def test_notebook_runs(path, tmp_path):
    """Any error is fatal. Small networks train for a few steps, as what they learn was
    seen when outputs were kept."""
    notebook = json.loads(path.read_text())
    first = next(cell for cell in notebook["cells"] if cell["cell_type"] == "code")
    names = {n for line in first["source"] for n in re.findall(r"[A-Z]{2,}", line)}
    assert "STEPS" in names
    small = [f"{name} = {n}\n" for name, n in SMALL.items() if name in names]
    sizes = next(i for i, line in enumerate(first["source"]) if "STEPS" in line)
    first["source"][sizes] += "\n" + "".join(small)
    short = tmp_path / path.name
    short.write_text(json.dumps(notebook))
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "jupyter", "execute", str(short)]
    run = subprocess.run(command, env=env, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]


@EVERY
def test_notebook_keeps_its_outputs(path):
    """Every cell was run, in order, without an error; some figure is there to see."""
    cells = json.loads(path.read_text())["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell["outputs"]]
    assert not [o for o in outputs if o["output_type"] == "error"]
    assert [o for o in outputs if "image/png" in o.get("data", {})]
