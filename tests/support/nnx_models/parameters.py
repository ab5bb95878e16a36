"""Parameters: raw ones, those of a layer written by hand, and their types."""

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx

from tests.support.cases import batches, normal
from tests.support.nnx_models.cases import NnxCase, row, vectors
from tests.support.nnx_models.dense import Block, Mlp

lecun = nnx.initializers.lecun_normal()


class Raw(nnx.Module):
    """A parameter used with `@` beside layers, in the same module."""

    def __init__(self, rngs):
        self.first = nnx.Linear(8, 16, rngs=rngs)
        self.mix = nnx.Param(lecun(rngs.params(), (16, 16)))
        self.gain = nnx.Param(0.5 * jnp.ones(16))
        self.head = nnx.Linear(16, 4, rngs=rngs)

    def __call__(self, x):
        x = nnx.tanh(self.first(x))
        return self.head(nnx.tanh(x @ self.mix) * self.gain)


class LayerScale(nnx.Module):
    """A raw gain on a branch."""

    def __init__(self, rngs):
        self.block = Block(rngs)
        self.gain = nnx.Param(0.1 * jnp.ones(8))

    def __call__(self, x):
        return x + self.gain * self.block(x)


class Leaf(nnx.Module):
    """A layer by its own parameters, of other names than Flax gives them."""

    def __init__(self, n_in, n_out, rngs):
        self.weight = nnx.Param(lecun(rngs.params(), (n_in, n_out)))
        self.offset = nnx.Param(jnp.zeros(n_out))

    def __call__(self, x):
        return x @ self.weight + self.offset[...]


def leaves(rngs):
    """Layers written by hand."""
    return nnx.Sequential(Leaf(8, 16, rngs), nnx.tanh, Leaf(16, 4, rngs))


class Root(nnx.Module):
    """The model is itself a layer: there is no other module."""

    def __init__(self, rngs):
        self.up = nnx.Param(lecun(rngs.params(), (8, 16)))
        self.down = nnx.Param(lecun(rngs.params(), (16, 4)))

    def __call__(self, x):
        return nnx.tanh(x @ self.up) @ self.down


class Listed(nnx.Module):
    """Parameters in an `nnx.List`, which no layer holds."""

    def __init__(self, rngs):
        keys = [rngs.params() for _ in range(3)]
        self.kernels = nnx.List([nnx.Param(lecun(key, (8, 8))) for key in keys])

    def __call__(self, x):
        for kernel in self.kernels:
            x = nnx.tanh(x @ kernel)
        return x


class Arrays(nnx.Module):
    """Plain arrays beside parameters: they are data, and no `nnx.Param`."""

    def __init__(self, rngs):
        self.kernel = nnx.data(lecun(rngs.params(), (8, 16)))
        self.offset = jnp.full(16, 0.1)
        self.order = jnp.arange(16)[::-1]
        self.gain = nnx.Param(jnp.ones(16))
        self.head = nnx.Linear(16, 4, rngs=rngs)

    def __call__(self, x):
        x = nnx.tanh(x @ self.kernel + self.offset)
        return self.head(x[:, self.order] * self.gain)


class Buffer(nnx.Variable):
    """A variable that is no parameter."""


class Standardized(nnx.Module):
    """Means and deviations of the inputs, held in variables that no call changes."""

    def __init__(self, rngs):
        self.mean = Buffer(jnp.full(8, 0.1))
        self.deviation = Buffer(jnp.full(8, 2.0))
        self.mlp = Mlp(rngs)

    def __call__(self, x):
        return self.mlp((x - self.mean) / self.deviation)


class Bilinear(nnx.Module):
    """A layer of two inputs, linear in each."""

    def __init__(self, rngs):
        shape = (8, 6, 8)
        self.kernel = nnx.Param(0.2 * jax.random.normal(rngs.params(), shape))

    def __call__(self, a, b):
        return jnp.einsum("na,nb,abc->nc", a, b, self.kernel[...])


class Meeting(nnx.Module):
    """Two inputs that meet in one layer."""

    def __init__(self, rngs):
        self.fuse = Bilinear(rngs)
        self.head = nnx.Linear(8, 4, rngs=rngs)

    def __call__(self, a, b):
        return self.head(nnx.tanh(self.fuse(a, b)))


class Complex(nnx.Module):
    """Complex parameters between a real input and a real output."""

    def __init__(self, rngs):
        linear = partial(
            nnx.Linear, dtype=jnp.complex64, param_dtype=jnp.complex64, rngs=rngs
        )
        self.first, self.second = linear(8, 16), linear(16, 8)
        self.head = nnx.Linear(8, 4, rngs=rngs)

    def __call__(self, x):
        x = self.first(x)
        x = self.second(x * nnx.sigmoid(jnp.abs(x)))
        return self.head(jnp.abs(x))


def partitioned(rngs):
    """Parameters that hold their partitioning, where there is no mesh."""
    init = nnx.with_partitioning(lecun, (None, "model"))
    with nnx.use_eager_sharding(False):
        return Mlp(rngs, kernel_init=init)


CASES: dict[str, NnxCase] = {
    "raw_param": row(Raw, vectors, "raw"),
    "layer_scale": row(LayerScale, vectors, "raw"),
    "leaf_params": row(leaves, vectors),
    "root_params": row(Root, vectors),
    "param_list": row(Listed, vectors),
    "plain_arrays": row(Arrays, vectors, "raw buffer"),
    "buffers": row(Standardized, vectors, "buffer"),
    "bilinear": row(Meeting, batches(vectors, normal(8, 6)), "inputs"),
    "complex": row(Complex, vectors, "complex"),
    "bfloat16": row(lambda rngs: Mlp(rngs, dtype=jnp.bfloat16), vectors, "dtype"),
    "bfloat16_params": row(
        lambda rngs: Mlp(rngs, param_dtype=jnp.bfloat16), vectors, "dtype"
    ),
    "partitioned": row(partitioned, vectors),
}
