"""What a model is called with: `Inputs`, batches, and what draws them."""

import random
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import einit_jax as ei
from tests.support.cases import to_one
from tests.support.checks import KEY, params_of, same
from tests.support.models.dense import CompactMlp

X = jax.random.normal(KEY, (16, 8))
Y = jax.random.normal(jax.random.key(1), (16, 6))


class Two(NamedTuple):
    left: Any
    right: Any


class Sum(nn.Module):
    """One unit per array in its arguments, whatever their structure."""

    @nn.compact
    def __call__(self, *args, **kwargs):
        arrays = [x for x in jax.tree.leaves((args, kwargs)) if hasattr(x, "shape")]
        return sum(nn.Dense(4)(x) for x in arrays)


@pytest.mark.parametrize(
    ("inputs", "arrays", "shown"),
    [
        (ei.Inputs(), 0, "Inputs()"),
        (ei.Inputs(None, train=True), 0, "Inputs(None, train=True)"),
        (ei.Inputs(np.int8(3), "sum"), 1, "Inputs(np.int8(3), 'sum')"),
        (ei.Inputs(2, 0.5, mode="a"), 0, "Inputs(2, 0.5, mode='a')"),
        (
            ei.Inputs([np.zeros(0)], m=None),
            1,
            "Inputs([array([], dtype=float64)], m=None)",
        ),
        (
            ei.Inputs({"n": 3, "x": jax.ShapeDtypeStruct((2,), jnp.int32)}),
            1,
            "Inputs({'n': 3, 'x': ShapeDtypeStruct(shape=(2,), dtype=int32)})",
        ),
    ],
    ids=["empty", "none", "scalar", "numbers", "nested", "spec"],
)
def test_inputs_are_a_pytree_of_their_arrays(inputs, arrays, shown):
    """Arrays are the leaves, the rest is structure; a round trip changes nothing."""
    leaves, treedef = jax.tree.flatten(inputs)
    again = jax.tree.unflatten(treedef, leaves)
    assert len(leaves) == arrays
    assert repr(inputs) == repr(again) == shown
    assert jax.tree.structure(again) == treedef
    assert hash(jax.tree.structure(again)) == hash(treedef)


@pytest.mark.parametrize(
    ("left", "right", "equal"),
    [
        (ei.Inputs(X, train=True), ei.Inputs(2 * X, train=True), True),
        (ei.Inputs(a=X, b=Y), ei.Inputs(b=Y, a=X), True),
        (ei.Inputs(X, train=True), ei.Inputs(X, train=False), False),
        (ei.Inputs(X, train=1), ei.Inputs(X, train=2), False),
        (ei.Inputs(X, None), ei.Inputs(X), False),
        (ei.Inputs(X, "sum"), ei.Inputs(X, "mean"), False),
        (ei.Inputs(X), ei.Inputs(x=X), False),
        (ei.Inputs((X, Y)), ei.Inputs(X, Y), False),
        (ei.Inputs(X, 1.0), ei.Inputs(1.0, X), False),
    ],
)
def test_static_leaves_tell_structures_apart(left, right, equal):
    """Structures are equal where all but the arrays is: what jit keys its cache on."""
    assert (jax.tree.structure(left) == jax.tree.structure(right)) is equal


def test_jit_sees_static_leaves_as_they_are():
    """Flags, strings and None steer Python in a traced function; one trace each."""
    traced = []

    @jax.jit
    def run(inputs):
        traced.append(inputs.kwargs["train"])
        assert inputs.args[1] is None
        return inputs.args[0] + (1 if inputs.kwargs["train"] is True else 0)

    for train, times in [(True, 1), (True, 2), (False, 3)]:
        got = run(ei.Inputs(times * X, None, mode="sum", train=train))
        np.testing.assert_array_equal(got, times * X + train)
    assert traced == [True, False]


def test_inputs_map_over_their_arrays():
    """`jax.tree.map` and `jax.vmap` reach the arrays and keep the rest."""
    inputs = jax.tree.map(lambda x: x[0], ei.Inputs(X, 3, y={"y": Y}, z=None))
    assert (inputs.args[0].shape, inputs.args[1]) == ((8,), 3)
    assert inputs.kwargs["y"]["y"].shape == (6,)
    assert inputs.kwargs["z"] is None
    rows = jax.vmap(lambda i: i.args[0].sum() * i.args[1])(ei.Inputs(X, 3))
    np.testing.assert_allclose(rows, 3 * X.sum(1), rtol=1e-5)


# What input_fn may return.


