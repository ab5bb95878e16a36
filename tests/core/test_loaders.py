"""How batches and labels come: loaders, iterators, pairs, `Batch`; on every verb."""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import einit_jax as ei
from einit_jax.core import is_loader
from tests.support.checks import KEY, allclose, params_of, refuses, same
from tests.support.models.dense import CompactMlp
from tests.support.verbs import VERBS

N, CLASSES = 16, 6
X = np.array(jax.random.normal(KEY, (4, N, 8)))
LABELS = np.array(jax.random.randint(jax.random.key(1), (4, N), 0, CLASSES))
PAIRS = list(zip(X, LABELS, strict=True))
MODEL = CompactMlp()
PARAMS = params_of(MODEL)


def cross_entropy(logits, labels):
    rows = jnp.arange(logits.shape[0])
    return -jnp.mean(jax.nn.log_softmax(logits)[rows, labels])


def of_batch(outputs, batch):
    return cross_entropy(outputs, batch[1])


class Tensor:
    """What a tensor of another library shows of itself."""

    def __init__(self, array: np.ndarray):
        self._array, self.shape, self.dtype = array, array.shape, "tensor.float32"

    def __array__(self, dtype=None, copy=None):
        return self._array

    def __iter__(self):
        return map(Tensor, self._array)


class OnDevice(Tensor):
    """A tensor that lies where numpy cannot read it."""

    def __array__(self, dtype=None, copy=None):
        raise TypeError("can't convert device type tensor to numpy")

    def __dlpack__(self, **options: Any) -> Any:
        return self._array.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple:
        return self._array.__dlpack_device__()


class Bare(OnDevice):
    """A tensor that gives its values to nobody."""

    def __dlpack__(self, **options: Any) -> Any:
        raise BufferError("can't export tensors that require gradient")


class Loader:
    """The protocol of PyTorch's: iterated anew, it begins anew; it is no iterator."""

    def __init__(self, batches: Iterable[Any], seed: int | None = None):
        self.batches = list(batches)
        self.rng = None if seed is None else np.random.default_rng(seed)

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Any]:
        order = np.arange(len(self))
        if self.rng is not None:
            order = self.rng.permutation(order)
        return (self.batches[i] for i in order)


class Named(NamedTuple):
    image: Any
    label: Any


# Each gives the pairs in the same order.
WAYS: dict[str, Callable[[], Any]] = {
    "function": lambda: lambda key: PAIRS[0],
    "pair": lambda: PAIRS[0],
    "list": lambda: [*PAIRS[0]],
    "batch": lambda: ei.Batch(*PAIRS[0]),
    "function_of_batches": lambda: lambda key: ei.Batch(*PAIRS[0]),
    "loader": lambda: Loader(PAIRS),
    "loader_of_lists_of_tensors": lambda: Loader([[*map(Tensor, p)] for p in PAIRS]),
    "loader_of_batches": lambda: Loader(ei.Batch(*pair) for pair in PAIRS),
    "iterator": lambda: iter(PAIRS * 2),
    "generator": lambda: ((OnDevice(x), y) for x, y in PAIRS * 2),
}
SHORT = {
    "metainit": {"steps": 2, "draws": 1},
    "gradinit": {"steps": 2, "draws": 1},
    "fold": {"scales": ei.tune(MODEL, PARAMS, X[0], lambda y: jnp.mean(y))},
}
NO_LOSS = ("fold", "initialize")
BY_LOSS = ("tune", "measure", "metainit", "gradinit", "compare", "coordinate_check",
           "find_learning_rate")  # fmt: skip


def ran(verb: str, input_fn: Any, loss_fn: Any = cross_entropy) -> Any:
    """What a verb returns, as a tree of numbers."""
    result = VERBS[verb](MODEL, PARAMS, input_fn, loss_fn, **SHORT.get(verb, {}))
    match result:
        case ei.LearningRates():
            return result.losses
        case ei.Comparison():
            return [trial.losses for trial in result.trials]
        case ei.CoordinateCheck():
            return [result.sizes, result.changes]
        case ei.Measurement():
            return [result.loss, result.input_grad_rms]
    return jax.tree.map(jnp.asarray, result)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_takes_batches_however_they_come(verb):
    """All ways give the same bits, and what a closure over the labels gives."""
    ways = dict(WAYS)
    if verb in NO_LOSS:  # a pair is two arguments there
        ways = {name: way for name, way in ways.items() if "batch" in name}
    expected = ran(verb, ei.Batch(*PAIRS[0]))
    for name, way in ways.items():
        assert same(ran(verb, way()), expected), name
    closed = ran(verb, X[0], partial(cross_entropy, labels=LABELS[0]))
    allclose(closed, expected, rtol=1e-4, atol=1e-6)
    wrong = ei.Batch(X[0], (LABELS[0] + 1) % CLASSES)
    assert same(ran(verb, wrong), expected) == (verb not in BY_LOSS)


