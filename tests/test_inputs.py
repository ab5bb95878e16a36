"""What a model is called with, and all that is drawn: inputs, losses, keys, units."""

import random
from functools import lru_cache, partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import einit_jax as ei
from tests.cases import QUICK, normal, squared_error, to_one
from tests.models import CompactMlp, Dropped, Layers, Nest, Twice

KEY = jax.random.key(0)
X = jax.random.normal(KEY, (16, 8))
Y = jax.random.normal(jax.random.key(1), (16, 6))
quick = partial(jax.jit, compiler_options=QUICK)
vectors = normal(16, 8)


class Two(NamedTuple):
    left: Any
    right: Any


class Sum(nn.Module):
    """One unit per array in its arguments, whatever their structure."""

    @nn.compact
    def __call__(self, *args, **kwargs):
        arrays = [x for x in jax.tree.leaves((args, kwargs)) if hasattr(x, "shape")]
        return sum(nn.Dense(4)(x) for x in arrays)


@lru_cache
def params_of(model: nn.Module, *shapes: tuple[int, ...]) -> Any:
    rngs = {"params": KEY, "dropout": KEY}
    return quick(model.init)(rngs, *map(jnp.ones, shapes or (X.shape,)))["params"]


def same(left: Any, right: Any) -> bool:
    """Whether two trees of factors agree to the bit."""
    return jax.tree.all(jax.tree.map(np.array_equal, left, right))


def allclose(left: Any, right: Any, rtol: float) -> None:
    close = partial(np.testing.assert_allclose, rtol=rtol, atol=0)
    jax.tree.map(close, left, right)


def output_rms(model: nn.Module, scales: Any) -> dict[str, float]:
    """The measured rms of each unit's output."""
    table = ei.measure(model, params_of(model), X, to_one, scales=scales)
    return {row["path"]: row["output_rms"] for row in table.rows()}


# Inputs, a pytree.


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


# What loss_fn may take.


@pytest.mark.parametrize(
    ("build", "names"),
    [
        (lambda see: lambda y: see(y), set()),
        (lambda see: lambda y, key: see(y, key=key), {"key"}),
        (lambda see: lambda y, inputs: see(y, inputs=inputs), {"inputs"}),
        (
            lambda see: lambda y, inputs, key: see(y, inputs=inputs, key=key),
            {"key", "inputs"},
        ),
        (
            lambda see: lambda y, *, key, inputs: see(y, inputs=inputs, key=key),
            {"key", "inputs"},
        ),
        (lambda see: lambda y, key=None, half=0.5: see(half * y, key=key), {"key"}),
        (
            lambda see: partial(lambda half, y, key: see(y * half, key=key), 0.5),
            {"key"},
        ),
        (lambda see: partial(lambda y, half: see(y * half), half=0.5), set()),
        (lambda see: lambda y, *rest, **named: see(y, *rest, **named), set()),
    ],
    ids=[
        "outputs",
        "key",
        "inputs",
        "both",
        "keyword_only",
        "defaults",
        "partial_positional",
        "partial_keyword",
        "variadic",
    ],
)
def test_loss_fn_is_given_what_it_names(build, names):
    """Outputs come first; the key and the inputs come by name, where they are named."""
    seen = []

    def see(outputs, **named):
        seen.append((outputs.shape, {n: v.shape for n, v in named.items()}))
        return to_one(outputs)

    run = lambda params: ei.tune(nn.Dense(4), params, X, build(see))
    jax.eval_shape(run, params_of(nn.Dense(4)))
    shapes = {"key": (), "inputs": X.shape}
    assert seen
    assert all(s == ((16, 4), {n: shapes[n] for n in names}) for s in seen)


def test_the_loss_is_that_of_the_batch_and_the_key():
    """Inputs arrive with their values; the key is a function of that of the call."""
    model, params = nn.Dense(4), params_of(nn.Dense(4))

    def loss(outputs, inputs, key):
        noise = jax.random.normal(key, outputs.shape)
        return jnp.mean((outputs - inputs[:, :4]) ** 2) + 1e-3 * jnp.mean(noise**2)

    run = partial(ei.measure, model, params, X, loss)
    first, again, other = (float(run(key=jax.random.key(i)).loss) for i in (1, 1, 2))
    by_hand = jnp.mean((model.apply({"params": params}, X) - X[:, :4]) ** 2)
    # the noise adds 1e-3 of the mean of 64 chi squares, which is 1 +- 0.18
    assert abs(first - by_hand - 1e-3) < 1e-3 * 4 * (2 / 64) ** 0.5
    assert first == again != other


# The key, and random streams.


@pytest.mark.parametrize(
    ("model", "input_fn", "loss_fn", "rngs"),
    [
        (CompactMlp(), vectors, to_one, ()),
        (CompactMlp(), X, squared_error, ()),
        (Dropped(), X, to_one, ("dropout",)),
        (Dropped(), X, to_one, "dropout"),
    ],
    ids=["batch", "loss", "stream", "stream_name"],
)
def test_the_key_decides_all_that_is_random(model, input_fn, loss_fn, rngs):
    """The same key gives the same bits, another other ones; none is `key(0)`."""
    run = partial(ei.tune, model, params_of(model), input_fn, loss_fn, rngs=rngs)
    scales = run(key=jax.random.key(3))
    assert same(run(key=jax.random.key(3)), scales)
    assert not same(run(key=jax.random.key(4)), scales)
    assert same(run(), run(key=jax.random.key(0)))


def test_keys_by_name_are_used_as_they_are():
    """Streams given as keys do not change with the key of the call."""
    run = partial(ei.tune, Dropped(), params_of(Dropped()), X, to_one)
    draw = lambda stream, key: run(
        rngs={"dropout": jax.random.key(stream)}, key=jax.random.key(key)
    )
    scales = draw(1, 0)
    assert same(draw(1, 5), scales)
    assert not same(draw(2, 0), scales)


