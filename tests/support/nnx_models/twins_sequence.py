"""Pairs of networks for series and text."""

import flax.linen as nn
from flax import nnx

from tests.support.nnx_models.attention import EncoderBlock
from tests.support.nnx_models.cases import series, to_labels, tokens
from tests.support.nnx_models.recurrent import Recurrent
from tests.support.nnx_models.shared import TiedEmbedding
from tests.support.nnx_models.twin import Twin, leaves


class LinenEncoderBlock(nn.Module):
    """A pre-norm transformer block."""

    @nn.compact
    def __call__(self, x):
        heads = nn.MultiHeadDotProductAttention(num_heads=2)
        x = x + heads(nn.LayerNorm()(x))
        h = nn.gelu(nn.Dense(32)(nn.LayerNorm()(x)))
        return x + nn.Dense(16)(h)


class LinenTransformer(nn.Module):
    """A block between a projection and a head."""

    @nn.compact
    def __call__(self, x):
        x = LinenEncoderBlock(name="block")(nn.Dense(16, name="project")(x))
        return nn.Dense(5, name="head")(nn.LayerNorm(name="norm")(x).mean(1))


class NnxTransformer(nnx.Module):
    """Its twin."""

    def __init__(self, rngs):
        self.project = nnx.Linear(8, 16, rngs=rngs)
        self.block = EncoderBlock(rngs)
        self.norm = nnx.LayerNorm(16, rngs=rngs)
        self.head = nnx.Linear(16, 5, rngs=rngs)

    def __call__(self, x):
        return self.head(self.norm(self.block(self.project(x))).mean(1))


class LinenTied(nn.Module):
    """An embedding, a residual block, a norm, and the embedding as the readout."""

    @nn.compact
    def __call__(self, tokens):
        embed = nn.Embed(11, 16, name="embed")
        x = embed(tokens)
        x = x + nn.Dense(16, name="down")(nn.relu(nn.Dense(32, name="up")(x)))
        return embed.attend(nn.LayerNorm(name="norm")(x))


class LinenRecurrent(nn.Module):
    """A long short-term memory."""

    def setup(self):
        self.rnn = nn.RNN(nn.LSTMCell(8))
        self.head = nn.Dense(4)

    def __call__(self, x):
        return self.head(self.rnn(x))


PARTS = ("query", "key", "value", "out")
TRANSFORMER = {
    f"block/attention/{part}": f"block/MultiHeadDotProductAttention_0/{part}"
    for part in PARTS
} | {"block/up": "block/Dense_0", "block/down": "block/Dense_1"}
NORMS = {
    "block/norm1": "block/LayerNorm_0",
    "block/norm2": "block/LayerNorm_1",
    "norm": "norm",
}
GATES = {"i": "i", "f_": "f", "g": "g", "o": "o"}
TWINS: dict[str, Twin] = {
    "transformer": Twin(
        LinenTransformer,
        NnxTransformer,
        series,
        leaves(TRANSFORMER | {"project": "project", "head": "head"})
        | leaves(NORMS, "scale bias"),
        to_labels,
    ),
    "tied_embedding": Twin(
        LinenTied,
        TiedEmbedding,
        tokens,
        leaves({"embed": "embed"}, "embedding")
        | leaves({"block/up": "up", "block/down": "down"})
        | leaves({"norm": "norm"}, "scale bias"),
        to_labels,
    ),
    "lstm": Twin(
        LinenRecurrent,
        lambda rngs: Recurrent(rngs, nnx.LSTMCell),
        series,
        leaves({f"rnn/cell/i{a}": f"rnn/cell/i{b}" for a, b in GATES.items()}, "kernel")
        | leaves({f"rnn/cell/h{gate}": f"rnn/cell/h{gate}" for gate in "ifgo"})
        | leaves({"head": "head"}),
    ),
}
