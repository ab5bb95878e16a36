"""Types of numbers, and boxes around them."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import freeze

from tests.support.cases import Case, Job, cross_entropy, make, paths, vectors
from tests.support.models.dense import CompactMlp

lecun = nn.initializers.lecun_normal()


class Complex(nn.Module):
    """Complex parameters between a real input and a real output."""

    @nn.compact
    def __call__(self, x):
        dense = partial(nn.Dense, dtype=jnp.complex64, param_dtype=jnp.complex64)
        x = dense(16, name="first")(x)
        x = dense(8, name="second")(x * nn.sigmoid(jnp.abs(x)))
        return nn.Dense(4, name="head")(jnp.abs(x))


class Shuffle(nn.Module):
    """An int32 array among the parameters of a unit: no scale may touch it."""

    @nn.compact
    def __call__(self, x):
        width = x.shape[-1]
        order = self.param("order", lambda key: jax.random.permutation(key, width))
        kernel = self.param("kernel", lecun, (width, width))
        return x[:, order] @ kernel


class Temperature(nn.Module):
    """A unit of one scalar."""

    @nn.compact
    def __call__(self, x):
        return x * self.param("value", nn.initializers.constant(0.5), ())


class Boxed(nn.Module):
    """Parameters in boxes that hold their partitioning."""

    @nn.compact
    def __call__(self, x):
        init = nn.with_partitioning(lecun, (None, "model"))
        x = nn.tanh(nn.Dense(16, kernel_init=init, name="first")(x))
        return nn.Dense(4, kernel_init=init, name="last")(x)


def frozen(job: Job) -> Job:
    return job._replace(params=freeze(job.params))


ROWS: tuple[Case, ...] = (
    Case(
        "complex",
        lambda: make(Complex(), vectors),
        paths("first second head"),
    ),
    Case(
        "bfloat16",
        lambda: make(CompactMlp(jnp.bfloat16), vectors),
        paths("Dense_{0,1,2}"),
    ),
    Case(
        "float16",
        lambda: make(CompactMlp(jnp.float16), vectors),
        paths("Dense_{0,1,2}"),
    ),
    Case(
        "integer_parameter",
        lambda: make(nn.Sequential([Shuffle(), nn.tanh, Shuffle()]), vectors),
        paths("layers_{0,2}"),
    ),
    Case(
        "scalar_parameter",
        lambda: make(
            nn.Sequential([nn.Dense(8), nn.tanh, nn.Dense(4), Temperature()]),
            vectors,
            cross_entropy,
        ),
        paths("layers_{0,2,3}"),
    ),
    Case("boxed", lambda: make(Boxed(), vectors), paths("first last")),
    Case(
        "frozen_dict",
        lambda: frozen(make(CompactMlp(), vectors)),
        paths("Dense_{0,1,2}"),
    ),
)
