"""Kinds of layers in NNX, which have nothing of the grammar inside."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from tests.fuzz.growing import WIDTHS, narrowed
from tests.fuzz.layers import FUNCTIONS
from tests.fuzz.nnx_models.building import (
    Applied,
    OverSteps,
    nnx_kind,
    with_steps,
)

lecun = nnx.initializers.lecun_normal()
zeros, ones = nnx.initializers.zeros, nnx.initializers.ones
CELLS: dict[str, Any] = {
    "fused": nnx.OptimizedLSTMCell,
    "elman": nnx.SimpleCell,
    "gru": nnx.GRUCell,
    "lstm": nnx.LSTMCell,
}


@nnx_kind()
def dense(b, shape, features, bias):
    return nnx.Linear(shape[-1], features, use_bias=bias, **b.options), features


@nnx_kind()
def zero_dense(b, shape, features):
    return nnx.Linear(shape[-1], features, kernel_init=zeros, **b.options), features


@nnx_kind()
def conv(b, shape, features, taps):
    return OverSteps(nnx.Conv(shape[-1], features, (taps,), **b.options)), features


class Halved(nnx.Module):
    """Every other step, twice."""

    def __init__(self, conv):
        self.conv = conv

    def __call__(self, x):
        return jnp.repeat(self.conv(x), 2, -2)[..., : x.shape[-2], :]


@nnx_kind()
def strided(b, shape, features):
    layer = nnx.Conv(shape[-1], features, (3,), strides=2, **b.options)
    return OverSteps(Halved(layer)), features


@nnx_kind()
def conv_transpose(b, shape, features, taps):
    layer = nnx.ConvTranspose(shape[-1], features, (taps,), **b.options)
    return OverSteps(layer), features


@nnx_kind()
def dense_general(b, shape, heads, features):
    total = heads * features
    split = nnx.LinearGeneral(shape[-1], (heads, features), **b.options)
    merge = nnx.LinearGeneral((heads, features), total, axis=(-2, -1), **b.options)
    return nnx.Sequential(split, jnp.tanh, merge), total


@nnx_kind()
def einsum(b, shape, features):
    shapes = (shape[-1], features), (features,)
    return nnx.Einsum("...i,io->...o", *shapes, **b.options), features


class Own(nnx.Module):
    """A unit with arrays of its own."""

    def __init__(self, b, n, how, features):
        self.how, self.dtype = how, b.dtype
        columns = {"halves": 2 * features}.get(how, features)
        if how == "scalar":
            self.value = b.draw(nnx.initializers.constant(0.5))
        elif how == "gain":
            self.scale = b.draw(zeros, n)
        else:
            self.kernel = b.draw(lecun, n, columns)
        if how == "shuffle":
            self.order = jax.random.permutation(b.rngs.params(), n)

    def __call__(self, x):
        return self.project(x)

    def project(self, x):
        """What the unit does."""
        x = narrowed(self, x)
        match self.how:
            case "scalar":
                return x * self.value
            case "gain":
                return x * (1 + self.scale[...])
            case "shuffle":
                return x[..., self.order] @ self.kernel
            case "halves":
                a, b = jnp.split(x @ self.kernel, 2, -1)
                return a, jnp.exp(0.1 * jnp.tanh(b))
            case "dict":
                size = jnp.abs(x).sum(-1, keepdims=True) * self.kernel.mean()
                return {"mean": x @ self.kernel, "size": size}
        return x @ self.kernel


class UsingOwn(nnx.Module):
    """Makes one array of what such a unit puts out."""

    def __init__(self, unit):
        self.unit = unit

    def __call__(self, x):
        how = self.unit.how
        y: Any = self.unit.project(x) if how == "method" else self.unit(x)
        if how == "halves":
            return jnp.tanh(y[0]) * y[1]
        return y["mean"] / (1 + jnp.abs(y["size"])) if how == "dict" else y


@nnx_kind()
def own(b, shape, how, features):
    out = shape[-1] if how in ("scalar", "gain") else features
    return UsingOwn(Own(b, shape[-1], how, features)), out


class Mixed(nnx.Module):
    """A unit over steps, not over features."""

    def __init__(self, b, steps):
        self.mix = nnx.Param(lecun(b.rngs.params(), (steps, steps)))

    def __call__(self, x):
        return jnp.einsum("...sf,st->...tf", x, self.mix[...])


@nnx_kind()
def mix(b, shape):
    return OverSteps(Mixed(b, with_steps(shape)[-2])), shape[-1]


@nnx_kind()
def layer_norm(b, shape):
    return nnx.LayerNorm(shape[-1], **b.options), shape[-1]


@nnx_kind()
def rms_norm(b, shape, init):
    scale_init = getattr(nnx.initializers, init)
    return nnx.RMSNorm(shape[-1], scale_init=scale_init, **b.options), shape[-1]


@nnx_kind()
def group_norm(b, shape, groups):
    n = shape[-1]
    groups = groups if n % groups == 0 else 1
    return OverSteps(nnx.GroupNorm(n, groups, **b.options)), n


@nnx_kind()
def batch_norm(b, shape, running):
    return nnx.BatchNorm(shape[-1], use_running_average=running, **b.options), shape[-1]


class Attending(nnx.Module):
    """Self-attention."""

    def __init__(self, b, n, heads, causal):
        self.causal = causal
        self.layer = nnx.MultiHeadAttention(
            heads, n, qkv_features=4, decode=False, **b.options
        )

    def __call__(self, x):
        steps = x.shape[-2]
        mask = jnp.tril(jnp.ones((1, steps, steps), bool)) if self.causal else None
        return self.layer(x, mask=mask)


@nnx_kind()
def attention(b, shape, heads, causal):
    return OverSteps(Attending(b, shape[-1], heads, causal)), shape[-1]


@nnx_kind(
    lambda c: (c.pick(tuple(CELLS)), c.pick(WIDTHS), c.pick((False, True))),
)
def rnn(b, shape, cell, features, both):
    dtype = b.options["dtype"]
    kinds = {} if dtype is None else {"dtype": dtype}
    cells = lambda: CELLS[cell](shape[-1], features, rngs=b.rngs, **kinds)
    if not both:
        return OverSteps(nnx.RNN(cells())), features
    layer = nnx.Bidirectional(nnx.RNN(cells()), nnx.RNN(cells()), rngs=b.rngs)
    return OverSteps(layer), 2 * features


class Lookup(nnx.Module):
    """An embedding of inputs that are rounded; `tied` reads it out again."""

    def __init__(self, b, n, features, tied):
        self.embed = nnx.Embed(5, features, **b.options)
        self.linear = nnx.Linear(n, features, **b.options) if tied else None

    def __call__(self, x):
        tokens = jnp.mod(jnp.floor(4 * jnp.abs(x).sum(-1)), 5).astype(jnp.int32)
        y = self.embed(tokens)
        if self.linear is None:
            return y
        return self.embed.attend(jnp.tanh(y + self.linear(x)))


@nnx_kind()
def lookup(b, shape, features):
    return Lookup(b, shape[-1], features, False), features


@nnx_kind()
def tied(b, shape, features):
    return Lookup(b, shape[-1], features, True), 5


@nnx_kind()
def weight_norm(b, shape, features):
    layer = nnx.Linear(shape[-1], features, **b.options)
    return nnx.WeightNorm(layer, rngs=b.rngs), features


class Spectral(nnx.Module):
    """A kernel divided by its largest singular value."""

    def __init__(self, b, n, features):
        layer = nnx.Linear(n, features, **b.options)
        self.norm = nnx.SpectralNorm(layer, rngs=b.rngs)

    def __call__(self, x):
        return self.norm(x, update_stats=True)


@nnx_kind()
def spectral_norm(b, shape, features):
    return Spectral(b, shape[-1], features), features


@nnx_kind()
def prelu(b, shape, features):
    layer = nnx.Linear(shape[-1], features, **b.options)
    slope = nnx.PReLU(param_dtype=jnp.dtype(b.param_dtype))
    return nnx.Sequential(layer, slope), features


@nnx_kind()
def boxed(b, shape, features):
    init = nnx.with_partitioning(lecun, (None, "model"))
    with nnx.use_eager_sharding(False):
        return nnx.Linear(shape[-1], features, kernel_init=init, **b.options), features


class Complex(nnx.Module):
    """Complex layers between real arrays."""

    def __init__(self, b, n, features):
        kinds: Any = {"dtype": jnp.complex64, "param_dtype": jnp.complex64}
        self.first = nnx.Linear(n, features, rngs=b.rngs, **kinds)
        self.second = nnx.Linear(features, features, rngs=b.rngs, **kinds)

    def __call__(self, x):
        y = self.first(x)
        y = self.second(y * nnx.sigmoid(jnp.abs(y)))
        return (y.real + jnp.abs(y)).astype(x.dtype)


@nnx_kind()
def complex_(b, shape, features):
    return Complex(b, shape[-1], features), features


@nnx_kind()
def dropout(b, shape, rate):
    return nnx.Dropout(rate, rngs=b.rngs), shape[-1]


# Without parameters.


@nnx_kind()
def act(b, shape, name):
    return Applied(FUNCTIONS[name]), shape[-1]


@nnx_kind()
def stop(b, shape):
    return Applied(jax.lax.stop_gradient), shape[-1]


class Times(nnx.Module):
    """A power of ten."""

    def __init__(self, exponent):
        self.exponent = exponent

    def __call__(self, x):
        return x * jnp.asarray(10.0**self.exponent, x.dtype)


@nnx_kind()
def times(b, shape, exponent):
    return Times(exponent), shape[-1]
