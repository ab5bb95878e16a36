"""Normalization, dropout, and what else keeps state between calls."""

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx

from tests.support.cases import batches
from tests.support.nnx_models.cases import NnxCase, images, row, to_labels, vectors

zeros = nnx.initializers.zeros_init()


class BatchNormed(nnx.Module):
    """Statistics of the batch in training, and running ones otherwise."""

    def __init__(self, rngs):
        self.first = nnx.Linear(8, 16, use_bias=False, rngs=rngs)
        self.norm = nnx.BatchNorm(16, rngs=rngs)
        self.last = nnx.Linear(16, 4, rngs=rngs)

    def __call__(self, x, *, train):
        x = self.norm(self.first(x), use_running_average=not train)
        return self.last(nnx.relu(x))


class ByMode(nnx.Module):
    """Batch statistics and dropout, by the mode that `train` and `eval` set."""

    def __init__(self, rngs):
        self.first = nnx.Linear(8, 16, rngs=rngs)
        self.norm = nnx.BatchNorm(16, rngs=rngs)
        self.dropout = nnx.Dropout(0.3, rngs=rngs)
        self.last = nnx.Linear(16, 4, rngs=rngs)

    def __call__(self, x):
        return self.last(self.dropout(nnx.relu(self.norm(self.first(x)))))


def evaluated(rngs):
    """A model in the mode for evaluation."""
    return nnx.view(ByMode(rngs), deterministic=True, use_running_average=True)


class NormedVectors(nnx.Module):
    """A norm between layers."""

    def __init__(self, rngs, norm):
        self.first = nnx.Linear(8, 16, rngs=rngs)
        self.norm = norm(16, rngs=rngs)
        self.last = nnx.Linear(16, 4, rngs=rngs)

    def __call__(self, x):
        return self.last(nnx.relu(self.norm(self.first(x))))


class NormedImages(nnx.Module):
    """A norm of images."""

    def __init__(self, rngs, norm):
        self.conv = nnx.Conv(3, 8, (3, 3), rngs=rngs)
        self.norm = norm(8, rngs=rngs)
        self.head = nnx.Linear(8, 4, rngs=rngs)

    def __call__(self, x):
        return self.head(nnx.relu(self.norm(self.conv(x))).mean((1, 2)))


class Dropped(nnx.Module):
    """Dropout, by its own stream or by what is passed."""

    def __init__(self, rngs, own):
        self.first = nnx.Linear(8, 16, rngs=rngs)
        self.dropout = nnx.Dropout(0.3, rngs=rngs if own else None)
        self.last = nnx.Linear(16, 4, rngs=rngs)

    def __call__(self, x, rngs=None):
        return self.last(self.dropout(nnx.relu(self.first(x)), rngs=rngs))


class Noisy(nnx.Module):
    """Noise from streams that the model keeps whole."""

    def __init__(self, rngs):
        self.rngs = rngs.fork()
        self.first = nnx.Linear(8, 16, rngs=rngs)
        self.last = nnx.Linear(16, 4, rngs=rngs)

    def __call__(self, x):
        x = x + 0.1 * jax.random.normal(self.rngs.noise(), x.shape)
        return self.last(nnx.relu(self.first(x)))


class Count(nnx.Variable):
    """A number of calls."""


class Counted(nnx.Module):
    """A counter that each call raises, in an integer variable."""

    def __init__(self, rngs):
        self.calls = Count(jnp.array(0))
        self.first = nnx.Linear(8, 16, rngs=rngs)
        self.last = nnx.Linear(16, 4, rngs=rngs)

    def __call__(self, x):
        self.calls[...] += 1
        return self.last(nnx.tanh(self.first(x)))


class Kept(nnx.Module):
    """Each call adds, or replaces, a variable that holds an activation."""

    def __init__(self, rngs):
        self.first = nnx.Linear(8, 16, rngs=rngs)
        self.last = nnx.Linear(16, 4, rngs=rngs)

    def __call__(self, x):
        self.hidden = nnx.Intermediate(nnx.tanh(self.first(x)))
        return self.last(self.hidden[...])


class ResBlock(nnx.Module):
    """The gain of the last norm starts at zero: so do the gradients below it."""

    def __init__(self, rngs):
        conv = partial(nnx.Conv, 8, 8, (3, 3), use_bias=False, rngs=rngs)
        self.conv1, self.norm1 = conv(), nnx.BatchNorm(8, rngs=rngs)
        self.conv2 = conv()
        self.norm2 = nnx.BatchNorm(8, scale_init=zeros, rngs=rngs)

    def __call__(self, x):
        h = nnx.relu(self.norm1(self.conv1(x)))
        return nnx.relu(x + self.norm2(self.conv2(h)))


class ZeroGain(nnx.Module):
    """Residual branches whose contribution is nil at the start."""

    def __init__(self, rngs):
        self.stem = nnx.Conv(3, 8, (3, 3), strides=2, rngs=rngs)
        self.blocks = nnx.List([ResBlock(rngs) for _ in range(2)])
        self.head = nnx.Linear(8, 4, rngs=rngs)

    def __call__(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean((1, 2)))


def _vectors(norm):
    return row(partial(NormedVectors, norm=norm), vectors)


def _images(norm):
    return row(partial(NormedImages, norm=norm), images)


CASES: dict[str, NnxCase] = {
    "batch_norm_train": row(BatchNormed, vectors, "state", train=True),
    "batch_norm_eval": row(BatchNormed, vectors, "buffer", train=False),
    "mode_train": row(ByMode, vectors, "state rng"),
    "mode_eval": row(evaluated, vectors, "buffer"),
    "layer_norm": _vectors(nnx.LayerNorm),
    "rms_norm": _vectors(nnx.RMSNorm),
    "group_norm": _images(partial(nnx.GroupNorm, num_groups=2)),
    "instance_norm": _images(nnx.InstanceNorm),
    "dropout": row(partial(Dropped, own=True), vectors, "rng state"),
    "dropout_passed_key": row(
        partial(Dropped, own=False), batches(vectors, lambda key: key), "rng inputs"
    ),
    "dropout_passed_rngs": row(
        partial(Dropped, own=False),
        batches(vectors, lambda key: nnx.Rngs(dropout=key)),
        "rng inputs rngs_input",
    ),
    "rngs_kept": row(Noisy, vectors, "rng state"),
    "counter": row(Counted, vectors, "state"),
    "activation_kept": row(Kept, vectors, "state"),
    "zero_gain_resnet": row(ZeroGain, images, "state zeros", to_labels),
}
