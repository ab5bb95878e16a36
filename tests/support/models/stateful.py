"""State, randomness, and arrays that start at zero."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from tests.support.cases import (
    Case,
    batches,
    cross_entropy,
    images,
    make,
    paths,
    series,
    vectors,
)

lecun = nn.initializers.lecun_normal()
zeros = nn.initializers.zeros_init()


class Normed(nn.Module):
    """Batch statistics are updated; one feature's mean may span a mapped axis."""

    axis_name: str | None = None

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(16, use_bias=False, name="first")(x)
        norm = partial(nn.BatchNorm, use_running_average=False)
        x = nn.relu(norm(axis_name=self.axis_name, name="norm")(x))
        return nn.Dense(4, name="last")(x)


class Dropped(nn.Module):
    """Dropout draws from a stream of its own."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Dense(16, name="first")(x))
        return nn.Dense(4, name="last")(nn.Dropout(0.3, deterministic=False)(x))


class NoisyDense(nn.Module):
    """A unit that draws by `make_rng`, so two calls of it differ."""

    features: int

    @nn.compact
    def __call__(self, x):
        kernel = self.param("kernel", lecun, (x.shape[-1], self.features))
        noise = jax.random.normal(self.make_rng("noise"), kernel.shape)
        return x @ (kernel * (1.0 + 0.1 * noise))


class ResBlock(nn.Module):
    """The gain of the last norm starts at zero: so do the gradients below it."""

    @nn.compact
    def __call__(self, x):
        norm = partial(nn.BatchNorm, use_running_average=False)
        h = nn.Conv(8, (3, 3), use_bias=False, name="conv1")(x)
        h = nn.relu(norm(name="norm1")(h))
        h = nn.Conv(8, (3, 3), use_bias=False, name="conv2")(h)
        return nn.relu(x + norm(scale_init=zeros, name="norm2")(h))


class ZeroGain(nn.Module):
    """Residual branches whose contribution is nil at the start."""

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(8, (3, 3), strides=2, name="stem")(x)
        x = ResBlock(name="block2")(ResBlock(name="block1")(x))
        return nn.Dense(4, name="head")(x.mean((1, 2)))


class AdaLnZero(nn.Module):
    """A zero-initialized unit makes the shifts, scales and gates of a block."""

    @nn.compact
    def __call__(self, x, condition):
        ada = nn.Dense(3 * 8, kernel_init=zeros, name="ada")(nn.silu(condition))
        shift, scale, gate = jnp.split(ada[:, None], 3, -1)
        h = nn.LayerNorm(use_bias=False, use_scale=False)(x) * (1.0 + scale) + shift
        h = nn.Dense(8, name="down")(nn.gelu(nn.Dense(16, name="up")(h)))
        return nn.Dense(4, name="head")(x + gate * h)


ROWS: tuple[Case, ...] = (
    Case(
        "batch_norm",
        lambda: make(Normed(), vectors),
        paths("first norm last"),
    ),
    Case(
        "batch_norm_axis_name",
        lambda: make(Normed("batch"), vectors, axis_name="batch"),
        paths("first norm last"),
    ),
    Case(
        "dropout",
        lambda: make(Dropped(), vectors, rngs=("dropout",)),
        paths("first last"),
    ),
    Case(
        "unit_rng",
        lambda: make(
            nn.Sequential([NoisyDense(8), nn.tanh, NoisyDense(4)]),
            vectors,
            rngs=("noise",),
        ),
        paths("layers_{0,2}"),
    ),
    Case(
        "zero_gain_resnet",
        lambda: make(ZeroGain(), images, cross_entropy),
        paths("stem block{1,2}/{conv1,norm1,conv2,norm2} head"),
        zeros=paths("block{1,2}/norm2/scale"),
    ),
    Case(
        "adaln_zero",
        lambda: make(AdaLnZero(), batches(series, vectors)),
        paths("ada up down head"),
        zeros=paths("ada/kernel"),
    ),
)
