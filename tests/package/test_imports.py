"""The bare import is light."""

import subprocess
import sys


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
