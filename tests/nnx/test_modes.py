"""NNX models over a mesh, in 64 bits, and in Flax's other mode of graphs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import einit_jax as ei
from tests.support.checks import allclose, same
from tests.support.nnx_models import NNX_CASES
from tests.support.nnx_models.judged import Judged

X = jax.random.normal(jax.random.key(1), (16, 8))
to_one = lambda outputs: jnp.mean(jnp.square(outputs - 1))


class Split(nnx.Module):
    """Two layers, each split over the axis that both share."""

    def __init__(self, rngs: nnx.Rngs, dtype=jnp.float32):
        draw = nnx.initializers.lecun_normal()
        split = lambda *axes: nnx.with_partitioning(draw, axes)
        layer = lambda *sizes, axes: nnx.Linear(
            *sizes, kernel_init=split(*axes), param_dtype=dtype, rngs=rngs
        )
        self.up = layer(8, 16, axes=(None, "model"))
        self.down = layer(16, 8, axes=("model", None))

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.down(nnx.relu(self.up(x)))


def test_parameters_and_batch_are_split_over_a_mesh():
    """Scales are those of one device, to rounding; parameters stay where they are."""
    mesh = Mesh(np.array(jax.devices()[:8]).reshape(2, 4), ("data", "model"))
    with jax.set_mesh(mesh):

        @nnx.jit
        def make():
            model = Split(nnx.Rngs(0))
            state = nnx.state(model)
            placed = nnx.get_partition_spec(state)
            nnx.update(model, jax.lax.with_sharding_constraint(state, placed))
            return model

        model = make()
        split = model.up.kernel[...].sharding
        assert split.spec == PartitionSpec(None, "model")
        x = jax.device_put(X, NamedSharding(mesh, PartitionSpec("data")))
        scales = ei.tune(model, None, x, to_one)
        tuned = ei.scaled(model, scales)
        outputs = nnx.jit(lambda net, x: net(x))(tuned, x)
        folded = ei.fold(model, None, scales, x)
        drawn = ei.lsuv(model, None, x)
    assert tuned.up.kernel[...].sharding == split
    assert folded.up.kernel[...].sharding == split
    assert drawn["up"]["kernel"].get_value().sharding == split
    assert all(
        factor.sharding.is_fully_replicated for factor in jax.tree.leaves(scales)
    )
    values = jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(model, nnx.Param)))
    with nnx.use_eager_sharding(False):
        alone = Split(nnx.Rngs(0))
        alone_scales = ei.tune(alone, jax.tree.map(jnp.asarray, values), X, to_one)
    allclose(scales, alone_scales, rtol=1e-5)
    np.testing.assert_allclose(outputs, folded_outputs(folded), rtol=1e-4, atol=1e-4)


def folded_outputs(folded: nnx.Module) -> np.ndarray:
    """What a folded model returns, whole."""
    return np.asarray(nnx.jit(lambda net, x: net(x))(folded, X))


def test_64_bits():
    with jax.enable_x64(True), nnx.use_eager_sharding(False):
        model, x = Split(nnx.Rngs(0), jnp.float64), X.astype(jnp.float64)
        scales = ei.tune(model, None, x, to_one)
        table = ei.measure(model, None, x, to_one, scales=scales)
        np.testing.assert_allclose(table.output_rms, 1, rtol=1e-6)
        outputs = ei.scaled(model, scales)(x)
        assert outputs.dtype == jnp.float64


TREES = ("list", "scan_layers", "batch_norm_train", "rnn_gru", "dropout", "cond",
         "tied_embedding", "jit_method", "remat_function", "lax_scan")  # fmt: skip


@pytest.mark.parametrize("name", TREES)
def test_modules_as_trees(name):
    """Where `NNX_GRAPH_MODE` is off transforms take modules for pytrees."""
    judged = Judged(NNX_CASES[name])
    expected = judged.tune()
    outputs = run(judged, ei.scaled(judged.model(), expected))
    with nnx.set_graph_mode(False):
        got = judged.tune()
        again = run(judged, ei.scaled(judged.model(), got))
    allclose(got, expected, rtol=1e-5)
    assert not same(outputs, run(judged, judged.model()))
    allclose(again, outputs, rtol=1e-4, atol=1e-5)


def run(judged: Judged, model: nnx.Module):
    """Outputs of a call inside of `nnx.jit`."""
    call = nnx.jit(lambda net, args: net(*args, **judged.case.kwargs))
    return call(model, judged.case.args(jax.random.key(1)))
