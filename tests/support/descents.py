"""A network whose weights are too large, and what descends on it."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

KEY = jax.random.key(0)
WAYS = jax.random.normal(jax.random.key(5), (8, 4))


class Deep(nn.Module):
    """A ReLU chain, its weights `size` times those of He."""

    size: float = 2.0

    @nn.compact
    def __call__(self, x):
        draw = nn.initializers.variance_scaling(2 * self.size**2, "fan_in", "normal")
        for _ in range(5):
            x = nn.relu(nn.Dense(32, kernel_init=draw)(x))
        return nn.Dense(4, kernel_init=draw)(x)


def draw(key):
    return jax.random.normal(key, (64, 8))


def loss_fn(logits, inputs):
    labels = jnp.argmax(inputs @ WAYS, -1)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


MODEL = Deep()
PARAMS = MODEL.init(KEY, draw(KEY))["params"]


def loss_of(params, x):
    return loss_fn(MODEL.apply({"params": params}, x), x)


@jax.jit
def trained(params):
    """The losses of 200 steps of SGD on fresh batches."""

    def step(params, key):
        value, gradient = jax.value_and_grad(loss_of)(params, draw(key))
        return jax.tree.map(lambda p, g: p - 0.3 * g, params, gradient), value

    return jax.lax.scan(step, params, jax.random.split(jax.random.key(9), 200))[1]
