"""Kinds of layers that only NNX has."""

import jax.numpy as jnp
from flax import nnx

from tests.fuzz.growing import LEAF, WIDTHS
from tests.fuzz.nnx_models.building import Narrowed, nnx_kind
from tests.fuzz.nnx_models.layers import lecun

width = lambda c: (c.pick(WIDTHS),)


class Matrix(nnx.Module):
    """A raw parameter used with `@`, beside a layer of the same module."""

    def __init__(self, b, n, features):
        self.first = nnx.Linear(n, features, **b.options)
        self.mix = b.draw(lecun, features, features)

    def __call__(self, x):
        return jnp.tanh(self.first(x)) @ self.mix


@nnx_kind(width, tags=LEAF)
def matrix(b, shape, features):
    return Narrowed(b, Matrix(b, shape[-1], features)), features


class OneKernel(nnx.Module):
    """Two layers with one kernel, though each has its own bias."""

    def __init__(self, b, n):
        self.first = nnx.Linear(n, n, **b.options)
        self.second = nnx.Linear(n, n, **b.options)
        self.second.kernel = self.first.kernel

    def __call__(self, x):
        return self.second(jnp.tanh(self.first(x)))


@nnx_kind(tags=LEAF)
def one_kernel(b, shape):
    return OneKernel(b, shape[-1]), shape[-1]


@nnx_kind(width, tags=LEAF)
def lora_linear(b, shape, features):
    options = b.options
    kinds = {"lora_dtype": options["dtype"], "lora_param_dtype": options["param_dtype"]}
    layer = nnx.LoRALinear(shape[-1], features, lora_rank=2, **kinds, **options)
    return layer, features


class Count(nnx.Variable):
    """A number of calls."""


class Counted(nnx.Module):
    """Each call counts, and keeps what it has computed."""

    def __init__(self, b, n, features):
        self.calls = Count(jnp.array(0))
        self.linear = nnx.Linear(n, features, **b.options)
        self.hidden = nnx.Intermediate(jnp.zeros(()))

    def __call__(self, x):
        self.calls[...] += 1
        y = self.linear(x)
        self.hidden[...] = jnp.mean(y).astype(jnp.float32)
        return y


@nnx_kind(width, tags=f"{LEAF} state")
def counted(b, shape, features):
    return Counted(b, shape[-1], features), features
