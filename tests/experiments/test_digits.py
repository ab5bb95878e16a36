"""Digits by a loader, on models of both libraries: one pair of arguments for all."""

import itertools
from collections.abc import Iterator
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from sklearn.datasets import load_digits

import einit_jax as ei
from tests.support.checks import KEY, allclose, refuses, same

IMAGES, LABELS = load_digits(return_X_y=True)
IMAGES = (IMAGES - IMAGES.mean()) / IMAGES.std()
DEPTH = 12


class Tensor:
    """What PyTorch's tensors show of themselves, without PyTorch."""

    def __init__(self, array: np.ndarray):
        self.array, self.shape, self.dtype = array, array.shape, "torch.float64"

    def __array__(self, dtype=None, copy=None):
        return self.array


class DataLoader:
    """Shuffles anew at each pass, collates into lists of tensors."""

    def __init__(self, batch_size: int):
        self.batch_size, self.rng = batch_size, np.random.default_rng(0)

    def __len__(self) -> int:
        return len(LABELS) // self.batch_size

    def __iter__(self) -> Iterator[list[Tensor]]:
        rows = self.rng.permutation(len(LABELS))
        for own in np.split(rows[: len(self) * self.batch_size], len(self)):
            yield [Tensor(IMAGES[own]), Tensor(LABELS[own])]


class Deep(nn.Module):
    depth: int

    @nn.compact
    def __call__(self, x):
        for _ in range(self.depth):
            x = nn.relu(nn.Dense(32)(x))
        return nn.Dense(10)(x)


class DeepNet(nnx.Module):
    def __init__(self, rngs: nnx.Rngs, depth: int = DEPTH):
        widths = [64] + depth * [32]
        pairs = itertools.pairwise(widths)
        self.layers = nnx.List([nnx.Linear(n, m, rngs=rngs) for n, m in pairs])
        self.head = nnx.Linear(32, 10, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        for layer in self.layers:
            x = nnx.relu(layer(x))
        return self.head(x)


def cross_entropy(logits, labels):
    rows = jnp.arange(len(labels))
    return -jnp.mean(jax.nn.log_softmax(logits)[rows, labels])


def of_outputs(outputs, batch):
    return cross_entropy(outputs, batch[1])


def of_model(model, batch):
    return cross_entropy(model(batch[0]), batch[1])


def linen(depth: int = DEPTH) -> tuple[Any, Any]:
    return Deep(depth), Deep(depth).init(KEY, IMAGES[:1])["params"]


def of_nnx(depth: int = DEPTH) -> tuple[Any, Any]:
    return DeepNet(nnx.Rngs(0), depth), None


@pytest.mark.parametrize("build", [linen, of_nnx])
def test_one_loader_and_one_loss_are_all_that_verbs_want(build):
    """Started and tuned by them the deep network learns, and as it is it does not."""
    model, params = build()
    data = DataLoader(128), cross_entropy
    start, report = ei.looks_linear(model, params, *data, with_report=True)
    scales = ei.tune(model, start, *data, targets=report.targets())
    how = {"steps": 40, "optimizer": partial(optax.sgd, momentum=0.9)}
    how["learning_rates"] = (0.25,)
    tuned = ei.find_learning_rate(model, start, *data, scales=scales, **how)
    strategies = {"as it is": None, "keras": "keras"}
    table = ei.compare(model, params, *data, strategies=strategies, **how)
    assert not any(trial.error for trial in table.trials)
    final = {row["strategy"]: row["loss"] for row in table.rows()}
    assert tuned.final.min() < 0.5 < 1.0 < final["as it is"]
    plain = ei.measure(model, params, *data)
    assert float(plain.loss) == pytest.approx(np.log(10), rel=0.01)


@pytest.mark.parametrize("build", [linen, of_nnx])
def test_all_kinds_of_losses_agree(build):
    """Those of labels, of the batch, and of NNX's models, under one name each."""
    pair = IMAGES[:64], LABELS[:64]
    expected = ei.tune(*build(1), pair, cross_entropy)
    allclose(ei.tune(*build(1), pair, of_outputs), expected, rtol=1e-5)
    if build is linen:
        with refuses(TypeError, match="as losses of flax.nnx do"):
            ei.tune(*build(1), pair, of_model)
    else:
        allclose(ei.tune(*build(1), pair, of_model), expected, rtol=1e-5)


# Losses of NNX: who calls the model.

X, TARGETS = IMAGES[:16], LABELS[:16]
NET = DeepNet(nnx.Rngs(0), depth=1)


def by_annotation(anything: DeepNet, batch: Any) -> Any:
    return of_model(anything, batch)


def of_arrays(anything: jax.Array, batch: Any) -> Any:
    return of_outputs(anything, batch)


@pytest.mark.parametrize(
    "loss",
    [
        of_model,
        by_annotation,
        of_arrays,
        lambda net, batch: of_model(net, batch),
        lambda m, xy: of_model(m, xy),
        lambda logits, batch: of_outputs(logits, batch),
        lambda y, labels: cross_entropy(y, labels),
        lambda anything, labels: cross_entropy(anything, labels),
    ],
)
def test_the_kind_of_a_loss_is_told_by_its_arguments(loss):
    (found,) = np.asarray(ei.measure(NET, None, (X, TARGETS), loss).loss)[None]
    logits = NET(X)
    assert found == pytest.approx(float(cross_entropy(logits, TARGETS)), rel=1e-5)


@pytest.mark.parametrize(
    ("loss", "words"),
    [
        (lambda z, batch: 0.0, r"\(z, batch\), which does not tell whether it calls"),
        (
            lambda model, labels: 0.0,
            r"\(model, labels\), expected \(model, batch\), or",
        ),
        (
            lambda model, inputs: 0.0,
            r"\(model, inputs\), expected \(model, batch\), or",
        ),
        (lambda outputs, params: 0.0, "optax.add_decayed_weights"),
    ],
)
def test_losses_that_could_be_either_are_refused(loss, words):
    with refuses(TypeError, match=words):
        ei.tune(NET, None, (X, TARGETS), loss)


def test_losses_of_models_get_the_batch_as_it_is_drawn():
    """A `Batch`, too; verbs without a loss take its inputs, by the same arguments."""

    def loss(model, batch):
        assert isinstance(batch, ei.Batch)
        return cross_entropy(model(batch.inputs), batch.labels)

    batch = ei.Batch(X, TARGETS)
    expected = ei.tune(NET, None, (X, TARGETS), of_model)
    allclose(ei.tune(NET, None, batch, loss), expected, rtol=1e-6)
    for start in (ei.lsuv, ei.distinct_targets):
        found, expected = start(NET, None, batch, loss), start(NET, None, X)
        if start is ei.distinct_targets:
            assert found == expected
        else:
            assert same(nnx.to_pure_dict(found), nnx.to_pure_dict(expected))
