"""Plain structure: where a model may hold its layers, and how it calls them."""

import jax.numpy as jnp
from flax import nnx

from tests.support.cases import batches, normal
from tests.support.nnx_models.cases import NnxCase, row, vectors

zeros = nnx.initializers.zeros_init()


class Mlp(nnx.Module):
    """No trap: layers held by attributes."""

    def __init__(self, rngs, width=16, **options):
        self.first = nnx.Linear(8, width, rngs=rngs, **options)
        self.second = nnx.Linear(width, width, rngs=rngs, **options)
        self.head = nnx.Linear(width, 4, rngs=rngs, **options)

    def __call__(self, x):
        x = nnx.relu(self.first(x))
        return self.head(nnx.relu(self.second(x)))


class Block(nnx.Module):
    """A residual block: two layers on one level."""

    def __init__(self, rngs, width=8, **last):
        self.up = nnx.Linear(width, 2 * width, rngs=rngs)
        self.down = nnx.Linear(2 * width, width, rngs=rngs, **last)

    def __call__(self, x):
        return x + self.down(nnx.relu(self.up(x)))


def sequential(rngs):
    """Layers and functions by turns."""
    first, last = nnx.Linear(8, 16, rngs=rngs), nnx.Linear(16, 4, rngs=rngs)
    return nnx.Sequential(first, nnx.tanh, Block(rngs, 16), last)


class Residual(nnx.Module):
    """Blocks in an `nnx.List`, each the identity at first where `last` says so."""

    def __init__(self, rngs, **last):
        self.blocks = nnx.List([Block(rngs, **last) for _ in range(2)])
        self.head = nnx.Linear(8, 4, rngs=rngs)

    def __call__(self, x):
        for block in self.blocks:
            x = block(x)
        return self.head(x)


class Named(nnx.Module):
    """Layers in a mapping that `hold` makes of a dict."""

    def __init__(self, rngs, hold):
        first, last = nnx.Linear(8, 16, rngs=rngs), nnx.Linear(16, 4, rngs=rngs)
        self.layers = hold({"first": first, "last": last})

    def __call__(self, x):
        return self.layers["last"](nnx.tanh(self.layers["first"](x)))


class Nested(nnx.Module):
    """A list in a dict, neither of which is a module."""

    def __init__(self, rngs):
        blocks = [Block(rngs) for _ in range(2)]
        self.parts = nnx.data({"blocks": blocks, "head": nnx.Linear(8, 4, rngs=rngs)})

    def __call__(self, x):
        for block in self.parts["blocks"]:
            x = block(x)
        return self.parts["head"](x)


class Nest(nnx.Module):
    """Layers at unequal depths, some three levels down."""

    def __init__(self, rngs, depth=2):
        self.own = nnx.Linear(8, 8, rngs=rngs)
        self.inner = Nest(rngs, depth - 1) if depth else nnx.Linear(8, 8, rngs=rngs)

    def __call__(self, x):
        return self.inner(nnx.tanh(self.own(x)))


class SwiGlu(nnx.Module):
    """A product of two layers: the output is quadratic in their common scale."""

    def __init__(self, rngs):
        self.norm = nnx.RMSNorm(8, rngs=rngs)
        self.gate = nnx.Linear(8, 16, use_bias=False, rngs=rngs)
        self.up = nnx.Linear(8, 16, use_bias=False, rngs=rngs)
        self.down = nnx.Linear(16, 8, use_bias=False, rngs=rngs)

    def __call__(self, x):
        x = self.norm(x)
        return self.down(nnx.silu(self.gate(x)) * self.up(x))


class Halved(nnx.Linear):
    """A call that goes on to the parent class: one layer, not two."""

    def __call__(self, inputs):
        return 0.5 * super().__call__(inputs)


class HalvedTwice(Halved):
    """And once more."""

    def __call__(self, inputs):
        return 0.5 * super().__call__(inputs)


def super_call(rngs):
    """Layers whose calls go through those of one and of two parent classes."""
    last = Halved(8, 4, rngs=rngs)
    return nnx.Sequential(HalvedTwice(8, 8, rngs=rngs), nnx.tanh, last)


class Autoencoder(nnx.Module):
    """The call goes through two other methods."""

    def __init__(self, rngs):
        self.encoder = nnx.Linear(8, 4, rngs=rngs)
        self.decoder = nnx.Linear(4, 8, rngs=rngs)

    def encode(self, x):
        return nnx.tanh(self.encoder(x))

    def decode(self, z):
        return self.decoder(z)

    def __call__(self, x):
        return self.decode(self.encode(x))


class Fusion(nnx.Module):
    """Two inputs, and a dict of outputs that holds a tuple."""

    def __init__(self, rngs):
        self.image = nnx.Linear(8, 8, rngs=rngs)
        self.text = nnx.Linear(6, 8, rngs=rngs)
        self.score = nnx.Linear(16, 1, rngs=rngs)

    def __call__(self, image, text, *, scale):
        a, b = nnx.relu(self.image(image)), nnx.relu(self.text(text))
        score = scale * self.score(jnp.concatenate([a, b], axis=-1))
        return {"score": score, "parts": (a, b), "best": score.argmax(0)}


class Narrow(nnx.Module):
    """One feature throughout."""

    def __init__(self, rngs):
        self.first = nnx.Linear(1, 1, rngs=rngs)
        self.last = nnx.Linear(1, 1, rngs=rngs)

    def __call__(self, x):
        return self.last(nnx.tanh(self.first(x)))


CASES: dict[str, NnxCase] = {
    "mlp": row(Mlp, vectors),
    "mlp_wide": row(lambda rngs: Mlp(rngs, 32), vectors, "wide"),
    "sequential": row(sequential, vectors),
    "list": row(Residual, vectors),
    "dict": row(lambda rngs: Named(rngs, nnx.Dict), vectors),
    "data_dict": row(lambda rngs: Named(rngs, nnx.data), vectors),
    "data_nested": row(Nested, vectors),
    "deep_nesting": row(Nest, vectors),
    "residual_zeros": row(
        lambda rngs: Residual(rngs, kernel_init=zeros), vectors, "zeros"
    ),
    "swiglu": row(SwiGlu, vectors),
    "super_call": row(super_call, vectors),
    "method_encode": row(Autoencoder, vectors),
    "fusion": row(Fusion, batches(vectors, normal(8, 6)), "inputs outputs", scale=0.5),
    "width_one": row(Narrow, normal(8, 1)),
}
