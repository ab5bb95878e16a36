"""Insides of units: several outputs, own gradients, kernels of many axes."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from tests.support.cases import Case, make, paths, series, vectors
from tests.support.models.dense import BLOCK, Block

lecun = nn.initializers.lecun_normal()


@jax.custom_vjp
def bounded(x):
    return jnp.tanh(x)


def _bounded_forward(x):
    y = jnp.tanh(x)
    return y, y


bounded.defvjp(_bounded_forward, lambda y, g: (g * (1.0 - y * y),))


def straight_sign(x):
    return x + jax.lax.stop_gradient(jnp.sign(x) - x)


class BoundedDense(nn.Dense):
    """A unit with its activation inside, which has a reverse rule only."""

    @nn.compact
    def __call__(self, inputs):
        return bounded(super().__call__(inputs))


class Binary(nn.Module):
    """A straight-through estimator: the gradient is not that of the formula."""

    @nn.compact
    def __call__(self, x):
        x = straight_sign(nn.Dense(16, name="first")(x))
        return nn.Dense(4, name="last")(x)


class Halves(nn.Module):
    """A unit of two outputs."""

    @nn.compact
    def __call__(self, x):
        kernel = self.param("kernel", lecun, (x.shape[-1], 16))
        a, b = jnp.split(x @ kernel, 2, axis=-1)
        return a, jnp.exp(0.1 * b)


class TwoOutputs(nn.Module):
    """Both outputs of a unit are used, differently."""

    @nn.compact
    def __call__(self, x):
        a, b = Halves(name="halves")(x)
        return nn.Dense(4, name="head")(nn.tanh(a) * b)


class Moments(nn.Module):
    """A unit that returns a dict."""

    @nn.compact
    def __call__(self, x):
        kernel = self.param("kernel", lecun, (x.shape[-1], 2, 4))
        y = jnp.einsum("ni,iko->kno", x, kernel)
        return {"mean": y[0], "log_var": y[1]}


class DictOutput(nn.Module):
    """The output of the last unit is the output of the model: a dict."""

    @nn.compact
    def __call__(self, x):
        return Moments(name="moments")(nn.tanh(nn.Dense(8, name="first")(x)))


class Tensors(nn.Module):
    """Kernels of more than two axes, whose fan is not the first axis."""

    @nn.compact
    def __call__(self, x):
        x = nn.DenseGeneral((2, 4), name="split")(x)
        x = nn.tanh(nn.Einsum((2, 4, 6), "nthd,hde->nthe", name="heads")(x))
        return nn.DenseGeneral(8, axis=(-2, -1), name="merge")(x)


class LayerScale(nn.Module):
    """A parameter beside units, in the same module: it belongs to none."""

    @nn.compact
    def __call__(self, x):
        gain = self.param("gain", nn.initializers.constant(0.1), (x.shape[-1],))
        return x + gain * Block(name="block")(x)


ROWS: tuple[Case, ...] = (
    Case(
        "custom_vjp",
        lambda: make(nn.Sequential([BoundedDense(16), nn.Dense(4)]), vectors),
        paths("layers_{0,1}"),
    ),
    Case(
        "straight_through",
        lambda: make(Binary(), vectors),
        paths("first last"),
    ),
    Case(
        "two_outputs",
        lambda: make(TwoOutputs(), vectors),
        paths("halves head"),
    ),
    Case(
        "dict_output",
        lambda: make(DictOutput(), vectors),
        paths("first moments"),
    ),
    Case("tensors", lambda: make(Tensors(), series), paths("split heads merge")),
    Case(
        "layer_scale",
        lambda: make(nn.Sequential([LayerScale(), LayerScale()]), vectors),
        paths(f"layers_{{0,1}}/block/{BLOCK}"),
        loose=paths("layers_{0,1}/gain"),
    ),
)