# Under transforms.


def tuned(model, params, key):
    return ei.tune(model, params, vectors, squared_error, key=key)


@pytest.mark.parametrize("model", [CompactMlp(), Layers(), Twice()], ids=type)
def test_tune_under_jit_is_tune(model):
    """The same factors under an outer jit over params and key."""
    params = params_of(model)
    outer = jax.jit(partial(tuned, model))(params, KEY)
    allclose(outer, tuned(model, params, KEY), rtol=1e-6)


@pytest.mark.parametrize(
    "verb",
    [ei.tune, lambda *a, **k: ei.measure(*a, **k).update_rms],
    ids=["tune", "measure"],
)
def test_params_may_be_constants_of_an_outer_jit(verb):
    """Nothing of the values is asked while another function is traced."""
    model, params = nn.Dense(4), params_of(nn.Dense(4))
    run = lambda key: verb(model, params, vectors, squared_error, key=key)
    allclose(jax.jit(run)(KEY), run(KEY), rtol=1e-5)


@pytest.mark.parametrize("model", [CompactMlp(), Twice()], ids=type)
def test_tune_under_vmap_is_a_loop(model):
    """Seeds stacked by `vmap` of init are tuned one by one, each with its key."""
    keys = jax.random.split(KEY, 3)
    stack = quick(jax.vmap(lambda key: model.init(key, X)["params"]))(keys)
    together = quick(jax.vmap(partial(tuned, model)))(stack, keys)
    for i in range(3):
        at = lambda tree, i=i: jax.tree.map(lambda leaf: leaf[i], tree)
        allclose(at(together), tuned(model, at(stack), keys[i]), rtol=1e-5)


# Which units, how strong, how many batches.


@pytest.mark.parametrize(
    ("options", "tuned"),
    [
        ({}, {"own", "inner/own", "inner/inner/own"}),
        ({"include": "inner/own"}, {"inner/own"}),
        ({"include": ["own", "inner/inner/*"]}, {"own", "inner/inner/own"}),
        ({"exclude": "*/own"}, {"own"}),
        ({"exclude": ("own",)}, {"inner/own", "inner/inner/own"}),
        ({"include": "inner/*", "exclude": "*inner/own"}, None),
        ({"include": "inner*", "exclude": "inner/inner*"}, {"inner/own"}),
    ],
    ids=["all", "one", "list", "glob", "tuple", "nothing", "both"],
)
def test_units_left_out_keep_ones(options, tuned):
    """Factors of exactly 1 without, outputs of rms 1 within the patterns."""
    model = Nest(2)
    run = partial(ei.tune, model, params_of(model), X, to_one, **options)
    if tuned is None:
        with pytest.raises(ValueError, match="leave no unit"):
            run()
        return
    scales = run()
    strength = output_rms(model, scales)
    assert len(strength) == 3
    for name, rms in strength.items():
        unit = scales
        for part in name.split("/"):
            unit = unit[part]
        factors = [float(unit[n]) for n in ("output", "input_grad", "output_grad")]
        assert (factors == [1, 1, 1]) is (name not in tuned)
        assert (abs(rms - 1) < 1e-4) is (name in tuned)


@pytest.mark.parametrize(
    ("targets", "wanted"),
    [
        (0.5, [0.5, 0.5, 0.5]),
        (2, [2, 2, 2]),
        ({"Dense_1": 3.0}, [1, 3, 1]),
        ({"Dense_1": 3.0, "*": 0.1}, [0.1, 3, 0.1]),
        ({"Dense_[01]": 4.0, "Dense_1": 5.0}, [4, 4, 1]),
    ],
    ids=["number", "integer", "pattern", "rest", "first_match"],
)
def test_targets_are_reached(targets, wanted):
    """The rms measured is the one asked for, by the first pattern that matches."""
    model = CompactMlp()
    scales = ei.tune(model, params_of(model), X, to_one, targets=targets)
    got = list(output_rms(model, scales).values())
    np.testing.assert_allclose(got, wanted, rtol=1e-5)


def test_draws_are_averaged_in_the_logarithm():
    """Factors of several draws: the geometric mean of those of each batch."""
    drawn = []

    def draw(key):
        drawn.append(vectors(key))
        return drawn[-1]

    run = partial(ei.tune, CompactMlp(), params_of(CompactMlp()), loss_fn=to_one)
    scales = run(draw, draws=3)
    assert len(drawn) == 3
    assert not np.array_equal(drawn[0], drawn[1])
    each = [run(batch) for batch in drawn]
    mean = lambda *factors: np.exp(np.mean(np.log(factors), 0))
    allclose(scales, jax.tree.map(mean, *each), rtol=1e-5)


def test_measure_reports_the_spread_over_draws():
    """Deviations are those of the logarithm over draws; 0 of a single batch."""
    drawn = []

    def draw(key):
        drawn.append(vectors(key))
        return drawn[-1]

    run = partial(ei.measure, CompactMlp(), params_of(CompactMlp()), loss_fn=to_one)
    table = run(draw, draws=4)
    single = [run(batch) for batch in drawn]
    assert (table.draws, single[0].draws) == (4, 1)
    for name in ("output", "input_grad", "update"):
        logs = np.log([getattr(one, f"{name}_rms") for one in single])
        deviation = getattr(table, f"{name}_deviation")
        assert (deviation > 0).all()
        np.testing.assert_allclose(deviation, logs.std(0), rtol=1e-3)
        mean = np.exp(logs.mean(0))
        np.testing.assert_allclose(getattr(table, f"{name}_rms"), mean, rtol=1e-5)
        assert not np.any(getattr(single[0], f"{name}_deviation"))
