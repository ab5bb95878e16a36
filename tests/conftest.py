"""How the tests run: on eight CPU devices, compiled for a short compile time."""

import gc
import os

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

# Signatures are checked, shapes and dtypes included; not those of the public verbs,
# which are called with wrong arguments on purpose and refuse them in their own words.
from jaxtyping import install_import_hook  # noqa: E402

CHECKED = (
    "_math", "_search", "_lift", "_paths", "_hook", "_graph", "_units", "_regions",
    "_potentials", "_plan", "_probe", "_sweep", "_observe", "_measurement", "_changes",
    "_state", "_settle", "_looks", "_solve", "_updates", "_optimizer", "_options",
    "_fold", "_unit_params", "_demo", "_tables", "_figures", "_taps", "_places",
    "_history", "_charts", "_spread", "_pair", "_page", "_views", "_uses", "_geometry",
    "_roles", "_sites", "_presets", "_rules", "_draws", "_quotient", "_descent",
    "_resize", "_cost", "_strategies", "_learning", "_comparison", "_panels", "_jobs",
    "_signals", "_elements", "_values", "_estimate", "_moving", "_loops", "_sums",
    "_products", "_estimators", "_predict", "_layers", "_variances", "_sequential",
    "_orthonormal", "_progress",
)  # fmt: skip
install_import_hook([f"einit_jax.{name}" for name in CHECKED], "beartype.beartype")

import itertools  # noqa: E402

import jax  # noqa: E402
import pytest  # noqa: E402

# Tracing makes many objects that live: looking among them for garbage takes 5%.
gc.set_threshold(50_000)

FORGET = 25
_count = itertools.count(1)


@pytest.fixture(autouse=True)
def forget_programs():
    """Compiled programs hold memory maps, of which a process may have some 65000."""
    yield
    if next(_count) % FORGET == 0:
        jax.clear_caches()
