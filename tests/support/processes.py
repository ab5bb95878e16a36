"""Python in processes of its own: for what the tests' own has done already, and for
what several processes do together.
"""

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import einit_jax as ei

ROOT = Path(__file__).parents[2]
PROCESSES, DEVICES = 2, 4
FLAGS = (
    f"--xla_force_host_platform_device_count={DEVICES} "
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
)
ADAM = optax.adam(1.0)
RTOL, OF_DIFFERENCES = 1e-5, 1e-4
"""What rounding may do; and to changes of units under a scan, which `measure` finds as
differences over 2**-10 of a step."""
Place = Callable[[Any], jax.Array]
Arguments = Callable[[Place, Place], tuple[Any, Any, jax.Array]]
"""`arguments(place, spread)` gives the model, its parameters, of which each array was
given to `place`, and a batch that was given to `spread`."""


def run_python(code: str, **how: Any) -> subprocess.CompletedProcess[str]:
    """What running some code printed; it is to end well."""
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, **how
    )


# The verbs, where batch and parameters are spread over two processes.


def loss_fn(y: jax.Array, key: jax.Array) -> jax.Array:
    """The distance to draws of the key."""
    return jnp.mean(jnp.square(y - jax.random.normal(key, y.shape)))


def on_one_device(arguments: Arguments) -> tuple[Any, Any, jax.Array]:
    """The model, its parameters and a batch, as they are without any mesh."""
    return arguments(jnp.asarray, jnp.asarray)


def numbers(model: Any, params: Any, x: jax.Array) -> dict[str, Any]:
    """What the verbs give: nested dicts of arrays, or states of NNX."""
    scales = ei.tune(model, params, x, loss_fn)
    stepped = ei.tune(model, params, x, loss_fn, optimizer=ADAM)
    table = ei.measure(model, params, x, loss_fn, scales=stepped, optimizer=ADAM)
    folded = ei.fold(model, params, scales, x)
    if isinstance(folded, nnx.Module):
        folded = nnx.state(folded, nnx.Param)
    columns = ("output_rms", "input_grad_rms", "update_rms", "total_update_rms",
               "param_grad_rms", "cosine", "loss", "flag")  # fmt: skip
    return {
        "scales": scales,
        "stepped": stepped,
        "folded": folded,
        "table": {name: getattr(table, name) for name in columns},
    }


def check_agreement(file: str, arguments: Arguments, folder: Path) -> dict[str, Any]:
    """Asserts that two processes, which run a file, find what this one finds.

    But for rounding, that of the largest of several elements among it: factors with
    and without an optimizer, the measurement, the fold. Returns what this one finds.
    """
    port, out = str(_free_port()), str(folder / "found")
    start = lambda rank: subprocess.Popen(
        [sys.executable, file, port, str(rank), out],
        env=_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    workers = [start(rank) for rank in range(PROCESSES)]
    try:
        found = numbers(*on_one_device(arguments))
        alone = {name: np.asarray(value) for name, value in _flat(found).items()}
        for process in workers:
            said, _ = process.communicate(timeout=300)
            assert process.returncode == 0, said
    finally:
        for process in workers:
            process.kill()
            process.wait()
            assert process.stdout
            process.stdout.close()
    for rank in range(PROCESSES):
        with np.load(f"{out}{rank}.npz") as saved:
            theirs = dict(saved)
        assert theirs.keys() == alone.keys()
        for name, value in alone.items():
            rounding = 1e-7 * np.max(np.abs(value), initial=0)
            rtol = OF_DIFFERENCES if name == "table/total_update_rms" else RTOL
            np.testing.assert_allclose(
                theirs[name], value, rtol=rtol, atol=rounding, err_msg=name
            )
    return alone


def check_half_differs(arguments: Arguments, alone: dict[str, Any], unit: str) -> None:
    """Asserts that factors of one process's part of the batch are others."""
    model, params, x = on_one_device(arguments)
    half = ei.tune(model, params, x[: len(x) // PROCESSES], loss_fn)[unit]
    for name, value in half.items():
        assert abs(float(value / alone[f"scales/{unit}/{name}"]) - 1) > 1e-3, name


def worker(arguments: Arguments, port: str, rank: str, out: str) -> None:
    """One of the processes: spreads the arguments, and saves what comes out."""
    jax.distributed.initialize(f"localhost:{port}", PROCESSES, int(rank))
    assert jax.device_count() == PROCESSES * DEVICES
    assert jax.local_device_count() == DEVICES
    mesh = jax.make_mesh(
        (jax.device_count(),), ("data",), axis_types=(jax.sharding.AxisType.Auto,)
    )

    def put(value: Any, spec: P) -> jax.Array:
        """The same value in each process, of which each device keeps its part."""
        value = np.asarray(value)
        sharding = NamedSharding(mesh, spec)
        return jax.make_array_from_callback(value.shape, sharding, lambda i: value[i])

    placed = []

    def fully_sharded(p: Any) -> jax.Array:
        """Its first axis that the devices divide is split, as in FSDP."""
        split = [i for i, n in enumerate(p.shape) if n % mesh.size == 0][:1]
        spec = P(*("data" if i in split else None for i in range(p.ndim)))
        placed.append(put(p, spec))
        return placed[-1]

    given = arguments(fully_sharded, lambda x: put(x, P("data")))
    split = [p for p in placed if not p.is_fully_replicated]
    assert split
    assert not any(p.is_fully_addressable for p in split)
    found = numbers(*given)
    for name in ("scales", "stepped"):
        for scale in jax.tree.leaves(found[name]):
            assert scale.sharding.is_fully_replicated
    whole = jax.jit(lambda t: t, out_shardings=NamedSharding(mesh, P()))(found)
    arrays: Any = {name: np.asarray(leaf) for name, leaf in _flat(whole).items()}
    np.savez(f"{out}{rank}.npz", **arrays)


def _flat(tree: Any) -> dict[str, jax.Array]:
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree.leaves_with_path(tree)
    }


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("localhost", 0))
        return s.getsockname()[1]


def _environment() -> dict[str, str]:
    own = {"JAX_PLATFORMS": "cpu", "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo"}
    # one process would find a program that the other compiles, and wait for it in vain
    own["JAX_ENABLE_COMPILATION_CACHE"] = "false"
    return os.environ | own | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": FLAGS}
