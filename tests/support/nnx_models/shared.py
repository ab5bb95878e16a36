"""Modules and parameters used more than once in a call."""

from flax import nnx

from tests.support.nnx_models.cases import NnxCase, row, to_labels, tokens, vectors
from tests.support.nnx_models.dense import Block


class TwoNames(nnx.Module):
    """One layer under two attributes."""

    def __init__(self, rngs):
        self.first = nnx.Linear(8, 8, rngs=rngs)
        self.again = self.first
        self.head = nnx.Linear(8, 4, rngs=rngs)

    def __call__(self, x):
        return self.head(nnx.tanh(self.again(nnx.tanh(self.first(x)))))


class Loop(nnx.Module):
    """One block, called in a Python loop."""

    def __init__(self, rngs):
        self.block = Block(rngs)
        self.head = nnx.Linear(8, 4, rngs=rngs)

    def __call__(self, x):
        for _ in range(3):
            x = self.block(x)
        return self.head(x)


class OneParam(nnx.Module):
    """Two layers with one kernel, though each has its own bias."""

    def __init__(self, rngs):
        self.first = nnx.Linear(8, 8, rngs=rngs)
        self.second = nnx.Linear(8, 8, rngs=rngs)
        self.second.kernel = self.first.kernel
        self.head = nnx.Linear(8, 4, rngs=rngs)

    def __call__(self, x):
        return self.head(nnx.tanh(self.second(nnx.tanh(self.first(x)))))


class HandTied(nnx.Module):
    """A decoder that reads the kernel of another layer raw."""

    def __init__(self, rngs):
        self.encoder = nnx.Linear(8, 16, rngs=rngs)

    def __call__(self, x):
        return nnx.tanh(self.encoder(x)) @ self.encoder.kernel.T


class TiedEmbedding(nnx.Module):
    """The readout is the transposed embedding."""

    def __init__(self, rngs):
        self.embed = nnx.Embed(11, 16, rngs=rngs)
        self.block = Block(rngs, 16)
        self.norm = nnx.LayerNorm(16, rngs=rngs)

    def __call__(self, tokens):
        return self.embed.attend(self.norm(self.block(self.embed(tokens))))


CASES: dict[str, NnxCase] = {
    "shared_attributes": row(TwoNames, vectors, "shared"),
    "shared_loop": row(Loop, vectors, "shared"),
    "shared_param": row(OneParam, vectors, "shared"),
    "hand_tied": row(HandTied, vectors, "shared"),
    "tied_embedding": row(TiedEmbedding, tokens, "shared integers", to_labels),
}
