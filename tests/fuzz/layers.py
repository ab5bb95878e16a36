"""Kinds of layers, which have nothing of the grammar inside."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from tests.fuzz.growing import LEAF, WIDTHS, dtypes, kind, names, narrowed, over_steps

lecun = nn.initializers.lecun_normal()
CELLS: dict[str, Any] = {
    "fused": nn.OptimizedLSTMCell,
    "elman": nn.SimpleCell,
    "gru": nn.GRUCell,
    "lstm": nn.LSTMCell,
    "mgu": nn.MGUCell,
}
width = lambda c: (c.pick(WIDTHS),)


@kind(lambda c: (c.pick(WIDTHS), c.pick((True, False))), tags=LEAF)
def dense(m, x, features, bias):
    return nn.Dense(features, use_bias=bias, **dtypes(m))(x)


@kind(width, tags=LEAF)
def zero_dense(m, x, features):
    zeros = nn.initializers.zeros
    return nn.Dense(features, kernel_init=zeros, **dtypes(m))(x)


@kind(lambda c: (c.pick(WIDTHS), c.pick((1, 3))), tags=LEAF)
def conv(m, x, features, taps):
    return over_steps(nn.Conv(features, (taps,), **dtypes(m)), x)


@kind(width, tags=LEAF)
def strided(m, x, features):
    def halved(x):
        y = nn.Conv(features, (3,), strides=2, **dtypes(m))(x)
        return jnp.repeat(y, 2, -2)[..., : x.shape[-2], :]

    return over_steps(halved, x)


@kind(lambda c: (c.pick(WIDTHS), c.pick((1, 3))), tags=LEAF)
def conv_transpose(m, x, features, taps):
    return over_steps(nn.ConvTranspose(features, (taps,), **dtypes(m)), x)


@kind(lambda c: (c.pick((2, 1)), c.pick((2, 3))), tags=LEAF)
def dense_general(m, x, heads, features):
    y = nn.DenseGeneral((heads, features), **dtypes(m))(x)
    return nn.DenseGeneral(heads * features, axis=(-2, -1), **dtypes(m))(jnp.tanh(y))


@kind(width, tags=LEAF)
def einsum(m, x, features):
    return nn.Einsum((x.shape[-1], features), "...i,io->...o", **dtypes(m))(x)


class Own(nn.Module):
    """A unit with arrays of its own."""

    features: int
    how: str
    dtype: str
    param_dtype: str

    def __call__(self, x):
        return self.project(x)

    @nn.compact
    def project(self, x):
        """What the unit does."""
        n, dtype = x.shape[-1], jnp.dtype(self.param_dtype)
        x = narrowed(self, x)
        kernel = lambda key, shape: lecun(key, shape, dtype)
        if self.how == "halves":
            a, b = jnp.split(
                x @ self.param("kernel", kernel, (n, 2 * self.features)), 2, -1
            )
            return a, jnp.exp(0.1 * jnp.tanh(b))
        if self.how == "dict":
            w = self.param("kernel", kernel, (n, self.features))
            return {"mean": x @ w, "size": jnp.abs(x).sum(-1, keepdims=True) * w.mean()}
        if self.how == "pair":
            shape = (n, self.features)
            a, b = self.param(
                "pair", lambda key: (kernel(key, shape), kernel(key, shape))
            )
            return x @ (a + b)
        if self.how == "shuffle":
            order = self.param("order", lambda key: jax.random.permutation(key, n))
            return x[..., order] @ self.param("kernel", kernel, (n, self.features))
        if self.how == "scalar":
            return x * self.param("value", nn.initializers.constant(0.5), (), dtype)
        if self.how == "gain":
            return x * (1 + self.param("scale", nn.initializers.zeros, (n,), dtype))
        return x @ self.param("kernel", kernel, (n, self.features))


OWN = ("plain", "halves", "dict", "shuffle", "scalar", "gain", "method")


@kind(lambda c: (c.pick(OWN), c.pick(WIDTHS)), tags=LEAF)
def own(m, x, how, features):
    unit = Own(features, how, **names(m))
    y: Any = unit.project(x) if how == "method" else unit(x)
    if how == "halves":
        return jnp.tanh(y[0]) * y[1]
    return y["mean"] / (1 + jnp.abs(y["size"])) if how == "dict" else y


@kind(width, tags=LEAF)
def pair(m, x, features):
    """A parameter that is a tuple of arrays."""
    return Own(features, "pair", **names(m))(x)


class Mixed(nn.Module):
    """A unit over steps, not over features."""

    @nn.compact
    def __call__(self, x):
        n = x.shape[-2]
        return jnp.einsum("...sf,st->...tf", x, self.param("mix", lecun, (n, n)))


@kind(tags=f"{LEAF} time")
def mix(m, x):
    return over_steps(Mixed(), x)


@kind(tags=LEAF)
def layer_norm(m, x):
    return nn.LayerNorm(**dtypes(m))(x)


@kind(lambda c: (c.pick(("ones", "zeros")),), tags=LEAF)
def rms_norm(m, x, init):
    return nn.RMSNorm(scale_init=getattr(nn.initializers, init), **dtypes(m))(x)


@kind(lambda c: (c.pick((1, 2)),), tags=LEAF)
def group_norm(m, x, groups):
    groups = groups if x.shape[-1] % groups == 0 else 1
    return over_steps(nn.GroupNorm(groups, **dtypes(m)), x)


@kind(lambda c: (c.pick((False, True)),), tags=f"{LEAF} state")
def batch_norm(m, x, running):
    return nn.BatchNorm(use_running_average=running, **dtypes(m))(x)


@kind(lambda c: (c.pick((1, 2)), c.pick((False, True))), tags=LEAF)
def attention(m, x, heads, causal):
    def attend(x):
        steps = x.shape[-2]
        mask = jnp.tril(jnp.ones((1, steps, steps), bool)) if causal else None
        layer = nn.MultiHeadDotProductAttention(heads, qkv_features=4, **dtypes(m))
        return layer(x, mask=mask)

    return over_steps(attend, x)


@kind(
    lambda c: (c.pick(tuple(CELLS)), c.pick(WIDTHS), c.pick((False, True))), tags=LEAF
)
def rnn(m, x, cell, features, both):
    kinds = {"dtype": dtypes(m)["dtype"]}  # Flax draws orthogonal kernels in 32 bits
    make = lambda: nn.RNN(CELLS[cell](features, **kinds))
    return over_steps(nn.Bidirectional(make(), make()) if both else make(), x)


@kind(width, tags=LEAF)
def lookup(m, x, features):
    tokens = jnp.mod(jnp.floor(4 * jnp.abs(x).sum(-1)), 5).astype(jnp.int32)
    return nn.Embed(5, features, **dtypes(m))(tokens)


@kind(width, tags=LEAF)
def tied(m, x, features):
    embed = nn.Embed(5, features, **dtypes(m))
    tokens = jnp.mod(jnp.floor(4 * jnp.abs(x).sum(-1)), 5).astype(jnp.int32)
    h = embed(tokens) + nn.Dense(features, **dtypes(m))(x)
    return embed.attend(jnp.tanh(h))


@kind(width, tags=LEAF)
def weight_norm(m, x, features):
    return nn.WeightNorm(nn.Dense(features, **dtypes(m)))(x)


@kind(width, tags=f"{LEAF} state")
def spectral_norm(m, x, features):
    return nn.SpectralNorm(nn.Dense(features, **dtypes(m)))(x, update_stats=True)


@kind(width, tags=LEAF)
def prelu(m, x, features):
    return nn.PReLU(param_dtype=jnp.dtype(m.param_dtype))(
        nn.Dense(features, **dtypes(m))(x)
    )


@kind(width, tags=LEAF)
def boxed(m, x, features):
    init = nn.with_partitioning(lecun, (None, "model"))
    return nn.Dense(features, kernel_init=init, **dtypes(m))(x)


@kind(width, tags=LEAF)
def complex_(m, x, features):
    kinds: Any = {"dtype": jnp.complex64, "param_dtype": jnp.complex64}
    y = nn.Dense(features, **kinds)(x)
    y = nn.Dense(features, **kinds)(y * nn.sigmoid(jnp.abs(y)))
    return (y.real + jnp.abs(y)).astype(x.dtype)


@kind(lambda c: (c.pick((0.2, 0.5)),), tags=f"{LEAF} random")
def dropout(m, x, rate):
    return nn.Dropout(rate, deterministic=False)(x)


# Without parameters.


@jax.custom_vjp
def bounded(x):
    return jnp.tanh(x)


bounded.defvjp(lambda x: (bounded(x), x), lambda x, g: (g / jnp.cosh(x) ** 2,))


@jax.custom_vjp
def reversed_gradient(x):
    return x


reversed_gradient.defvjp(lambda x: (x, None), lambda _, g: (-2 * g,))


def straight_sign(x):
    return x + jax.lax.stop_gradient(jnp.sign(x) - x)


FUNCTIONS = {
    "tanh": jnp.tanh,
    "relu": nn.relu,
    "gelu": nn.gelu,
    "sin": jnp.sin,
    "softmax": nn.softmax,
    "abs": jnp.abs,
    "square": jnp.square,
    "cumsum": lambda x: over_steps(lambda x: jnp.cumsum(x, -2), x),
    "flip": lambda x: over_steps(lambda x: x[..., ::-1, :], x),
    "sort": lambda x: jnp.sort(x, -1),
    "centre": lambda x: over_steps(lambda x: x - x.mean(-2, keepdims=True), x),
    "bounded": bounded,
    "reversed": reversed_gradient,
    "straight": straight_sign,
}


@kind(lambda c: (c.pick(tuple(FUNCTIONS)),), tags=LEAF)
def act(m, x, name):
    return FUNCTIONS[name](x)


@kind(tags=LEAF)
def stop(m, x):
    return jax.lax.stop_gradient(x)


@kind(lambda c: (c.pick((-2, 3, -8, 8, -30, 20, 30)),), tags=f"{LEAF} extreme")
def times(m, x, exponent):
    return x * jnp.asarray(10.0**exponent, x.dtype)
