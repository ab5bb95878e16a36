"""Published transformers and mixers, written anew and small."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from tests.support.cases import (
    Case,
    batches,
    cross_entropy,
    images,
    integers,
    make,
    paths,
)

zeros = nn.initializers.zeros_init()
small = nn.initializers.normal(0.02)


def heads(name: str, **options) -> nn.MultiHeadDotProductAttention:
    return nn.MultiHeadDotProductAttention(num_heads=2, name=name, **options)


class Mlp(nn.Module):
    """The two-layer perceptron of a transformer."""

    hidden: int

    @nn.compact
    def __call__(self, x):
        h = nn.gelu(nn.Dense(self.hidden, name="up")(x))
        return nn.Dense(x.shape[-1], name="down")(h)


class EncoderBlock(nn.Module):
    """A pre-norm transformer block; `causal` hides what comes later."""

    causal: bool = False

    @nn.compact
    def __call__(self, x):
        mask = nn.make_causal_mask(x[..., 0]) if self.causal else None
        h = nn.LayerNorm(name="norm1")(x)
        x = x + heads("attention")(h, mask=mask)
        return x + Mlp(32, name="mlp")(nn.LayerNorm(name="norm2")(x))


class ViT(nn.Module):
    """Vision transformer: Dosovitskiy et al., "An Image is Worth 16x16 Words", 2021.

    The class token and the positions belong to no unit; the head starts at zero.
    """

    depth: int = 1

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(16, (4, 4), strides=4, name="patches")(x)
        x = x.reshape(x.shape[0], -1, 16)
        cls = self.param("cls", zeros, (1, 1, 16))
        x = jnp.concatenate([jnp.tile(cls, (x.shape[0], 1, 1)), x], axis=1)
        x = x + self.param("pos_embedding", small, (1, *x.shape[1:]))
        for i in range(self.depth):
            x = EncoderBlock(name=f"block{i}")(x)
        x = nn.LayerNorm(name="norm")(x)[:, 0]
        return nn.Dense(5, kernel_init=zeros, name="head")(x)


class Gpt2(nn.Module):
    """Radford et al., "Language Models are Unsupervised Multitask Learners", 2019.

    The head is the token embedding; the positions look up a constant.
    """

    depth: int = 1

    @nn.compact
    def __call__(self, tokens):
        wte = nn.Embed(11, 16, embedding_init=small, name="wte")
        wpe = nn.Embed(8, 16, embedding_init=small, name="wpe")
        x = wte(tokens) + wpe(jnp.arange(tokens.shape[1]))
        for i in range(self.depth):
            x = EncoderBlock(causal=True, name=f"h{i}")(x)
        return wte.attend(nn.LayerNorm(name="ln_f")(x))


def modulate(x, shift, scale):
    return x * (1.0 + scale[:, None]) + shift[:, None]


class DiTBlock(nn.Module):
    """A transformer block whose norms and gates come from the condition."""

    @nn.compact
    def __call__(self, x, c):
        width = x.shape[-1]
        norm = partial(nn.LayerNorm, use_bias=False, use_scale=False)
        ada = nn.Dense(6 * width, kernel_init=zeros, name="ada")(nn.silu(c))
        shift1, scale1, gate1, shift2, scale2, gate2 = jnp.split(ada, 6, -1)
        h = heads("attention")(modulate(norm()(x), shift1, scale1))
        x = x + gate1[:, None] * h
        h = Mlp(2 * width, name="mlp")(modulate(norm()(x), shift2, scale2))
        return x + gate2[:, None] * h


class DiT(nn.Module):
    """Peebles and Xie, "Scalable Diffusion Models with Transformers", 2023.

    The blocks start as the identity and the output at zero.
    """

    depth: int = 1

    @nn.compact
    def __call__(self, x, times, labels):
        n, height, width, channels = x.shape
        angles = times[:, None] * jnp.exp(-jnp.arange(4.0))
        waves = jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], -1)
        c = nn.silu(nn.Dense(16, kernel_init=small, name="time_in")(waves))
        c = nn.Dense(16, kernel_init=small, name="time_out")(c)
        c = c + nn.Embed(5, 16, embedding_init=small, name="label")(labels)
        x = nn.Conv(16, (4, 4), strides=4, name="patches")(x).reshape(n, -1, 16)
        x = x + jnp.sin(jnp.arange(x.shape[1])[:, None] / 10.0 ** jnp.arange(16))
        for i in range(self.depth):
            x = DiTBlock(name=f"block{i}")(x, c)
        shift, scale = jnp.split(
            nn.Dense(32, kernel_init=zeros, name="ada")(nn.silu(c)), 2, -1
        )
        x = modulate(nn.LayerNorm(use_bias=False, use_scale=False)(x), shift, scale)
        x = nn.Dense(16 * channels, kernel_init=zeros, name="head")(x)
        x = x.reshape(n, height // 4, width // 4, 4, 4, channels)
        return x.swapaxes(2, 3).reshape(n, height, width, channels)


class MixerBlock(nn.Module):
    """A perceptron across the patches, then one across the channels."""

    @nn.compact
    def __call__(self, x):
        h = nn.LayerNorm(name="norm1")(x).swapaxes(1, 2)
        x = x + Mlp(8, name="tokens")(h).swapaxes(1, 2)
        return x + Mlp(32, name="channels")(nn.LayerNorm(name="norm2")(x))


class Mixer(nn.Module):
    """Tolstikhin et al., "MLP-Mixer: An all-MLP Architecture for Vision", 2021."""

    depth: int = 1

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(16, (2, 2), strides=2, name="stem")(x)
        x = x.reshape(x.shape[0], -1, 16)
        for i in range(self.depth):
            x = MixerBlock(name=f"block{i}")(x)
        x = nn.LayerNorm(name="norm")(x).mean(1)
        return nn.Dense(5, kernel_init=zeros, name="head")(x)


MLP = "{up,down}"
ATTENTION = "attention/{query,key,value,out}"


def encoder(block: str) -> str:
    parts = ("norm1", "norm2", ATTENTION, f"mlp/{MLP}")
    return " ".join(f"{block}/{part}" for part in parts)


ROWS: tuple[Case, ...] = (
    Case(
        "vit",
        lambda: make(ViT(), images, cross_entropy),
        paths(f"patches {encoder('block0')} norm head"),
        loose=paths("cls pos_embedding"),
        zeros=paths("cls head/kernel"),
    ),
    Case(
        "gpt2",
        lambda: make(Gpt2(), integers(11, 16, 8), cross_entropy),
        paths(f"wte wte/attend wpe {encoder('h0')} ln_f"),
    ),
    Case(
        "dit",
        lambda: make(
            DiT(),
            batches(
                images,
                lambda key: jax.random.uniform(key, (16,), maxval=100.0),
                integers(5, 16),
            ),
        ),
        paths("time_in time_out label patches block0/{ada,mlp/up,mlp/down}")
        | paths(f"block0/{ATTENTION} ada head"),
        zeros=paths("block0/ada/kernel ada/kernel head/kernel"),
    ),
    Case(
        "mlp_mixer",
        lambda: make(Mixer(), images, cross_entropy),
        paths(f"stem block0/{{norm1,norm2}} block0/tokens/{MLP}")
        | paths(f"block0/channels/{MLP} norm head"),
        zeros=paths("head/kernel"),
    ),
)