@pytest.mark.parametrize(
    ("batch", "args", "kwargs", "given"),
    [
        (X, (X,), {}, X),
        ((X, Y), (X, Y), {}, (X, Y)),
        (Two(X, Y), (Two(X, Y),), {}, Two(X, Y)),
        (
            {"left": X, "right": Y},
            ({"left": X, "right": Y},),
            {},
            {"left": X, "right": Y},
        ),
        ([X, Y], ([X, Y],), {}, [X, Y]),
        (ei.Inputs(X, Y), (X, Y), {}, (X, Y)),
        (ei.Inputs((X, Y)), ((X, Y),), {}, (X, Y)),
        (ei.Inputs(X, right=Y), (X,), {"right": Y}, ei.Inputs(X, right=Y)),
        (ei.Inputs(X, train=True), (X,), {"train": True}, ei.Inputs(X, train=True)),
        ((np.asarray(X), np.asarray(Y)), (X, Y), {}, (X, Y)),
    ],
    ids=[
        "array",
        "tuple",
        "named_tuple",
        "dict",
        "list",
        "inputs",
        "inputs_of_tuple",
        "inputs_keyword",
        "inputs_flag",
        "numpy",
    ],
)
@pytest.mark.parametrize("concrete", [False, True], ids=["drawn", "concrete"])
def test_a_batch_becomes_the_models_arguments(batch, args, kwargs, given, concrete):
    """A tuple is positional, Inputs are what they say, all else is one argument."""
    seen = []

    def spy(model, *args, **kwargs):
        seen.append(ei.Inputs(*args, **kwargs))
        return model(*args, **kwargs)

    def loss(outputs, inputs):
        seen.append(inputs)
        return to_one(outputs)

    arrays = [x for x in jax.tree.leaves((args, kwargs)) if x is not True]
    params = params_of(Sum(), *(x.shape for x in arrays))
    input_fn = batch if concrete else lambda key: batch
    run = lambda params: ei.tune(Sum(), params, input_fn, loss, method=spy)
    assert len(jax.eval_shape(run, params)) == len(arrays)
    assert jax.tree.structure(seen[0]) == jax.tree.structure(ei.Inputs(*args, **kwargs))
    assert jax.tree.structure(seen[1]) == jax.tree.structure(given)


def test_batches_of_every_kind_give_the_same_factors():
    """The values of a batch arrive whatever it is wrapped in."""
    params = params_of(Sum(), X.shape, Y.shape)
    wanted = ei.tune(Sum(), params, (X, Y), to_one)
    forms = [Two(X, Y), ei.Inputs(X, right=Y), (np.asarray(X, float), np.asarray(Y))]
    for form in forms:
        assert same(ei.tune(Sum(), params, form, to_one), wanted)
        assert same(ei.tune(Sum(), params, lambda key, b=form: b, to_one), wanted)
    assert not same(ei.tune(Sum(), params, (Y[:, :1] + X, Y), to_one), wanted)


def test_input_fn_need_not_be_traceable():
    """A loader in numpy and Python's `random` is called outside of every trace."""
    data = np.random.default_rng(0).normal(size=(64, 8))
    drawn = []

    def loader(key):
        seed = int(np.asarray(jax.random.key_data(key))[-1])
        drawn.append(random.Random(seed).sample(range(64), 16))
        return data[drawn[-1]]

    run = partial(ei.tune, CompactMlp(), params_of(CompactMlp()), loss_fn=to_one)
    scales = run(loader, key=jax.random.key(7))
    assert same(run(loader, key=jax.random.key(7)), scales)
    assert same(run(data[drawn[0]]), scales)
    assert not same(run(loader, key=jax.random.key(8)), scales)
    assert len(drawn) == 3


@pytest.mark.parametrize(
    ("input_fn", "given", "size"),
    [
        (lambda key, batch_size: jnp.ones((batch_size, 8)), None, 64),
        (lambda key, batch_size: jnp.ones((batch_size, 8)), 16, 16),
        (lambda key, *, batch_size: jnp.ones((batch_size, 8)), None, 64),
        (lambda key, batch_size=32: jnp.ones((batch_size, 8)), None, 32),
        (lambda key, batch_size=32: jnp.ones((batch_size, 8)), 16, 16),
        (
            partial(lambda key, batch_size: jnp.ones((batch_size, 8)), batch_size=4),
            2,
            2,
        ),
        (partial(lambda n, key: jnp.ones((n, 8)), 5), None, 5),
        (lambda key, n=7: jnp.ones((n, 8)), None, 7),
    ],
    ids=[
        "demanded",
        "given",
        "keyword_only",
        "default",
        "default_given",
        "partial_given",
        "partial",
        "other_default",
    ],
)
def test_batch_size_reaches_input_fn(input_fn, given, size):
    """Passed on where accepted, 64 where demanded, the default where there is one."""
    seen = []

    def loss(outputs, inputs):
        seen.append(inputs.shape)
        return to_one(outputs)

    params = params_of(nn.Dense(4))
    options = {} if given is None else {"batch_size": given}
    run = lambda params: ei.tune(nn.Dense(4), params, input_fn, loss, **options)
    jax.eval_shape(run, params)
    assert set(seen) == {(size, 8)}
