"""Numbers are the same in every process, whatever its memory held before."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from tests.support import rests

ROOT = Path(__file__).parents[2]


def in_a_process(filling: str | None) -> dict:
    """The numbers with XLA as users have it, in memory filled with such bytes."""
    env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    env["JAX_ENABLE_COMPILATION_CACHE"] = "false"  # programs are of that process, too
    if filling is not None:
        env["MALLOC_PERTURB_"] = filling
    command = [sys.executable, "-m", "tests.support.rests"]
    run = subprocess.run(
        command, cwd=ROOT, env=env, capture_output=True, text=True, check=True
    )
    return json.loads(run.stdout)


@pytest.mark.slow
def test_numbers_are_those_of_every_process():
    """To the bit, and without compilation up to rounding."""
    first, *others = [in_a_process(filling) for filling in (None, "63")]
    assert all(other == first for other in others)
    with jax.disable_jit():
        eager = rests.numbers()
    assert eager.keys() == first.keys()
    for name, own in eager.items():
        assert own.keys() == first[name].keys()
        for quantity, value in own.items():
            found = first[name][quantity]
            np.testing.assert_allclose(found, value, rtol=1e-5, err_msg=quantity)
