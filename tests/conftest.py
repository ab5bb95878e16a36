"""How the tests run: on eight CPU devices, compiled for a short compile time."""

import gc
import os
from contextlib import nullcontext
from itertools import accumulate
from pathlib import Path

from jaxlib.version import __version__ as jaxlib_version

FLAGS = [
    "--xla_force_host_platform_device_count=8",
    "--xla_backend_optimization_level=0",  # most of the time here goes into compiling
    "--xla_llvm_disable_expensive_passes=true",
]
# The older emitters of kernels, and all kernels in one module: half the time. A later
# XLA may have other flags, and it ends the process at one that it does not know.
if jaxlib_version.startswith("0.10."):
    FLAGS += [
        "--xla_cpu_use_fusion_emitters=false",
        "--xla_cpu_parallel_codegen_split_count=1",
    ]
os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *FLAGS])
os.environ.setdefault("JAX_PLATFORMS", "cpu")

# What was compiled once, by any process, in any run and checkout of this user, is not
# compiled again: two fifths of the time of a second run.
CACHES = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
COMPILED = CACHES / "einit_jax" / "compiled"
KEPT = 2**31
"""Bytes of it that are kept from one run to the next."""
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(COMPILED))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

# Signatures are checked, shapes and dtypes included, as typechecker.py tells; not those
# of slow tests, which call nothing that others do not call; see `refuses`, too.
from tests.support import typechecker  # noqa: E402

typechecker.install()


import jax  # noqa: E402
import pytest  # noqa: E402
from xdist.scheduler import LoadScopeScheduling  # noqa: E402

from tests.support.checks import unchecked  # noqa: E402
from tests.support.models import CASES  # noqa: E402

# Where in the source an operation was written would be told to XLA, which nobody reads.
jax.config.update("jax_traceback_in_locations_limit", 0)

# Tracing makes many objects that live: looking among all of them for garbage takes a
# third of the time, so that is done where programs are forgotten, and not in between.
gc.set_threshold(50_000, 20, 1_000_000)


def group_of(nodeid: str) -> str:
    """The tests of one model, and those of one file, share what they have compiled."""
    file, _, test = nodeid.partition("::")
    name = test.partition("[")[2].removesuffix("]")
    if name in CASES:
        return name
    alone = file.startswith(("einit_jax/", "tests/package/", "tests/fuzz/"))
    return nodeid if alone else file


class ByGroup(LoadScopeScheduling):
    """The tests of a group run one after the other, on one worker."""

    def _split_scope(self, nodeid: str) -> str:
        return group_of(nodeid)


def pytest_xdist_make_scheduler(config, log):
    """In the place of marks: xdist 3.8 does not see them with pytest 9.2."""
    return ByGroup(config, log) if config.getvalue("dist") == "loadgroup" else None


def pytest_configure(config):
    """Before the workers start, what was not read for longest goes."""
    if hasattr(config, "workerinput") or not COMPILED.is_dir():
        return
    latest = sorted(
        ((file, file.stat()) for file in COMPILED.iterdir()),
        key=lambda pair: pair[1].st_atime,
        reverse=True,
    )
    total = accumulate(stat.st_size for _, stat in latest)
    for (file, _), kept in zip(latest, total, strict=True):
        if kept > KEPT:
            file.unlink(missing_ok=True)


@pytest.fixture(autouse=True)
def check_signatures(request):
    """Not in slow tests: a tenth of their time."""
    with unchecked() if request.node.get_closest_marker("slow") else nullcontext():
        yield


FORGET = 120
_since: list[str] = []


@pytest.fixture(autouse=True)
def forget_programs(request):
    """Compiled programs hold memory, and memory maps, of which a process may have some
    65000."""
    nodeid = request.node.nodeid
    if len(_since) >= FORGET and group_of(_since[-1]) != group_of(nodeid):
        jax.clear_caches()
        gc.collect()
        _since.clear()
    _since.append(nodeid)