@pytest.mark.parametrize("name", [n for n in WAYS if "batch" not in n])
def test_a_loss_may_take_the_whole_batch(name):
    found = ei.tune(MODEL, PARAMS, WAYS[name](), of_batch)
    allclose(found, ei.tune(MODEL, PARAMS, PAIRS[0], cross_entropy), rtol=1e-5)


def test_a_batch_says_what_its_loss_gets():
    """`labels` and `batch` alike, with keys and inputs; any pytree of labels."""
    seen = {}

    def loss(outputs, batch, *, labels, inputs, key):
        seen.update(batch=batch, labels=labels, inputs=inputs, key=key)
        return cross_entropy(outputs, labels["class"]) * labels["weight"]

    labels = {"class": LABELS[0], "weight": jnp.float32(1), "of": "train"}
    batch = ei.Batch(ei.Inputs(X[0]), labels)
    scales = ei.tune(MODEL, PARAMS, batch, loss)
    allclose(scales, ei.tune(MODEL, PARAMS, PAIRS[0], cross_entropy), rtol=1e-5)
    assert isinstance(seen["batch"], ei.Batch)
    assert seen["labels"]["of"] == "train"
    assert seen["inputs"].shape == X[0].shape and seen["key"].shape == ()


def test_labels_with_a_default_are_those_of_the_default():
    """So that `lambda y, labels=labels: ...` is what it is anywhere else."""
    bound = lambda y, labels=LABELS[0]: cross_entropy(y, labels)
    found = ei.tune(MODEL, PARAMS, X[0], bound)
    assert same(found, ei.tune(MODEL, PARAMS, ei.Batch(X[0], LABELS[1]), bound))


def test_a_tuple_stays_several_arguments_where_no_labels_are_wanted():
    class Sum(nn.Module):
        @nn.compact
        def __call__(self, x, y):
            return nn.Dense(4)(x) + nn.Dense(4, name="of_y")(y)

    params = Sum().init(KEY, X[0], X[1])["params"]
    target = lambda outputs, labels: jnp.mean(jnp.square(outputs - labels[:, None]))
    mean = lambda outputs: jnp.mean(jnp.square(outputs))
    assert "of_y" in ei.tune(Sum(), params, Loader([(X[0], X[1])]), mean)
    assert "of_y" in ei.tune(Sum(), params, ((X[0], X[1]), LABELS[0]), target)
    with refuses(ValueError, match="Sum cannot take the inputs"):
        ei.tune(Sum(), params, (X[0], LABELS[0]), target)


# Order, and what iterators are left with.


def test_draws_are_taken_in_order():
    """A loader begins anew with each call, an iterator goes on."""
    numbers = iter(range(99))
    by_function = ei.tune(
        MODEL, PARAMS, lambda key: PAIRS[next(numbers)], cross_entropy, draws=2
    )
    run = partial(ei.tune, MODEL, PARAMS, loss_fn=cross_entropy, draws=2)
    loader, iterator = Loader(PAIRS), iter(PAIRS)
    assert same(run(loader), by_function) and same(run(loader), by_function)
    assert same(run(iterator), by_function)
    assert same(run(iterator), run(Loader(PAIRS[2:])))
    assert not same(run(Loader(PAIRS[2:])), by_function)
    with refuses(ValueError, match="gives no batch; an earlier call may have"):
        run(iterator)


def test_buffers_may_be_filled_again():
    def filled():
        buffer = np.empty_like(X[0])
        for x, labels in PAIRS:
            buffer[:] = x
            yield buffer, labels

    run = partial(ei.tune, MODEL, PARAMS, loss_fn=cross_entropy, draws=3)
    assert same(run(filled()), run(Loader(PAIRS)))


def test_loaders_work_while_params_are_traced():
    run = lambda params: ei.tune(MODEL, params, Loader(PAIRS), cross_entropy)
    allclose(jax.jit(run)(PARAMS), run(PARAMS), rtol=1e-5)


