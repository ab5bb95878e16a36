"""The embedded job of the command line.

A deep MLP without normalization on scikit-learn's digits.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jaxtyping import Array, Float, Int

from .core import Params
from .initializers import initialize, looks_linear
from .linen import LinenModule
from .tuning import tune

MLP_DEPTH, MLP_WIDTH, BATCH = 32, 128, 256


QUICK_DEPTH, QUICK_WIDTH = 16, 64
DEMO_RATES = tuple(2.0**e for e in range(-14, 3, 2))
"""Wide enough that each start has its best rate inside."""
QUICK_RATES = tuple(2.0**e for e in range(-12, 4, 3))
AS_DRAWN = "as Flax draws it"
LINEAR_TUNED = "looks_linear, tuned"


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


def digits_job(data: Digits, key: jax.Array, *, quick: bool = False) -> DemoJob:
    """The MLP, to be tuned for Adam on one batch of digits with their labels."""
    model = MLP(depth=QUICK_DEPTH, width=QUICK_WIDTH) if quick else MLP()
    rows = jax.random.permutation(key, len(data.labels))[:BATCH]
    images, labels = data.images[rows], data.labels[rows]
    params = jax.jit(model.init)(key, images)["params"]
    loss = partial(cross_entropy, labels=labels)
    return DemoJob(model, params, images, loss, {"optimizer": optax.adam})


def linear_job(job: DemoJob, key: jax.Array) -> DemoJob:
    """The job with weights of `looks_linear`, whose sizes `tune` is to keep."""
    params, start = looks_linear(*job[:3], key=key, with_report=True)
    options = job.options | {"targets": start.targets()}
    return job._replace(params=params, options=options)


def classic_jobs(job: DemoJob, key: jax.Array) -> dict[str, DemoJob]:
    """The job as Flax draws it, and with the classic weights for ReLU: of variance
    2/fan-in, and orthogonal times sqrt(2)."""
    orthogonal = nn.initializers.orthogonal(math.sqrt(2))
    rules = {"He normal": "he_normal"}
    rules |= {"orthogonal": {"*kernel": orthogonal, "*": None}}
    draw = lambda rule: job._replace(params=initialize(job.params, rule, key))
    return {AS_DRAWN: job} | {name: draw(rule) for name, rule in rules.items()}


def tuned_job(job: DemoJob, data: Digits, key: jax.Array) -> DemoJob:
    """The job tuned for Adam on weights of `looks_linear`, with its scales."""
    job = linear_job(job, key)
    scales = tune(*job[:4], key=key, **job.options)
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
