"""Attention and transformers."""

import jax.numpy as jnp
from flax import nnx

from tests.support.cases import batches
from tests.support.nnx_models.cases import (
    NnxCase,
    images,
    row,
    series,
    to_labels,
    tokens,
)

zeros = nnx.initializers.zeros_init()
small = nnx.initializers.normal(0.02)


def heads(rngs, width=16, **options):
    """Self-attention by two heads."""
    return nnx.MultiHeadAttention(2, width, decode=False, rngs=rngs, **options)


class Attention(nnx.Module):
    """Self-attention in a residual branch."""

    def __init__(self, rngs, **options):
        self.norm = nnx.LayerNorm(8, rngs=rngs)
        self.attention = heads(rngs, 8, **options)
        self.head = nnx.Linear(8, 4, rngs=rngs)

    def __call__(self, x, **options):
        return self.head(x + self.attention(self.norm(x), **options))


class Drawn(nnx.Module):
    """Dropout in the attention, by streams that are passed on."""

    def __init__(self, rngs):
        options = {"dropout_rate": 0.3, "deterministic": False, "keep_rngs": False}
        self.inner = Attention(rngs, **options)

    def __call__(self, x, key):
        return self.inner(x, rngs=nnx.Rngs(dropout=key))


class EncoderBlock(nnx.Module):
    """A pre-norm transformer block."""

    def __init__(self, rngs):
        self.norm1 = nnx.LayerNorm(16, rngs=rngs)
        self.attention = heads(rngs)
        self.norm2 = nnx.LayerNorm(16, rngs=rngs)
        self.up = nnx.Linear(16, 32, rngs=rngs)
        self.down = nnx.Linear(32, 16, rngs=rngs)

    def __call__(self, x, mask=None):
        x = x + self.attention(self.norm1(x), mask=mask)
        return x + self.down(nnx.gelu(self.up(self.norm2(x))))


class ViT(nnx.Module):
    """Vision transformer: Dosovitskiy et al., "An Image is Worth 16x16 Words", 2021.

    The class token and the positions are raw parameters; the head starts at zero.
    """

    def __init__(self, rngs):
        self.patches = nnx.Conv(3, 16, (4, 4), strides=4, rngs=rngs)
        self.cls = nnx.Param(jnp.zeros((1, 1, 16)))
        self.positions = nnx.Param(small(rngs.params(), (1, 5, 16)))
        self.block = EncoderBlock(rngs)
        self.norm = nnx.LayerNorm(16, rngs=rngs)
        self.head = nnx.Linear(16, 5, kernel_init=zeros, rngs=rngs)

    def __call__(self, x):
        x = self.patches(x).reshape(x.shape[0], -1, 16)
        cls = jnp.tile(self.cls[...], (x.shape[0], 1, 1))
        x = jnp.concatenate([cls, x], axis=1) + self.positions
        return self.head(self.norm(self.block(x))[:, 0])


class Gpt2(nnx.Module):
    """Radford et al., "Language Models are Unsupervised Multitask Learners", 2019.

    The head is the token embedding; the positions look up a constant.
    """

    def __init__(self, rngs):
        self.wte = nnx.Embed(11, 16, embedding_init=small, rngs=rngs)
        self.wpe = nnx.Embed(8, 16, embedding_init=small, rngs=rngs)
        self.block = EncoderBlock(rngs)
        self.norm = nnx.LayerNorm(16, rngs=rngs)

    def __call__(self, tokens):
        x = self.wte(tokens) + self.wpe(jnp.arange(tokens.shape[1]))
        x = self.block(x, nnx.make_causal_mask(tokens))
        return self.wte.attend(self.norm(x))


def attention_dropout(rngs):
    """Dropout in the attention, by a stream of its own."""
    return Attention(rngs, dropout_rate=0.3, deterministic=False)


CASES: dict[str, NnxCase] = {
    "attention": row(Attention, series),
    "attention_qk_norm": row(lambda rngs: Attention(rngs, normalize_qk=True), series),
    "attention_dropout": row(attention_dropout, series, "rng state"),
    "attention_passed_rngs": row(Drawn, batches(series, lambda key: key), "rng inputs"),
    "vit": row(ViT, images, "raw zeros", to_labels),
    "gpt2": row(Gpt2, tokens, "shared integers", to_labels),
}