@pytest.mark.parametrize(
    ("source", "wanted"),
    [
        (Loader(PAIRS), True),
        (iter(PAIRS), True),
        (map(np.sin, X), True),
        (range(3), True),
        (X, False),
        (jnp.ones(3), False),
        (np.float32(1), False),
        (PAIRS, False),
        ({"x": X}, False),
        (Named(*PAIRS[0]), False),
        (ei.Batch(X), False),
        (ei.Inputs(X), False),
        (Tensor(X), False),
        (jax.ShapeDtypeStruct((3,), jnp.float32), False),
        (lambda key: X, False),
        ("mnist", False),
        (3, False),
        (None, False),
    ],
)
def test_loaders_are_told_from_batches(source, wanted):
    assert is_loader(source) is wanted


@pytest.mark.parametrize("kind", [Tensor, OnDevice])
def test_tensors_of_other_libraries_are_arrays(kind):
    run = partial(ei.tune, MODEL, PARAMS, loss_fn=cross_entropy)
    expected = run(PAIRS[0])
    assert same(run((kind(X[0]), LABELS[0])), expected)
    assert same(run(lambda key: ei.Batch(kind(X[0]), LABELS[0])), expected)


# Training.


def trained(input_fn: Any = PAIRS[0], loss_fn: Any = cross_entropy, **options: Any):
    short = {"steps": 6, "learning_rates": (2.0**-6,), "optimizer": optax.sgd}
    found = ei.find_learning_rate(MODEL, PARAMS, input_fn, loss_fn, **short | options)
    return found.losses


def by_hand(order: Iterable[int]) -> np.ndarray:
    """The losses of gradient descent on pairs in this order."""
    step = jax.jit(
        jax.value_and_grad(
            lambda p, x, labels: cross_entropy(MODEL.apply({"params": p}, x), labels)
        )
    )
    params, losses = PARAMS, []
    for i in order:
        value, gradient = step(params, *PAIRS[i])
        params = jax.tree.map(lambda p, g: p - g * 2.0**-6, params, gradient)
        losses.append(float(value))
    return np.asarray(losses)


def test_training_takes_a_batch_a_step_pass_after_pass():
    """A loader's batches in turn; an iterator's, of which none is taken in vain."""
    expected = by_hand([0, 1, 2, 3, 0, 1])
    np.testing.assert_allclose(trained(Loader(PAIRS))[0, 0], expected, rtol=1e-5)
    np.testing.assert_allclose(trained(iter(PAIRS * 2))[0, 0], expected, rtol=1e-5)
    exact = iter([*PAIRS, *PAIRS[:2]])
    np.testing.assert_allclose(trained(exact)[0, 0], expected, rtol=1e-5)
    with refuses(ValueError, match="ended after 4, before the last step of training"):
        trained(iter(PAIRS))


def dicts(names: str, key: jax.Array) -> Any:
    row = int(jax.random.randint(key, (), 0, 4))
    known = {"labels": LABELS[row], "class": LABELS[row]}
    return X[row], {name: known[name] for name in names.split()}


@pytest.mark.parametrize(
    "train",
    [
        Loader(PAIRS),
        Loader(ei.Batch(*pair) for pair in PAIRS),
        Loader((x, {"labels": y}) for x, y in PAIRS),
        iter(PAIRS * 2),
    ],
    ids=["pairs", "batches", "keywords", "iterator"],
)
def test_train_is_whatever_input_fn_may_be(train):
    expected = by_hand([0, 1, 2, 3, 0, 1])
    found = trained(PAIRS[3], train=train)
    np.testing.assert_allclose(found[0, 0], expected, rtol=1e-5)


def test_train_functions_bring_labels_or_keywords():
    """A dict of keywords is told by its names from a dict of labels."""
    in_dict = lambda y, labels: cross_entropy(y, labels["class"])
    first = PAIRS[0][0], {"class": PAIRS[0][1]}
    by_keyword = trained(train=partial(dicts, "labels"))
    by_label = trained(first, in_dict, train=partial(dicts, "class"))
    np.testing.assert_allclose(by_keyword, by_label, rtol=1e-6)
    bound = partial(cross_entropy, labels=LABELS[0])
    keyed = trained(X[0], bound, train=partial(dicts, "labels"))
    np.testing.assert_allclose(by_keyword, keyed, rtol=1e-6)


def test_strategies_are_compared_on_the_same_batches():
    """Of a loader that shuffles, and of an iterator, too."""
    for source in (Loader(PAIRS, seed=0), iter(PAIRS), lambda key: PAIRS[0]):
        table = ei.compare(
            MODEL, PARAMS, source, cross_entropy, steps=4, learning_rates=(2.0**-6,),
            strategies={"one": None, "same": None, "keras": "keras", "lsuv": ei.lsuv},
        )  # fmt: skip
        one, again, *others = table.trials
        assert not any(trial.error for trial in table.trials)
        assert same(one.losses, again.losses)
        assert not any(same(one.losses, trial.losses) for trial in others)


