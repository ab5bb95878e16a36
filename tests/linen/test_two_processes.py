"""Two processes of four devices: the batch and the parameters are spread over both."""

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
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


class Layer(nn.Module):
    """A residual layer of the scanned stack."""

    @nn.compact
    def __call__(self, x, _):
        return x + jnp.tanh(nn.Dense(16)(x)), None


class Mlp(nn.Module):
    """Layers under a scan, a norm, and a head too narrow to be split."""

    @nn.compact
    def __call__(self, x):
        x = jnp.tanh(nn.Dense(16)(x))
        x, _ = nn.scan(
            Layer, variable_axes={"params": 0}, split_rngs={"params": True}, length=2
        )()(x, None)
        return nn.Dense(3)(nn.LayerNorm()(x))


def loss_fn(y, key):
    return jnp.mean(jnp.square(y - jax.random.normal(key, y.shape)))


def arguments():
    """The model, its parameters and a batch, on one device."""
    x = jax.random.normal(jax.random.key(0), (32, 8))
    model = Mlp()
    return model, model.init(jax.random.key(1), x)["params"], x


def numbers(model, params, x) -> dict:
    """What the verbs give: nested dicts of arrays."""
    scales = ei.tune(model, params, x, loss_fn)
    stepped = ei.tune(model, params, x, loss_fn, optimizer=ADAM)
    table = ei.measure(model, params, x, loss_fn, scales=stepped, optimizer=ADAM)
    columns = ("output_rms", "input_grad_rms", "update_rms", "total_update_rms",
               "param_grad_rms", "cosine", "loss", "flag")  # fmt: skip
    return {
        "scales": scales,
        "stepped": stepped,
        "folded": ei.fold(model, params, scales, x),
        "table": {name: getattr(table, name) for name in columns},
    }


def flat(tree) -> dict[str, jax.Array]:
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree.leaves_with_path(tree)
    }


def worker(port: str, rank: str, out: str) -> None:
    """One of the processes: spreads the arguments, and saves what comes out."""
    jax.distributed.initialize(f"localhost:{port}", PROCESSES, int(rank))
    assert jax.device_count() == PROCESSES * DEVICES
    assert jax.local_device_count() == DEVICES
    mesh = jax.make_mesh(
        (jax.device_count(),), ("data",), axis_types=(jax.sharding.AxisType.Auto,)
    )

    def spread(value, spec):
        """The same value in each process, of which each device keeps its part."""
        value = np.asarray(value)
        sharding = NamedSharding(mesh, spec)
        return jax.make_array_from_callback(value.shape, sharding, lambda i: value[i])

    def fully_sharded(p):
        """Its first axis that the devices divide is split, as in FSDP."""
        split = [i for i, n in enumerate(p.shape) if n % mesh.size == 0][:1]
        return spread(p, P(*("data" if i in split else None for i in range(p.ndim))))

    model, params, x = arguments()
    params = jax.tree.map(fully_sharded, params)
    some = params["Dense_0"]["kernel"]
    assert not some.is_fully_addressable
    assert not some.is_fully_replicated
    found = numbers(model, params, spread(x, P("data")))
    for name in ("scales", "stepped"):
        for scale in jax.tree.leaves(found[name]):
            assert scale.sharding.is_fully_replicated
    whole = jax.jit(lambda t: t, out_shardings=NamedSharding(mesh, P()))(found)
    arrays: Any = {name: np.asarray(leaf) for name, leaf in flat(whole).items()}
    np.savez(f"{out}{rank}.npz", **arrays)


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("localhost", 0))
        return s.getsockname()[1]


def environment() -> dict[str, str]:
    own = {"JAX_PLATFORMS": "cpu", "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo"}
    return os.environ | own | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": FLAGS}


@pytest.mark.slow
def test_two_processes_agree_with_one(tmp_path):
    """To 1e-5: factors with and without an optimizer, the measurement, the fold.

    But for the rounding of the largest of several elements.
    Those of one process's half of the batch are others.
    """
    port, out = str(free_port()), str(tmp_path / "found")
    start = lambda rank: subprocess.Popen(
        [sys.executable, __file__, port, str(rank), out],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    workers = [start(rank) for rank in range(PROCESSES)]
    try:
        alone = {k: np.asarray(v) for k, v in flat(numbers(*arguments())).items()}
        for process in workers:
            said, _ = process.communicate(timeout=300)
            assert process.returncode == 0, said
    finally:
        for process in workers:
            process.kill()
    for rank in range(PROCESSES):
        with np.load(f"{out}{rank}.npz") as file:
            found = dict(file)
        assert found.keys() == alone.keys()
        for name, value in alone.items():
            rounding = 1e-7 * np.max(np.abs(value), initial=0)
            np.testing.assert_allclose(
                found[name], value, rtol=1e-5, atol=rounding, err_msg=name
            )
    model, params, x = arguments()
    half = ei.tune(model, params, x[: len(x) // PROCESSES], loss_fn)["Dense_0"]
    for name, value in half.items():
        assert abs(float(value / alone[f"scales/Dense_0/{name}"]) - 1) > 1e-3, name


if __name__ == "__main__":
    worker(*sys.argv[1:])
