"""Two models with a loss each, which reads the other one: a generative adversary."""

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx

import einit_jax as ei
from einit_jax.core import flatten
from tests.support.checks import KEY, same

KEYS = jax.random.split(KEY, 4)
NOISE = jax.random.normal(KEYS[0], (32, 4))
REAL = jax.random.normal(KEYS[1], (32, 8))
IS_REAL = jnp.repeat(jnp.array([1.0, 0.0]), 32)
libraries = pytest.mark.parametrize("library", ["linen", "nnx"])


class Mlp(nn.Module):
    """Generator and discriminator alike, so that their layers have the same paths."""

    features: int

    @nn.compact
    def __call__(self, x):
        return nn.Dense(self.features)(nn.relu(nn.Dense(32)(x)))


class NnxMlp(nnx.Module):
    def __init__(self, inputs: int, features: int, rngs: nnx.Rngs):
        self.up = nnx.Linear(inputs, 32, rngs=rngs)
        self.down = nnx.Linear(32, features, rngs=rngs)

    def __call__(self, x):
        return self.down(nnx.relu(self.up(x)))


def loss_fn(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Of the discriminator."""
    return optax.sigmoid_binary_cross_entropy(logits[:, 0], labels).mean()


def fooling(discriminate: Callable) -> Callable:
    """The loss of the generator."""
    return lambda fakes: loss_fn(discriminate(fakes), jnp.ones(len(fakes)))


def linen_model(features: int, key: jax.Array, x: jax.Array) -> tuple[Any, Any]:
    """A model and its parameters."""
    model: Any = Mlp(features)
    return model, model.init(key, x)["params"]


def apply(model: Any, params: Any, scales: Any = None) -> Callable:
    """A model with its parameters as a function, scaled or as it is."""
    if isinstance(model, nnx.Module):
        return model if scales is None else ei.scaled(model, scales)
    if scales is None:
        return partial(model.apply, {"params": params})
    return partial(ei.scaled(model).apply, {"params": params, "scales": scales})


class Adversaries:
    """A generator and a discriminator, and the calls that tune and measure them."""

    def __init__(self, library: str, **options: Any):
        self.options = options
        if library == "linen":
            self.generator = linen_model(8, KEYS[2], NOISE)
            self.discriminator = linen_model(1, KEYS[3], REAL)
        else:
            self.generator = NnxMlp(4, 8, nnx.Rngs(0)), None
            self.discriminator = NnxMlp(8, 1, nnx.Rngs(1)), None

    def of_generator(self, verb: Callable, judge: Any = None, **options: Any) -> Any:
        """A verb by the loss through the discriminator, with its scales or without."""
        loss = fooling(apply(*self.discriminator, judge))
        return verb(*self.generator, NOISE, loss, **self.options, **options)

    def of_discriminator(self, verb: Callable, artist: Any, **options: Any) -> Any:
        """A verb on what is real and what the scaled generator makes."""
        images = jnp.concatenate([REAL, apply(*self.generator, artist)(NOISE)])
        batch = ei.Batch(images, IS_REAL)
        return verb(*self.discriminator, batch, loss_fn, **self.options, **options)


@cache
def settled(library: str, optimizer: Any) -> tuple[Adversaries, Any, Any, Any]:
    """Two adversaries, the generator's scales before and after, the other's between."""
    pair = Adversaries(library, optimizer=optimizer)
    first = pair.of_generator(ei.tune)
    judge = pair.of_discriminator(ei.tune, first)
    return pair, first, judge, pair.of_generator(ei.tune, judge)


def factors(scales: Any, *names: str) -> dict:
    """Those of some names, by path."""
    return {path: f for path, f in flatten(scales).items() if path[-1] in names}


@libraries
@pytest.mark.parametrize("optimizer", [None, optax.adam], ids=["sgd", "adam"])
def test_both_are_tuned_after_three_calls(library, optimizer):
    """Outputs and total updates of 1; the generator was not before the third."""
    pair, first, judge, artist = settled(library, optimizer)
    of_generator = partial(pair.of_generator, ei.measure, judge)
    for table in (
        of_generator(scales=artist),
        pair.of_discriminator(ei.measure, artist, scales=judge),
    ):
        assert jnp.allclose(table.output_rms, 1, rtol=1e-4)
        assert jnp.isclose(table.total_update_rms.max(), 1, rtol=0.01)
        assert table.summary()[0].startswith("OK: both layers within 1%")
    assert of_generator(scales=first).summary()[0].startswith("OFF: ")


@libraries
def test_the_third_call_changes_gradients_alone_and_a_fourth_nothing(library):
    """What a model puts out depends on no loss: so the adversary sees the same."""
    pair, first, judge, artist = settled(library, None)
    assert same(factors(first, "output"), factors(artist, "output"))
    gradients = partial(factors, artist, "output_grad")
    assert not same(factors(first, "output_grad"), gradients())
    assert same(pair.of_discriminator(ei.tune, artist), judge)
    again = pair.of_generator(ei.tune, pair.of_discriminator(ei.tune, artist))
    assert same(again, artist)
