"""Families of networks of one shape in many depths and widths, and what they learn."""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from einit_jax._demo import Digits, digits

MODULUS = 23
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
    """`depth` blocks over the 16 patches of a digit, with LayerNorm or without.

    With `classes=MODULUS` over the two numbers of a sum.
    """

    depth: int
    width: int = 32
    norm: bool = True
    classes: int = 10

    @nn.compact
    def __call__(self, x):
        if self.classes == MODULUS:
            x = nn.Embed(MODULUS, self.width, name="numbers")(x)
        else:
            x = x.reshape(-1, 4, 2, 4, 2).transpose(0, 1, 3, 2, 4).reshape(-1, 16, 4)
            x = nn.Dense(self.width, name="patches")(x)
        x = Positions(name="positions")(x)
        norm: Callable = lambda name: (
            nn.LayerNorm(name=name) if self.norm else lambda x: x
        )
        for i in range(self.depth):
            attend = nn.MultiHeadDotProductAttention(2, name=f"attention{i}")
            x = x + attend(norm(f"norm_a{i}")(x))
            h = nn.Dense(2 * self.width, name=f"up{i}")(norm(f"norm_b{i}")(x))
            x = x + nn.Dense(self.width, name=f"down{i}")(nn.gelu(h))
        return nn.Dense(self.classes, name="head")(norm("norm")(x).mean(1))


def by_patches(x, kernel, strides, padding, **_):
    """What `lax.conv_general_dilated` computes for `nn.Conv`, by one matrix product.

    On CPU XLA's own is 15 times slower inside of loops and under `vmap`.
    """
    sizes = kernel.shape[:2]
    pads = jax.lax.padtype_to_pads(x.shape[1:3], sizes, strides, padding)
    x = jnp.pad(x, ((0, 0), *pads, (0, 0)))
    rows, columns = (n - k + 1 for n, k in zip(x.shape[1:3], sizes, strict=True))
    patches = [
        x[:, i : i + rows : strides[0], j : j + columns : strides[1]]
        for i in range(sizes[0])
        for j in range(sizes[1])
    ]
    return jnp.concatenate(patches, -1) @ kernel.reshape(-1, kernel.shape[-1])


Conv3x3 = partial(nn.Conv, kernel_size=(3, 3), conv_general_dilated=by_patches)


class Convolutional(nn.Module):
    """`depth` plain 3x3 convolutions over a digit; two of them halve it."""

    depth: int
    width: int = 16

    @nn.compact
    def __call__(self, x):
        x = x.reshape(-1, 8, 8, 1)
        for i in range(self.depth):
            strides = 2 if i in (self.depth // 4, self.depth // 2) else 1
            x = nn.relu(Conv3x3(self.width, strides=strides, name=f"conv{i}")(x))
        return nn.Dense(10, name="head")(x.mean((1, 2)))


class ResidualConvolutional(nn.Module):
    """`depth` pre-activation blocks of two 3x3 convolutions around a skip, no norm."""

    depth: int
    width: int = 16

    @nn.compact
    def __call__(self, x):
        conv = lambda name: Conv3x3(self.width, name=name)
        x = conv("stem")(x.reshape(-1, 8, 8, 1))
        for i in range(self.depth):
            if i in (self.depth // 4, self.depth // 2):
                x = nn.avg_pool(x, (2, 2), (2, 2))
            h = conv(f"up{i}")(nn.relu(x))
            x = x + conv(f"down{i}")(nn.relu(h))
        return nn.Dense(10, name="head")(nn.relu(x).mean((1, 2)))


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
WIDTHS["width, chain relu 8"] = (partial(Chain, 8), WIDTHS["width, chain relu 4"][1])
WIDTHS["width, modular sums"] = (
    lambda width: Transformer(2, width, norm=False, classes=MODULUS),
    (32, 64, 128, 256),
)
DEPTHS["chain relu, width 128"] = (partial(Chain, width=128), (4, 8, 16, 32, 64))
FAMILIES = DEPTHS | WIDTHS


def data_of(model: nn.Module) -> Digits:
    """Digits, or all sums of two numbers modulo 23 with their results."""
    if getattr(model, "classes", 10) != MODULUS:
        return digits()
    numbers = jnp.stack(jnp.divmod(jnp.arange(MODULUS**2), MODULUS), 1)
    return Digits(numbers, numbers.sum(1) % MODULUS)


def initialized(model: nn.Module, x: jax.Array, seed: int):
    """The model's parameters as Flax draws them."""
    return jax.jit(model.init)(jax.random.key(seed), x)["params"]
