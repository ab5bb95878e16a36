"""Inputs and outputs of all kinds."""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from tests.support.cases import (
    Case,
    batches,
    cross_entropy,
    integers,
    make,
    normal,
    paths,
    squared_error,
    vectors,
)
from tests.support.models.dense import BLOCK, Block


class Masked(nn.Module):
    """Self-attention: four units in the attention, and a mask that is no float."""

    @nn.compact
    def __call__(self, x, mask):
        h = nn.LayerNorm(name="norm")(x)
        attention = nn.MultiHeadDotProductAttention(num_heads=2, name="attention")
        return nn.Dense(4, name="head")(x + attention(h, mask=mask[:, None]))


def masked_series(key):
    """Series, and a mask in which every step sees itself."""
    left, right = jax.random.split(key)
    mask = jax.random.bernoulli(right, 0.5, (16, 5, 5))
    return jax.random.normal(left, (16, 5, 8)), mask | jnp.eye(5, dtype=bool)


def padded_series(key):
    """Series of several lengths, and what of them is padding."""
    lengths = jax.random.randint(key, (16, 1), 1, 9)
    padding = (jnp.arange(8) >= lengths).astype(jnp.float32)
    return jax.random.normal(key, (16, 8, 6)), padding


def of_first(outputs, key):
    """The squared error of the first output alone."""
    return squared_error(outputs[0], key)


class Bilinear(nn.Module):
    """A unit of two inputs, linear in each."""

    features: int

    @nn.compact
    def __call__(self, a, b):
        shape = (a.shape[-1], b.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.normal(0.1), shape)
        return jnp.einsum("na,nb,abc->nc", a, b, kernel)


class Fusion(nn.Module):
    """Two inputs that meet in one unit; the outputs are a dict."""

    @nn.compact
    def __call__(self, image, text):
        a = nn.relu(nn.Dense(8, name="image")(image))
        b = nn.relu(nn.Dense(8, name="text")(text))
        fused = Bilinear(8, name="fuse")(a, b)
        return {"score": nn.Dense(1, name="score")(fused), "parts": (a, b)}


class Keywords(nn.Module):
    """Arguments that are no arrays steer the Python of the model."""

    @nn.compact
    def __call__(self, x, mask=None, *, train):
        assert train is True
        x = nn.tanh(nn.Dense(8, name="first")(x))
        return nn.Dense(4, name="last")(x if mask is None else x * mask)


class Bag(nn.Module):
    """The only input is of integers; the first unit looks them up."""

    @nn.compact
    def __call__(self, tokens):
        x = nn.Embed(11, 8, name="embed")(tokens).mean(1)
        return nn.Dense(4, name="head")(nn.tanh(x))


class Graph(NamedTuple):
    nodes: jax.Array
    edges: jax.Array
    senders: jax.Array
    receivers: jax.Array


class Messages(nn.Module):
    """One argument which is a named tuple, with integer arrays among its fields."""

    @nn.compact
    def __call__(self, graph):
        sent = nn.Dense(8, name="send")(graph.nodes)[graph.senders]
        sent = nn.relu(sent + nn.Dense(8, name="edge")(graph.edges))
        total = jax.ops.segment_sum(sent, graph.receivers, graph.nodes.shape[0])
        return graph._replace(nodes=nn.Dense(4, name="node")(total)).nodes


def random_graph(key):
    a, b, c, d = jax.random.split(key, 4)
    ends = (jax.random.randint(k, (24,), 0, 12) for k in (c, d))
    return Graph(jax.random.normal(a, (12, 8)), jax.random.normal(b, (24, 4)), *ends)


class TiedLm(nn.Module):
    """One embedding, entered twice: as a lookup and, by `attend`, as the head."""

    @nn.compact
    def __call__(self, tokens):
        wte = nn.Embed(11, 8, name="wte")
        x = Block(name="block")(wte(tokens))
        return wte.attend(nn.LayerNorm(name="norm")(x))


class KeyInput(nn.Module):
    """A random key among the positional inputs."""

    @nn.compact
    def __call__(self, x, key):
        x = nn.Dense(8, name="first")(x)
        x = x + 0.1 * jax.random.normal(key, x.shape)
        return nn.Dense(4, name="last")(nn.tanh(x))


class Bytes(nn.Module):
    """Images of uint8, cast in the model: no input of it is differentiable."""

    @nn.compact
    def __call__(self, x):
        x = x.astype(jnp.float32) / 127.5 - 1.0
        x = nn.relu(nn.Conv(8, (3, 3), strides=2, name="conv")(x))
        return nn.Dense(4, name="head")(x.mean((1, 2)))


class PaddedConv(nn.Module):
    """A strided convolution that tells, by a float, what of its output is padding."""

    features: int

    @nn.compact
    def __call__(self, x, padding):
        shape = (3, x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        y = jax.lax.conv_general_dilated(
            x, kernel, (2,), "SAME", dimension_numbers=("NHC", "HIO", "NHC")
        )
        padding = padding[:, ::2]
        return nn.relu(y) * (1 - padding)[..., None], padding


class PaddedNorm(nn.Module):
    """Batch statistics of the steps that are no padding; the gain is `1 + scale`."""

    @nn.compact
    def __call__(self, x, padding):
        scale = self.param("scale", nn.initializers.zeros_init(), x.shape[-1:])
        there = (1 - padding)[..., None]
        count = jnp.maximum(there.sum(), 1)
        x = x - (x * there).sum((0, 1)) / count
        variance = (jnp.square(x) * there).sum((0, 1)) / count
        return x * (1 + scale) * jax.lax.rsqrt(variance + 1e-3) * there


class Padded(nn.Module):
    """Paddings are floats; they go through units beside the activations."""

    @nn.compact
    def __call__(self, x, padding):
        x, padding = PaddedConv(8, name="conv")(x, padding)
        x = PaddedNorm(name="norm")(x, padding)
        return nn.Dense(4, name="head")(x), padding


ROWS: tuple[Case, ...] = (
    Case(
        "masked_attention",
        lambda: make(Masked(), masked_series),
        paths("norm attention/{query,key,value,out} head"),
    ),
    Case(
        "fusion",
        lambda: make(Fusion(), batches(vectors, normal(16, 6))),
        paths("image text fuse score"),
    ),
    Case(
        "keywords",
        lambda: make(Keywords(), batches(vectors, mask=None, train=True)),
        paths("first last"),
    ),
    Case(
        "embed",
        lambda: make(Bag(), integers(11, 16, 5), cross_entropy),
        paths("embed head"),
    ),
    Case(
        "named_tuple",
        lambda: make(Messages(), random_graph),
        paths("send edge node"),
    ),
    Case(
        "tied_lm",
        lambda: make(TiedLm(), integers(11, 16, 5), cross_entropy),
        paths(f"wte wte/attend block/{BLOCK} norm"),
    ),
    Case(
        "key_input",
        lambda: make(KeyInput(), batches(vectors, lambda key: key)),
        paths("first last"),
    ),
    Case(
        "padded_series",
        lambda: make(Padded(), padded_series, of_first),
        paths("conv norm head"),
    ),
    Case(
        "uint8_images",
        lambda: make(
            Bytes(), integers(256, 16, 8, 8, 3, dtype=jnp.uint8), cross_entropy
        ),
        paths("conv head"),
    ),
)
