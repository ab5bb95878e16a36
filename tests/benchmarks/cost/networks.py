"""The networks that are timed, large enough for a run of some milliseconds."""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from tests.support.cases import Job, cross_entropy, make, normal
from tests.support.models.convolutional import PreActBlock

ACTIVATIONS = {"tanh": jnp.tanh, "relu": nn.relu}


class Plain(nn.Module):
    """`depth` dense layers, the last of them a linear readout."""

    depth: int
    width: int = 256
    activation: str = "tanh"
    outputs: int = 10

    @nn.compact
    def __call__(self, x):
        for i in range(self.depth - 1):
            x = nn.Dense(self.width, name=f"layer{i}")(x)
            x = ACTIVATIONS[self.activation](x)
        return nn.Dense(self.outputs, name="head")(x)


class Layer(nn.Module):
    """One step of a scan over layers."""

    width: int
    residual: bool

    @nn.compact
    def __call__(self, x, _):
        h = jnp.tanh(nn.Dense(self.width, name="dense")(x))
        return (x + h if self.residual else h), None


class Scanned(nn.Module):
    """`depth` dense layers of one size, all but the readout under one `nn.scan`."""

    depth: int
    width: int = 256
    residual: bool = False

    @nn.compact
    def __call__(self, x):
        layers = nn.scan(
            Layer,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=self.depth - 1,
        )
        x, _ = layers(self.width, self.residual, name="layers")(x, None)
        return nn.Dense(10, name="head")(x)


class Block(nn.Module):
    """A pre-norm transformer block."""

    @nn.compact
    def __call__(self, x):
        width = x.shape[-1]
        h = nn.LayerNorm(name="norm1")(x)
        x = x + nn.MultiHeadDotProductAttention(num_heads=4, name="attention")(h)
        h = nn.Dense(4 * width, name="up")(nn.LayerNorm(name="norm2")(x))
        return x + nn.Dense(width, name="down")(nn.gelu(h))


class ViT(nn.Module):
    """A vision transformer that averages its tokens."""

    blocks: int = 4
    width: int = 128

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(self.width, (4, 4), strides=4, name="patches")(x)
        x = x.reshape(x.shape[0], -1, self.width)
        positions = nn.initializers.normal(0.02)
        x = x + self.param("positions", positions, (1, *x.shape[1:]))
        for i in range(self.blocks):
            x = Block(name=f"block{i}")(x)
        return nn.Dense(10, name="head")(nn.LayerNorm(name="norm")(x).mean(1))


class ResNet(nn.Module):
    """A pre-activation residual network of three resolutions."""

    width: int = 16

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(self.width, (3, 3), use_bias=False, name="stem")(x)
        for i, (factor, strides) in enumerate([(1, 1), (1, 1), (2, 2), (4, 2)]):
            x = PreActBlock(factor * self.width, strides, name=f"block{i}")(x)
        x = nn.BatchNorm(use_running_average=False, name="norm")(x)
        return nn.Dense(10, name="head")(nn.relu(x).mean((1, 2)))


def dense(model: nn.Module, batch: int = 64) -> Job:
    """A dense network on random inputs and labels."""
    return make(model, normal(batch, 256), cross_entropy)


def vision(model: nn.Module, batch: int = 32) -> Job:
    """A network on random images and labels."""
    return make(model, normal(batch, 32, 32, 3), cross_entropy)


def gradient_step(job: Job) -> Callable:
    """The jitted loss and its gradient, of parameters, variables, inputs and a key."""

    @jax.jit
    @partial(jax.value_and_grad, argnums=0)
    def step(params: Any, collections: Any, x: Any, key: jax.Array) -> jax.Array:
        variables = {**collections, "params": params}
        outputs, _ = job.model.apply(variables, x, mutable=["batch_stats"])
        return job.loss_fn(outputs, key=key)

    return step
