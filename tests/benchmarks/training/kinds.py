"""Networks of many kinds, with what each of them learns from."""

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from einit_jax._demo import digits
from tests.benchmarks.training import families, initializers, shaped

WINDOW, ALPHABET = 64, 96
"""Characters that a language model reads at once, and how many there are of them."""
SMALL = nn.initializers.normal(0.02)


class Block(nn.Module):
    """Attention and two dense layers around a skip, each behind a LayerNorm or none."""

    width: int
    causal: bool = False
    norm: bool = True

    @nn.compact
    def __call__(self, x):
        mask = nn.make_causal_mask(x[..., 0]) if self.causal else None
        attend = nn.MultiHeadDotProductAttention(2, name="attention")
        norm: Callable = lambda name: (
            nn.LayerNorm(name=name) if self.norm else lambda x: x
        )
        x = x + attend(norm("norm_a")(x), mask=mask)
        h = nn.Dense(2 * self.width, name="up")(norm("norm_b")(x))
        return x + nn.Dense(self.width, name="down")(nn.gelu(h))


class ClassToken(nn.Module):
    """A token before all others."""

    @nn.compact
    def __call__(self, x):
        return first_token(self.param("token", SMALL, (1, 1, x.shape[-1])), x)


def first_token(token: jax.Array, x: jax.Array) -> jax.Array:
    return jnp.concatenate([jnp.tile(token, (len(x), 1, 1)), x], 1)


class Vit(nn.Module):
    """A vision transformer over the 16 patches of a digit, with raw positions.

    Its head reads a class token, raw or of a module of its own (`wrapped`, so are the
    positions then), or the mean of all tokens.
    """

    depth: int = 6
    width: int = 32
    token: bool = True
    wrapped: bool = False

    @nn.compact
    def __call__(self, x):
        x = x.reshape(-1, 4, 2, 4, 2).transpose(0, 1, 3, 2, 4).reshape(-1, 16, 4)
        x = nn.Dense(self.width, name="patches")(x)
        if self.wrapped:
            x = ClassToken(name="token")(x) if self.token else x
            x = families.Positions(name="positions")(x)
        else:
            if self.token:
                x = first_token(self.param("token", SMALL, (1, 1, self.width)), x)
            x = x + self.param("positions", SMALL, (1, *x.shape[1:]))
        for i in range(self.depth):
            x = Block(self.width, name=f"block{i}")(x)
        x = nn.LayerNorm(name="norm")(x)
        return nn.Dense(10, name="head")(x[:, 0] if self.token else x.mean(1))


class LanguageModel(nn.Module):
    """A transformer that tells each next character, with raw positions."""

    depth: int = 2
    width: int = 64

    @nn.compact
    def __call__(self, x):
        y = nn.Embed(ALPHABET, self.width, embedding_init=SMALL, name="characters")(x)
        y = y + self.param("positions", SMALL, (WINDOW, self.width))
        for i in range(self.depth):
            y = Block(self.width, causal=True, name=f"block{i}")(y)
        return nn.Dense(ALPHABET, name="head")(nn.LayerNorm(name="norm")(y))


class Normalized(nn.Module):
    """`depth` pre-activation blocks of two 3x3 convolutions, each behind a BatchNorm.

    It normalizes by the batch, in training and after it.
    """

    depth: int = 8
    width: int = 16

    @nn.compact
    def __call__(self, x):
        norm = lambda name: nn.BatchNorm(use_running_average=False, name=name)
        conv = lambda name: families.Conv3x3(self.width, use_bias=False, name=name)
        x = conv("stem")(x.reshape(-1, 8, 8, 1))
        for i in range(self.depth):
            if i in (self.depth // 4, self.depth // 2):
                x = nn.avg_pool(x, (2, 2), (2, 2))
            h = conv(f"up{i}")(nn.relu(norm(f"norm_a{i}")(x)))
            x = x + conv(f"down{i}")(nn.relu(norm(f"norm_b{i}")(h)))
        return nn.Dense(10, name="head")(nn.relu(norm("norm")(x)).mean((1, 2)))


class Sums(nn.Module):
    """Learns the sums of two numbers modulo 23 from embeddings of both."""

    width: int = 64

    @nn.compact
    def __call__(self, x):
        y = nn.Embed(families.MODULUS, self.width, name="numbers")(x)
        y = y.reshape(len(x), -1)
        for i in range(3):
            y = nn.relu(nn.Dense(self.width, name=f"layer{i}")(y))
        return nn.Dense(families.MODULUS, name="head")(y)


class Examples(NamedTuple):
    """Inputs with their labels."""

    inputs: Any
    labels: Any

    def at(self, rows: Any) -> "Examples":
        return Examples(self.inputs[rows], self.labels[rows])


def split(inputs: Any, labels: Any, held_out: float) -> tuple[Examples, Examples]:
    """What is learned from, and what is held out."""
    order = np.random.default_rng(0).permutation(len(labels))
    count = int(held_out * len(labels))
    every = Examples(jnp.asarray(inputs), jnp.asarray(labels))
    return every.at(order[count:]), every.at(order[:count])


@cache
def written_digits() -> tuple[Examples, Examples]:
    data = digits()
    return split(data.images, data.labels, 0.22)


@cache
def sums() -> tuple[Examples, Examples]:
    data = families.data_of(families.Transformer(1, classes=families.MODULUS))
    return split(data.images, data.labels, 0.2)


@cache
def text() -> tuple[Examples, Examples]:
    """The documentation that comes with Python, in windows."""
    from pydoc_data.topics import topics

    letters = "\n".join(topics[name] for name in sorted(topics))
    codes = np.array([min(max(ord(c) - 31, 0), ALPHABET - 1) for c in letters])
    return split(*windows(codes), 0.05)


def windows(codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A text cut into windows, and each of their characters' next one."""
    count = (len(codes) - 1) // WINDOW
    cut = lambda start: codes[start : start + count * WINDOW].reshape(count, WINDOW)
    return cut(0), cut(1)


class Kind(NamedTuple):
    """A network and what it learns from, in batches of that size."""

    model: nn.Module
    data: Callable[[], tuple[Examples, Examples]] = written_digits
    batch: int = 64


TOKENS = 32
KINDS: dict[str, Kind] = {
    **{
        f"MLP {name} {depth}": Kind(shaped.Perceptron(depth, activation=fn))
        for name, fn in {"relu": nn.relu, "tanh": jnp.tanh}.items()
        for depth in (4, 16, 32)
    },
    "CNN 20": Kind(families.Convolutional(20)),
    "ResNet 8": Kind(families.ResidualConvolutional(8)),
    "ResNet 8, BatchNorm": Kind(Normalized()),
    "residual MLP 16": Kind(families.Residual(16)),
    "ViT 6, token": Kind(Vit(), batch=TOKENS),
    "ViT 6, token, wrapped": Kind(Vit(wrapped=True), batch=TOKENS),
    "ViT 6, mean": Kind(Vit(token=False), batch=TOKENS),
    "transformer 6": Kind(families.Transformer(6, norm=False), batch=TOKENS),
    "LSTM": Kind(initializers.Lstm(), batch=TOKENS),
    "language model": Kind(LanguageModel(), text, batch=16),
    "sums": Kind(Sums(), sums),
}
