"""The embedded job of the command line.

A deep MLP without normalization on scikit-learn's digits.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jaxtyping import Array, Float, Int

from .binding import scaled
from .core import Params
from .initializers import looks_linear
from .linen import LinenModule
from .tuning import tune

MLP_DEPTH, MLP_WIDTH, BATCH = 32, 128, 256


LEARNING_RATE, MOMENTUM = 0.25, 0.9


class DemoJob(NamedTuple):
    """What the command line tunes, measures and compares."""

    model: LinenModule
    params: Params
    input_fn: Any
    loss_fn: Callable
    options: dict[str, Any] = {}  # noqa: RUF012 - never changed
    """Keywords of `tune` and `measure`, or of `compare`."""


class MLP(nn.Module):
    """Dense layers with ReLU between them."""

    depth: int = MLP_DEPTH
    width: int = MLP_WIDTH
    classes: int = 10

    @nn.compact
    def __call__(self, x: Float[Array, "batch features"]) -> Float[Array, "batch 10"]:
        for _ in range(self.depth - 1):
            x = nn.relu(nn.Dense(self.width)(x))
        return nn.Dense(self.classes)(x)


class Digits(NamedTuple):
    """Images of 8x8 pixels, standardized, and their labels."""

    images: Float[Array, "n 64"]
    labels: Int[Array, " n"]


def digits() -> Digits:
    """The 1797 digits of scikit-learn.

    Raises:
        ImportError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError(
            "the demonstration needs scikit-learn: pip install 'einit_jax[demo]'"
        ) from error
    images, labels = load_digits(return_X_y=True)
    images = (images - images.mean()) / images.std()
    return Digits(jnp.asarray(images, jnp.float32), jnp.asarray(labels, jnp.int32))


def digits_job(data: Digits, key: jax.Array) -> DemoJob:
    """The MLP, to be tuned on one batch of digits with their labels."""
    model = MLP()
    rows = jax.random.permutation(key, len(data.labels))[:BATCH]
    images, labels = data.images[rows], data.labels[rows]
    params = jax.jit(model.init)(key, images)["params"]
    return DemoJob(model, params, images, partial(cross_entropy, labels=labels))


def linear_job(job: DemoJob, key: jax.Array) -> DemoJob:
    """The job with weights of `looks_linear`, whose sizes `tune` is to keep."""
    params, start = looks_linear(*job[:3], key=key, with_report=True)
    return job._replace(params=params, options={"targets": start.targets()})


def tuned_job(data: Digits, key: jax.Array) -> DemoJob:
    """The job tuned for Adam on weights of `looks_linear`, with its scales."""
    job = linear_job(digits_job(data, key), key)
    scales = tune(*job[:4], key=key, optimizer=optax.adam, **job.options)
    return job._replace(options={"scales": scales, "train": digits_train(data)})


def digits_train(data: Digits) -> Callable:
    """A function of a key that draws digits to train on, and their labels."""

    def draw(key: jax.Array) -> tuple[Array, dict[str, Array]]:
        rows = jax.random.permutation(key, len(data.labels))[:BATCH]
        return data.images[rows], {"labels": data.labels[rows]}

    return draw


def cross_entropy(logits: Array, labels: Array) -> Float[Array, ""]:
    """The mean cross entropy."""
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return losses.mean()


def train(
    job: DemoJob,
    data: Digits,
    *,
    scales: Mapping[str, Any] | None,
    steps: int,
    seed: int,
) -> Iterator[float]:
    """Trains by SGD with momentum, and yields the loss of every step.

    `scales=None` trains the model as it is.
    """
    model, params, *_ = job
    optimizer = optax.sgd(LEARNING_RATE, MOMENTUM)
    extra = {} if scales is None else {"scales": scales}
    apply = model.apply if scales is None else scaled(model).apply

    def loss(params, rows):
        logits = apply({"params": params, **extra}, data.images[rows])
        return cross_entropy(jnp.asarray(logits), data.labels[rows])

    @jax.jit
    def step(params, state, rows):
        value, gradient = jax.value_and_grad(loss)(params, rows)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(params, updates), state, value

    state = optimizer.init(params)
    generator = np.random.default_rng(seed)
    for _ in range(steps):
        rows = generator.choice(len(data.labels), BATCH, replace=False)
        params, state, value = step(params, state, rows)
        yield float(value)