# What is refused, in which words.

DICT = {"image": X[0], "label": LABELS[0]}
NO_PAIR = "expected a pair"


@pytest.mark.parametrize(
    ("input_fn", "words"),
    [
        (X[0], [NO_PAIR, "input_fn is float32[16, 8]", "ei.Batch(inputs=x, labels=y)"]),
        (lambda key: X[0], [NO_PAIR, "input_fn returned float32[16, 8]"]),
        (Loader(X), [NO_PAIR, "input_fn gave float32[16, 8]"]),
        (DICT, ["ei.Batch(inputs=batch['image'], labels=batch['label'])"]),
        (Named(*PAIRS[0]), ["ei.Batch(inputs=batch.image, labels=batch.label)"]),
        ((*PAIRS[0], X[0]), ["ei.Batch(inputs=x, labels=(y, weights))"]),
        (ei.Inputs(*PAIRS[0]), [NO_PAIR, "input_fn is Inputs("]),
        (ei.Batch(X[0]), [NO_PAIR, "labels=None"]),
        (ei.Batch(None, LABELS[0]), ["a batch whose inputs are None"]),
        (Loader([None]), ["input_fn gave None"]),
        (range(3), ["input_fn gave a int"]),
        (
            Loader([(Bare(X[0]), LABELS[0])]),
            ["tests.Bare that is not to be had as an array", "require gradient"],
        ),
    ],
)
def test_batches_without_labels_are_refused(input_fn, words):
    """Nothing is guessed of dicts, and nothing of what has other names."""
    with refuses(TypeError) as error:
        ei.tune(MODEL, PARAMS, input_fn, cross_entropy)
    for word in words:
        assert word in str(error.value)


def test_a_dict_is_no_batch_for_a_loss_of_batches():
    with refuses(TypeError, match=r"loss_fn takes batch, and input_fn is \{'image'"):
        ei.tune(MODEL, PARAMS, DICT, lambda outputs, batch: 0.0)
    loss = lambda outputs, batch: cross_entropy(outputs, batch.labels)
    to_batch = lambda batch: ei.Batch(batch["image"], batch["label"])
    found = ei.tune(MODEL, PARAMS, map(to_batch, [DICT]), loss)
    allclose(found, ei.tune(MODEL, PARAMS, PAIRS[0], cross_entropy), rtol=1e-5)


def generator(key):
    yield PAIRS[0]


@pytest.mark.parametrize(
    ("options", "exception", "words"),
    [
        ({"draws": 5}, ValueError, "ended after 4 batch.* expected draws=5; .*draws=4"),
        ({"batch_size": 4}, ValueError, "batch_size is given, but .* batches of its"),
        ({"input_fn": Loader([])}, ValueError, "is a Loader that gives no batch; pass"),
        (
            {"input_fn": Loader([PAIRS[0], (X[1][:3], LABELS[1][:3])]), "draws": 2},
            ValueError,
            r"drew .*\[3, 8\].* after .*\[16, 8\].*; .* \(drop the last, short one\)",
        ),
        ({"input_fn": generator}, TypeError, "returned a generator, expected a batch"),
        (
            {"input_fn": lambda: (yield PAIRS[0])},
            TypeError,
            "is a generator function: pass what it returns",
        ),
        (
            {"loss_fn": lambda outputs, params: jnp.sum(params["Dense_0"]["kernel"])},
            TypeError,
            r"\(outputs, params\); .* optax.add_decayed_weights",
        ),
        (
            {"loss_fn": lambda model, batch: model(batch[0]).mean()},
            TypeError,
            r"\(model, batch\), as losses of flax.nnx .* expected \(outputs, batch\)",
        ),
        ({"loss_fn": lambda labels: 0.0}, TypeError, r"takes \(labels\), expected"),
    ],
)
def test_other_mistakes_are_refused_by_name(options, exception, words):
    arguments = {"input_fn": Loader(PAIRS), "loss_fn": cross_entropy} | options
    with refuses(exception, match=words):
        ei.tune(MODEL, PARAMS, **arguments)


@pytest.mark.parametrize(
    ("train", "words"),
    [
        (lambda key: X[0], "loss_fn takes labels, and train returned float32"),
        (Loader(X), "loss_fn takes labels, and train gave float32"),
        (lambda key: (X[0], {"weights": 1.0}, 3), "and train returned"),
    ],
)
def test_training_batches_without_labels_are_refused(train, words):
    with refuses(TypeError, match=words):
        trained(train=train)
