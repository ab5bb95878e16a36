"""What rots unnoticed: imports, file sizes, the bare import, the README."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted((ROOT / "einit_jax").glob("*.py"))

LAYERS = (  # arithmetic and plain things first
    {"_math", "_search", "_lift", "_classes", "_tables", "_files", "_page", "_cost"}
    | {"_gain", "_fans", "_views", "_hypercubes"},
    {"_quotient", "_descent", "_signals"},
    {"_inputs", "_paths", "_jaxprs", "_figures", "_elements"},
    {"_hook", "_walk", "_uses", "_roles", "_ties", "_charts", "_panels", "_values"},
    {"_graph", "_taps", "_history", "_spread", "_estimate"},  # what Flax shows
    {"_units", "_regions", "_geometry", "_comparison", "_moving", "_loops"},
    {"_problem", "_potentials", "_places", "_sums"},
    {"_plan", "_probe", "_scaled", "_sweep", "_observe", "_measurement", "_optimizer"}
    | {"_products"},
    {"_changes", "_state", "_pair", "_sites", "_resize", "_estimators"},
    {"_settle", "_looks", "_updates", "_options", "_presets", "_predict", "_layers"},
    {"_solve", "_rules", "_variances"},
    {"_draws", "_progress"},
    {"_orthonormal", "_sequential"},
    {"_tune", "_measure", "_fold", "_train", "_unit_params", "_initialize"},  # verbs
    {"_metainit", "_gradinit", "_autoinit", "_lsuv"},
    {"_plot", "_stats", "_coordinates", "_demo"},  # reports
    {"_strategies", "_jobs"},
    {"_learning"},
    {"_compare", "_report"},
    {"__main__", "__init__"},
)


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_imports_point_one_way(file):
    """A file imports only from layers below its own, and nobody imports the door."""
    depth = {name: i for i, layer in enumerate(LAYERS) for name in layer}
    tree = ast.parse(file.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            assert node.module, "nothing imports __init__"
            assert depth[node.module] < depth[file.stem], (file.stem, node.module)


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_files_stay_small(file):
    assert len(file.read_text().splitlines()) <= (
        60 if file.stem == "__init__" else 300
    )


def test_bare_import_is_light():
    """No extra is imported, no device is touched, nothing is printed."""
    code = (
        "import sys, einit_jax; "
        "heavy = {'sklearn', 'matplotlib', 'orbax', 'beartype'} & set(sys.modules); "
        "from jax._src import xla_bridge; "
        "print(sorted(heavy), xla_bridge.backends_are_initialized())"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == "[] False"
    assert run.stderr == ""


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
