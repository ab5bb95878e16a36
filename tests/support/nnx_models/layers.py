"""The other layers of Flax: convolutions, contractions, adapters and wrappers."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx

from tests.support.cases import batches, integers, normal
from tests.support.nnx_models.cases import NnxCase, images, row, series, vectors


class Convolved(nnx.Module):
    """Two convolutions over as many axes as the size of the window has."""

    def __init__(self, rngs, conv=nnx.Conv, size=(3, 3), channels=3, **options):
        self.first = conv(channels, 8, size, rngs=rngs)
        self.second = conv(8, 8, size, strides=2, rngs=rngs, **options)
        self.head = nnx.Linear(8, 4, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.second(nnx.relu(self.first(x))))
        return self.head(x.mean(range(1, x.ndim - 1)))


class Tensors(nnx.Module):
    """Kernels of more than two axes, whose fan is not the first axis."""

    def __init__(self, rngs):
        self.split = nnx.LinearGeneral(8, (2, 4), rngs=rngs)
        self.heads = nnx.Einsum("nthd,hde->nthe", (2, 4, 6), (2, 6), rngs=rngs)
        self.merge = nnx.LinearGeneral((2, 6), 8, axis=(-2, -1), rngs=rngs)

    def __call__(self, x):
        return self.merge(nnx.tanh(self.heads(self.split(x))))


class PRelu(nnx.Module):
    """Activations with a slope to learn, in each a parameter of one number."""

    def __init__(self, rngs):
        self.first, self.slope = nnx.Linear(8, 16, rngs=rngs), nnx.PReLU()
        self.last, self.scalar = nnx.Linear(16, 4, rngs=rngs), nnx.PReLU(0.5)

    def __call__(self, x):
        return self.scalar(self.last(self.slope(self.first(x))))


def adapted(rngs):
    """`nnx.LoRA` around a layer: half of the adapter starts at zero."""
    base = nnx.Linear(8, 16, rngs=rngs)
    first = nnx.LoRA(8, 2, 16, base_module=base, rngs=rngs)
    return nnx.Sequential(first, nnx.tanh, nnx.Linear(16, 4, rngs=rngs))


def lora_linear(rngs):
    """Layers with the adapter inside of them."""
    lora = partial(nnx.LoRALinear, lora_rank=2, rngs=rngs)
    return nnx.Sequential(lora(8, 16), nnx.tanh, lora(16, 4))


class WeightNormed(nnx.Module):
    """`nnx.WeightNorm` writes a kernel of norm one over that of the layer within."""

    def __init__(self, rngs):
        self.norm = nnx.WeightNorm(nnx.Linear(8, 16, rngs=rngs), rngs=rngs)
        self.head = nnx.Linear(16, 4, rngs=rngs)

    def __call__(self, x):
        return self.head(nnx.tanh(self.norm(x)))


class SpectralNormed(nnx.Module):
    """`nnx.SpectralNorm` does so too, and keeps state."""

    def __init__(self, rngs):
        self.norm = nnx.SpectralNorm(nnx.Linear(8, 16, rngs=rngs), rngs=rngs)
        self.head = nnx.Linear(16, 4, rngs=rngs)

    def __call__(self, x, *, update_stats):
        return self.head(nnx.tanh(self.norm(x, update_stats=update_stats)))


class LinenMlp(nn.Module):
    """Layers of Linen."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(8)(nn.tanh(nn.Dense(16)(x)))


class Bridged(nnx.Module):
    """A Linen module among NNX ones."""

    def __init__(self, rngs):
        self.first = nnx.Linear(8, 8, rngs=rngs)
        self.linen = nnx.bridge.ToNNX(LinenMlp(), rngs=rngs).lazy_init(jnp.ones((1, 8)))
        self.head = nnx.Linear(8, 4, rngs=rngs)

    def __call__(self, x):
        return self.head(self.linen(nnx.tanh(self.first(x))))


class Messages(nnx.Module):
    """A graph network: messages along the edges, summed at the nodes they go to."""

    def __init__(self, rngs):
        self.edge = nnx.Linear(16, 16, rngs=rngs)
        self.node = nnx.Linear(24, 8, rngs=rngs)

    def __call__(self, nodes, edges):
        senders, receivers = edges
        pairs = jnp.concatenate([nodes[senders], nodes[receivers]], axis=-1)
        messages = nnx.relu(self.edge(pairs))
        sums = jax.ops.segment_sum(messages, receivers, nodes.shape[0])
        return self.node(jnp.concatenate([nodes, sums], axis=-1))


CASES: dict[str, NnxCase] = {
    "conv_1d": row(partial(Convolved, size=3, channels=8), series),
    "conv_2d": row(Convolved, images),
    "conv_3d": row(
        partial(Convolved, size=(2, 2, 2), channels=2), normal(4, 4, 4, 4, 2)
    ),
    "conv_transpose": row(partial(Convolved, conv=nnx.ConvTranspose), images),
    "conv_grouped": row(partial(Convolved, feature_group_count=2), images),
    "conv_depthwise": row(partial(Convolved, feature_group_count=8), images),
    "tensors": row(Tensors, series),
    "prelu": row(PRelu, vectors),
    "lora": row(adapted, vectors, "zeros"),
    "lora_linear": row(lora_linear, vectors, "zeros raw"),
    "weight_norm": row(WeightNormed, vectors, "buffer overwrites"),
    "spectral_norm": row(
        SpectralNormed, vectors, "state overwrites", update_stats=True
    ),
    "to_nnx": row(Bridged, vectors, "linen state"),
    "graph_network": row(
        Messages, batches(normal(6, 8), integers(6, 2, 10)), "inputs integers"
    ),
}
