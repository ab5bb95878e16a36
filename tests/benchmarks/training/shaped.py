"""Plain networks of any activation function, and DeepMind's DKS and TAT on them."""

from collections.abc import Callable
from functools import cache, partial

import flax.linen as nn
import jax
import numpy as np
from jax.nn import initializers

from tests.benchmarks.training.families import by_patches

ZETA, ETA = 1.5, 0.9
"""The targets of DKS and of TAT for leaky ReLU: the papers' own."""

NAMES = {nn.silu: "swish", nn.relu: "leaky_relu"}
"""What `dks` calls them; TAT makes a leaky ReLU of a ReLU."""


class Perceptron(nn.Module):
    """`depth` dense layers, the last of them a linear readout."""

    depth: int
    width: int = 64
    activation: Callable = nn.relu

    @property
    def activations(self) -> int:
        return self.depth - 1

    @nn.compact
    def __call__(self, x):
        for i in range(self.depth - 1):
            x = self.activation(nn.Dense(self.width, name=f"layer{i}")(x))
        return nn.Dense(10, name="head")(x)


def conv3x3(width: int, patches: bool, **options) -> nn.Conv:
    """A convolution; by patches it has the same parameters and trains faster on CPU."""
    product = by_patches if patches else None
    return nn.Conv(width, (3, 3), conv_general_dilated=product, **options)


class Convolutions(nn.Module):
    """`depth` plain 3x3 convolutions over a digit; two of them halve it."""

    depth: int
    width: int = 16
    activation: Callable = nn.relu
    patches: bool = False

    @property
    def activations(self) -> int:
        return self.depth

    @nn.compact
    def __call__(self, x):
        x = x.reshape(-1, 8, 8, 1)
        for i in range(self.depth):
            strides = 2 if i in (self.depth // 4, self.depth // 2) else 1
            name = f"conv{i}"
            x = conv3x3(self.width, self.patches, strides=strides, name=name)(x)
            x = self.activation(x)
        return nn.Dense(10, name="head")(x.mean((1, 2)))


class Vgg(nn.Module):
    """Stages of 3x3 convolutions, a max pooling behind each, and two dense layers."""

    stages: tuple[tuple[int, ...], ...] = ((16, 16), (32, 32, 32), (64, 64, 64))
    patches: bool = False

    @nn.compact
    def __call__(self, x):
        x = x.reshape(-1, 8, 8, 1)
        for i, widths in enumerate(self.stages):
            for j, width in enumerate(widths):
                x = nn.relu(conv3x3(width, self.patches, name=f"conv{i}_{j}")(x))
            x = nn.max_pool(x, (2, 2), (2, 2))
        x = nn.relu(nn.Dense(64, name="dense")(x.reshape(len(x), -1)))
        return nn.Dense(10, name="head")(x)


def trained(model: nn.Module) -> nn.Module:
    """The network as it trains fastest; parameters of the one are the other's."""
    return model.clone(patches=True) if hasattr(model, "patches") else model


def can_be_shaped(model: nn.Module) -> bool:
    return isinstance(model, Perceptron | Convolutions)


def require_dks() -> Callable:
    """`dks.get_transformed_activations`, of its own quadrature and solver.

    Its module for JAX imports `jax.config`, which is gone; all that it adds are JAX's
    activation functions, which `shaped` hands over.

    Raises:
        ImportError: `dks` is not installed.
    """
    try:
        from dks.base.activation_transform import (  # pyright: ignore
            get_transformed_activations,
        )
    except ImportError as error:
        raise ImportError(
            "DKS and TAT are DeepMind's own: pip install dks autograd; "
            "or name other starts after --starts"
        ) from error
    return get_transformed_activations


@cache
def shaped(model: Perceptron | Convolutions, smooth: str) -> nn.Module:
    """The network with transformed activation functions.

    Arguments:
        model: a chain, whose largest subnetwork is the whole chain.
        smooth: "DKS" or "TAT", for functions other than ReLU; that is TAT's.
    """
    name = NAMES.get(model.activation, model.activation.__name__)
    count = model.activations

    def through_all(x: float, layer: Callable) -> float:
        for _ in range(count):
            x = layer(x)
        return x

    with np.errstate(all="ignore"):  # the solver tries arguments that overflow
        functions = require_dks()(
            [name],
            method="TAT" if name == "leaky_relu" else smooth,
            dks_params={"c_slope_1_target": ZETA},
            tat_params={"c_val_0_target": ETA},
            max_slope_func=lambda slope: slope**count,
            subnet_max_func=through_all,
            activation_getter=partial(getattr, jax.nn),
        )
    return model.clone(activation=functions[name])


def orthogonal(gain: float = 1.0, keep_size: bool = False) -> Callable:
    """Orthogonal matrices; in convolutions at the middle of the window, if they fit.

    `keep_size`: times sqrt(outputs / inputs) where these are more, as DKS and TAT ask.
    """

    def draw(key, shape, dtype):
        fits = len(shape) > 2 and shape[-2] <= shape[-1]
        wider = max(1.0, shape[-1] / shape[-2]) ** 0.5 if keep_size else 1.0
        rule = initializers.delta_orthogonal if fits else initializers.orthogonal
        return rule(gain * wider)(key, shape, dtype)

    return draw
