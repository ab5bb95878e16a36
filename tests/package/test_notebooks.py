"""The notebooks run from top to bottom, and are kept as they ran."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
EVERY = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def test_there_are_notebooks():
    assert NOTEBOOKS


FEW = "STEPS = 12  # so that it is all run, and not all learned"


@pytest.mark.slow
@EVERY
def test_notebook_runs(path, tmp_path):
    """Any error is fatal. Compiled as for users, not as for short tests; networks train
    for a few steps, as what they learn was seen when outputs were kept."""
    notebook = json.loads(path.read_text())
    first = next(cell for cell in notebook["cells"] if cell["cell_type"] == "code")
    assert any("STEPS = " in line or ", STEPS" in line for line in first["source"])
    first["source"].append(f"\n{FEW}")
    short = tmp_path / path.name
    short.write_text(json.dumps(notebook))
    env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    env["PYTHONPATH"] = str(ROOT)
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
