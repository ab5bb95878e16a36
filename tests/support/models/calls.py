"""Calls and methods: how a unit is reached, and what reaches its parameters."""

from typing import Any

import flax.linen as nn

from tests.support.cases import Case, batches, make, paths, vectors

lecun = nn.initializers.lecun_normal()


class Halved(nn.Dense):
    """A call that goes on to the parent class: one unit, not two."""

    @nn.compact
    def __call__(self, inputs):
        return 0.5 * super().__call__(inputs)


class HalvedTwice(Halved):
    """And once more."""

    @nn.compact
    def __call__(self, inputs):
        return 0.5 * super().__call__(inputs)


class Encoding(nn.Module):
    """A unit whose call goes through another public method of it."""

    features: int

    @nn.compact
    def encode(self, x):
        return x @ self.param("kernel", lecun, (x.shape[-1], self.features))

    def __call__(self, x):
        return nn.tanh(self.encode(x))


class SelfCall(nn.Module):
    """The model's call goes through its `encode`, as do the calls of its unit."""

    def setup(self):
        self.first, self.last = Encoding(8), nn.Dense(4)

    def encode(self, x):
        return self.first(x)

    def __call__(self, x):
        return self.last(self.encode(x))


class Autoencoder(nn.Module):
    """Run by `encode` alone: half the parameters are out of reach."""

    def setup(self):
        self.encoder = nn.Sequential([nn.Dense(16), nn.tanh, nn.Dense(4)])
        self.decoder = nn.Sequential([nn.Dense(16), nn.tanh, nn.Dense(8)])

    def encode(self, x):
        return self.encoder(x)

    def decode(self, z):
        return self.decoder(z)

    def __call__(self, x):
        return self.decode(self.encode(x))


class Projection(nn.Module):
    """A unit that has no `__call__`."""

    features: int

    @nn.compact
    def project(self, x):
        return x @ self.param("kernel", lecun, (x.shape[-1], self.features))


class NoCall(nn.Module):
    """No `__call__` in the model either: it is run by a function."""

    def setup(self):
        self.encoder, self.decoder = nn.Dense(8), Projection(4)

    def encode(self, x):
        return nn.tanh(self.encoder(x))

    def decode(self, z):
        return self.decoder.project(z)


def through(model, x):
    return model.decode(model.encode(x))


class Equalized(nn.Dense):
    """`Module.param` overridden: it is a method that returns a parameter."""

    def param(self, name, *args, **kwargs):
        value: Any = super().param(name, *args, **kwargs)
        return value * 1.5 if name == "kernel" else value


class NormInside(nn.Module):
    """`nn.WeightNorm` undoes a scale of the kernel within; its own is loose."""

    def setup(self):
        self.norm, self.head = nn.WeightNorm(nn.Dense(8)), nn.Dense(4)

    def __call__(self, x):
        return self.head(nn.tanh(self.norm(x)))


class NormBeside(nn.Module):
    """The same, with the wrapped layer beside its wrapper."""

    @nn.compact
    def __call__(self, x):
        x = nn.WeightNorm(nn.Dense(8, name="inner"), name="norm")(x)
        return nn.Dense(4, name="head")(nn.tanh(x))


class Spectral(nn.Module):
    """`nn.SpectralNorm` undoes a scale of the kernel, and keeps state."""

    @nn.compact
    def __call__(self, x, update_stats):
        norm = nn.SpectralNorm(nn.Dense(8, name="inner"), name="norm")
        x = norm(x, update_stats=update_stats)
        return nn.Dense(4, name="head")(nn.tanh(x))


ROWS: tuple[Case, ...] = (
    Case(
        "super_call",
        lambda: make(nn.Sequential([HalvedTwice(8), nn.tanh, Halved(4)]), vectors),
        paths("layers_{0,2}"),
    ),
    Case("self_call", lambda: make(SelfCall(), vectors), paths("first last")),
    Case(
        "method_encode",
        lambda: make(Autoencoder(), vectors, init="__call__", method="encode"),
        paths("encoder/layers_{0,2}"),
        unreached=paths("decoder/layers_{0,2}"),
    ),
    Case(
        "method_function",
        lambda: make(NoCall(), vectors, method=through),
        paths("encoder decoder/project"),
    ),
    Case(
        "param_overridden",
        lambda: make(nn.Sequential([Equalized(8), nn.tanh, Equalized(4)]), vectors),
        paths("layers_{0,2}"),
    ),
    Case(
        "weight_norm",
        lambda: make(NormInside(), vectors),
        paths("norm/layer_instance head"),
        loose=paths("norm/layer_instance/kernel/scale"),
    ),
    Case(
        "weight_norm_beside",
        lambda: make(NormBeside(), vectors),
        paths("inner head"),
        loose=paths("norm/inner/kernel/scale"),
    ),
    Case(
        "spectral_norm",
        lambda: make(Spectral(), batches(vectors, update_stats=True)),
        paths("inner head"),
    ),
)
