"""Eight devices: the batch over one mesh axis, large parameters over the other."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
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
