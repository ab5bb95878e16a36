"""Python in a process of its own, for what the tests' own has done already."""

import subprocess
import sys
from typing import Any


def run_python(code: str, **how: Any) -> subprocess.CompletedProcess[str]:
    """What running some code printed; it is to end well."""
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, **how
    )
