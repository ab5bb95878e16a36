"""Eight devices: the batch over one mesh axis, large parameters over the other."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import einit_jax as ei


class Layer(nn.Module):
    """A layer of the scanned stack."""

    @nn.compact
    def __call__(self, x, _):
        return jnp.tanh(nn.Dense(64)(x)), None


class Mlp(nn.Module):
    """Wide enough to be split, deep enough to have layers under a scan."""

    @nn.compact
    def __call__(self, x):
        x = jnp.tanh(nn.Dense(64)(x))
        x, _ = nn.scan(
            Layer, variable_axes={"params": 0}, split_rngs={"params": True}, length=3
        )()(x, None)
        return nn.Dense(8)(jnp.tanh(nn.Dense(64)(x)))


def loss_fn(y, key):
    return jnp.mean(jnp.square(y - jax.random.normal(key, y.shape)))


def test_sharded_equals_single_device():
    """To 1e-5, and the scales are on every device."""
    assert jax.device_count() == 8
    mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ("data", "model"))
    x = jax.random.normal(jax.random.key(0), (32, 16))
    model = Mlp()
    params = model.init(jax.random.key(1), x)["params"]
    alone = ei.tune(model, params, x, loss_fn)

    def place(p):
        spec = P(None, "model") if p.ndim == 2 and p.shape[1] > 8 else P()
        return jax.device_put(p, NamedSharding(mesh, spec))

    split = jax.tree.map(place, params)
    batch = jax.device_put(x, NamedSharding(mesh, P("data")))
    scales = ei.tune(model, split, batch, loss_fn)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5)
    jax.tree.map(close, alone, scales)
    assert all(s.sharding.is_fully_replicated for s in jax.tree.leaves(scales))
    table = ei.measure(model, split, batch, loss_fn, scales=scales)
    np.testing.assert_allclose(table.output_rms, 1, rtol=1e-4)
    np.testing.assert_allclose(table.update_rms, table.update_rms[0], rtol=1e-4)
    np.testing.assert_allclose(table.total_update_rms.max(), 1, rtol=1e-4)


class Explicit(nn.Module):
    """Written for explicit axes: a kernel split by columns, and one gathered after."""

    on_mesh: bool = True

    @nn.compact
    def __call__(self, x):
        h = jnp.tanh(nn.Dense(16, name="split")(x))
        if self.on_mesh:
            h = jax.sharding.reshard(h, P("data", None))
        return nn.Dense(4, name="whole")(nn.LayerNorm(name="norm")(h))


@pytest.mark.slow
def test_split_parameters_on_explicit_axes():
    """The batch over one axis and a kernel over the other: what one device finds."""
    x = jax.random.normal(jax.random.key(0), (32, 8))
    alone = Explicit(on_mesh=False)
    params = alone.init(jax.random.key(1), x)["params"]
    scales = ei.tune(alone, params, x, loss_fn)
    table = ei.measure(alone, params, x, loss_fn, scales=scales)
    mesh = jax.make_mesh((4, 2), ("data", "model"))
    assert set(mesh.axis_types) == {AxisType.Explicit}

    def place(path, leaf):
        columns = path[0].key == "split"
        spec = P(*[None] * (leaf.ndim - 1), "model") if columns else P()
        return jax.device_put(leaf, NamedSharding(mesh, spec))

    with jax.set_mesh(mesh):
        split = jax.tree.map_with_path(place, params)
        batch = jax.device_put(x, NamedSharding(mesh, P("data")))
        found = ei.tune(Explicit(), split, batch, loss_fn)
        there = ei.measure(Explicit(), split, batch, loss_fn, scales=found)
        folded = ei.fold(Explicit(), split, found, batch)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    jax.tree.map(close, scales, found)
    for name in ("output_rms", "input_grad_rms", "update_rms", "total_update_rms"):
        close(getattr(table, name), getattr(there, name))
    jax.tree.map(close, ei.fold(alone, params, scales, x), folded)


def test_each_device_tunes_for_its_part_inside_of_shard_map():
    """What it finds on its part of the batch alone, with `check_vma` or without."""
    x = jax.random.normal(jax.random.key(0), (32, 16))
    model = nn.Sequential([nn.Dense(8), jnp.tanh, nn.Dense(4)])
    params = model.init(jax.random.key(1), x)["params"]
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))

    def inside(params, x):
        return jax.tree.map(lambda s: s[None], ei.tune(model, params, x, loss_fn))

    for check in (True, False):
        split = {"in_specs": (P(), P("data")), "out_specs": P("data")}
        run = jax.shard_map(inside, mesh=mesh, check_vma=check, **split)
        scales = jax.jit(run)(params, x)
        for i, part in enumerate(jnp.split(x, 2)):
            own = ei.tune(model, params, part, loss_fn)
            for a, b in zip(*map(jax.tree.leaves, (scales, own)), strict=True):
                np.testing.assert_allclose(a[i], b, rtol=1e-5)
        first, second = jax.tree.leaves(scales)[0]
        assert abs(first - second) > 1e-3 * first
