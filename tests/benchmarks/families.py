"""Families of networks of one shape in many depths and widths, for digits."""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax

ACTIVATIONS = {"tanh": nn.tanh, "relu": nn.relu, "gelu": nn.gelu}


class Chain(nn.Module):
    """`depth` dense layers, the last of them a linear readout."""

    depth: int
    width: int = 64
    activation: str = "relu"

    @nn.compact
    def __call__(self, x):
        for i in range(self.depth - 1):
            x = ACTIVATIONS[self.activation](nn.Dense(self.width, name=f"layer{i}")(x))
        return nn.Dense(10, name="head")(x)


class Residual(nn.Module):
    """`depth` pre-activation blocks of two dense layers around a skip, no norm."""

    depth: int
    width: int = 64

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(self.width, name="stem")(x)
        for i in range(self.depth):
            h = nn.Dense(self.width, name=f"up{i}")(nn.relu(x))
            x = x + nn.Dense(self.width, name=f"down{i}")(nn.relu(h))
        return nn.Dense(10, name="head")(nn.relu(x))


class Positions(nn.Module):
    """Adds a vector to each token."""

    @nn.compact
    def __call__(self, x):
        init = nn.initializers.normal(0.02)
        return x + self.param("table", init, (1, *x.shape[1:]))


class Transformer(nn.Module):
    """`depth` blocks over the 16 patches of a digit, with LayerNorm or without."""

    depth: int
    width: int = 32
    norm: bool = True

    @nn.compact
    def __call__(self, x):
        x = x.reshape(-1, 4, 2, 4, 2).transpose(0, 1, 3, 2, 4).reshape(-1, 16, 4)
        x = Positions(name="positions")(nn.Dense(self.width, name="patches")(x))
        norm: Callable = lambda name: (
            nn.LayerNorm(name=name) if self.norm else lambda x: x
        )
        for i in range(self.depth):
            attend = nn.MultiHeadDotProductAttention(2, name=f"attention{i}")
            x = x + attend(norm(f"norm_a{i}")(x))
            h = nn.Dense(2 * self.width, name=f"up{i}")(norm(f"norm_b{i}")(x))
            x = x + nn.Dense(self.width, name=f"down{i}")(nn.gelu(h))
        return nn.Dense(10, name="head")(norm("norm")(x).mean(1))


DEPTHS: dict[str, tuple[Callable[[int], nn.Module], tuple[int, ...]]] = {
    **{
        f"chain {name}": (partial(Chain, activation=name), (2, 8, 24, 64))
        for name in ACTIVATIONS
    },
    "residual MLP": (Residual, (2, 8, 32)),
    "ViT": (Transformer, (2, 6, 12)),
    "transformer without norm": (partial(Transformer, norm=False), (2, 6, 12)),
}
WIDTHS = {
    f"width, chain {name} 4": (
        lambda width, name=name: Chain(4, width, name),
        (32, 64, 128, 256, 512, 1024),
    )
    for name in ("tanh", "relu")
}
FAMILIES = DEPTHS | WIDTHS


def initialized(model: nn.Module, x: jax.Array, seed: int):
    """The model's parameters as Flax draws them."""
    return jax.jit(model.init)(jax.random.key(seed), x)["params"]
