"""Every verb takes NNX models: arguments and results in the habit of NNX."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import einit_jax as ei
from tests.support.checks import allclose, refuses, same

KEY = jax.random.key(0)
X = jax.random.normal(jax.random.key(1), (32, 8))
RATES = (2.0**-6, 2.0**-3)


class Net(nnx.Module):
    """Layers in a list, a norm with statistics, dropout, a raw parameter."""

    def __init__(self, width: int, rngs: nnx.Rngs):
        self.first = nnx.Linear(8, width, rngs=rngs)
        self.norm = nnx.BatchNorm(width, rngs=rngs)
        self.shift = nnx.Param(0.1 * rngs.params.normal((width,)))
        self.blocks = nnx.List([nnx.Linear(width, width, rngs=rngs) for _ in range(2)])
        self.dropout = nnx.Dropout(0.1, rngs=rngs)
        self.head = nnx.Linear(width, 4, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = nnx.relu(self.norm(self.first(x)) + self.shift)
        for block in self.blocks:
            x = nnx.relu(block(x))
        return self.head(self.dropout(x))


def model(seed: int = 0) -> Net:
    return Net(16, nnx.Rngs(seed))


def loss_fn(outputs: jax.Array) -> jax.Array:
    return jnp.mean(jnp.square(outputs - jnp.sin(X[:, :4])))


@functools.cache
def scales(**options) -> dict:
    return ei.tune(model(), None, X, loss_fn, **options)


def values(state) -> dict:
    """Parameters by path, of a module or a state."""
    state = nnx.state(state, nnx.Param) if isinstance(state, nnx.Module) else state
    return {path: np.asarray(v.get_value()) for path, v in nnx.to_flat_state(state)}


# What gives parameters.

STARTS = {
    "unit_params": lambda net: ei.unit_params(nnx.state(net, nnx.Param), KEY),
    "unit_params_of_module": lambda net: ei.unit_params(net, KEY),
    "initialize": lambda net: ei.initialize(net, "he_normal", KEY),
    "initialize_by_class": lambda net: ei.initialize(
        nnx.state(net, nnx.Param),
        {nnx.Linear: "pytorch", "*": None},
        KEY,
        model=net,
        input_fn=X,
    ),
    "lsuv": lambda net: ei.lsuv(net, None, X),
    "looks_linear": lambda net: ei.looks_linear(net, None, X, key=KEY),
    "with_report": lambda net: ei.looks_linear(net, None, X, with_report=True)[0],
    "autoinit": lambda net: ei.autoinit(net, None, X, key=KEY),
    "metainit": lambda net: ei.metainit(net, None, X, loss_fn, steps=2),
    "gradinit": lambda net: ei.gradinit(net, None, X, loss_fn, steps=2),
}


@pytest.mark.parametrize("name", STARTS)
def test_parameters_come_as_a_state(name):
    """It fits the model, has other weights, and the model given is as it was."""
    net = model()
    before = values(net)
    state = STARTS[name](net)
    assert isinstance(state, nnx.State)
    assert same(before, values(net))
    other = model(3)
    nnx.update(other, state)
    got = values(other)
    assert same(got, values(state)) and got.keys() == before.keys()
    assert not np.array_equal(got["first", "kernel"], before["first", "kernel"])


def test_rules_by_class_reach_the_classes_named():
    got = values(STARTS["initialize_by_class"](model()))
    before = values(model())
    assert np.array_equal(got["norm", "scale"], before["norm", "scale"])
    assert np.array_equal(got["shift",], before["shift",])
    bound = 1 / np.sqrt(8)
    assert bound / 2 < np.abs(got["first", "kernel"]).max() <= bound


def test_parameters_are_given_as_a_state():
    """In the second place: they count, and not the model's own."""
    state = nnx.state(model(3), nnx.Param)
    got = ei.tune(model(), state, X, loss_fn)
    own = ei.tune(model(), None, X, loss_fn)
    swapped = model()
    nnx.update(swapped, state)
    assert same(got, ei.tune(swapped, None, X, loss_fn))
    assert not np.array_equal(got["first"]["output"], own["first"]["output"])


def test_a_part_of_the_parameters_alone_is_tuned():
    """What is not among the parameters is left as it is, and has no factor."""
    head = nnx.state(model(), nnx.All(nnx.Param, nnx.PathContains("head")))
    assert ei.tune(model(), head, X, loss_fn).keys() == {"head"}


# What measures.


def test_losses_of_a_model_and_a_batch_are_those_of_outputs():
    def of_model(net, batch):
        inputs, targets = batch
        return jnp.mean(jnp.square(net(inputs) - targets)), {"aux": 1}

    batch = X, jnp.sin(X[:, :4])
    assert same(scales(), ei.tune(model(), None, batch, of_model))


def test_what_a_run_writes_is_thrown_away_by_verbs_and_kept_by_calls():
    net = model()
    before = [np.asarray(v.get_value()) for _, v in others(net)]
    ei.tune(net, None, X, loss_fn)
    ei.measure(net, None, X, loss_fn)
    assert same(before, [np.asarray(v.get_value()) for _, v in others(net)])
    tuned = ei.scaled(net, scales())
    tuned(X)
    assert not np.array_equal(tuned.norm.mean[...], net.norm.mean[...])
    assert tuned.dropout.rngs.count[...] == 1
    assert same(before, [np.asarray(v.get_value()) for _, v in others(net)])


def others(net):
    """The variables that are no parameters, random keys aside."""
    flat = nnx.to_flat_state(nnx.state(net, nnx.Not(nnx.Any(nnx.Param, nnx.RngKey))))
    return list(flat)


def test_modes_are_those_of_the_model():
    """In `eval` mode dropout is off and the norm uses what it has kept."""
    net = model()
    net.eval()
    got = ei.tune(net, None, X, loss_fn)
    assert not np.array_equal(got["head"]["output"], scales()["head"]["output"])
    assert net.dropout.deterministic


def test_random_streams_are_given_by_name_or_in_the_call():
    class Passed(nnx.Module):
        def __init__(self, rngs):
            self.layer = nnx.Linear(8, 8, rngs=rngs)
            self.dropout = nnx.Dropout(0.5)

        def __call__(self, x, rngs):
            return self.layer(self.dropout(x, rngs=rngs))

    to_one = lambda y: jnp.mean(jnp.square(y - 1))
    tuned = lambda net, key: ei.tune(net, None, X, to_one, rngs={"dropout": key})
    keys = jax.random.split(KEY)
    by_call = [tuned(Passed(nnx.Rngs(0)), key) for key in (*keys, keys[0])]
    assert same(by_call[0], by_call[2]) and not same(by_call[0], by_call[1])
    own = nnx.Sequential(
        nnx.Dropout(0.5, rngs=nnx.Rngs(dropout=0)), nnx.Linear(8, 8, rngs=nnx.Rngs(0))
    )
    by_stream = [tuned(own, key) for key in (*keys, keys[0])]
    assert same(by_stream[0], by_stream[2]) and not same(by_stream[0], by_stream[1])
    with refuses(ValueError, "streams drop"):
        ei.tune(model(), None, X, to_one, rngs=("drop",))


def test_activation_stats_read_what_measure_finds():
    net = model()
    net.dropout.deterministic = True  # so that every call is the same
    table = ei.measure(net, None, X, loss_fn, scales=scales())
    tuned = ei.scaled(net, scales())
    stats = ei.activation_stats(tuned, sample=None)
    state = stats.init(tuned, X)

    @nnx.jit
    def step(tuned, state):
        def loss(tuned, taps):
            return loss_fn(stats.apply(tuned, X, taps=taps))

        gradients, seen = nnx.grad(loss, argnums=(0, 1))(tuned, state.taps)
        return gradients, stats.update(state, seen)

    kept = np.asarray(tuned.norm.mean[...])
    gradients, state = step(tuned, state)
    history = stats.value(state)
    assert history.paths == tuple(row["path"] for row in table.rows())
    np.testing.assert_allclose(history.activations.rms[0], table.output_rms, rtol=1e-5)
    assert not np.array_equal(kept, tuned.norm.mean[...])
    plain = nnx.grad(lambda net: loss_fn(net(X)))(tuned)
    allclose(values(gradients), values(plain), rtol=1e-5, atol=1e-5)
    with refuses(ValueError, "taps"):
        stats.apply(tuned, X)


def test_fold_gives_a_model_of_the_users_class():
    net = model()
    net.eval()
    tuned_scales = ei.tune(net, None, X, loss_fn)
    folded = ei.fold(net, None, tuned_scales, X)
    assert type(folded) is Net and folded is not net
    tuned = ei.scaled(net, tuned_scales)
    np.testing.assert_allclose(folded(X), tuned(X), rtol=1e-4, atol=1e-4)
    again = ei.fold(tuned, None, tuned_scales, X)  # what is tuned is taken as it was
    assert type(again) is Net and same(values(again), values(folded))


# What trains.


def test_the_first_update_is_that_of_the_measured_factors():
    """Each unit's parameters move by `update` times what Adam makes of the gradient."""
    tuned = ei.scaled(model(), scales(optimizer=optax.adam))
    rule = optax.chain(optax.adam(1.0), ei.scale_updates(scales(optimizer=optax.adam)))
    optimizer = nnx.Optimizer(tuned, rule, wrt=nnx.Param)
    before = values(tuned)
    factors = scales(optimizer=optax.adam)

    @nnx.jit
    def step(tuned, optimizer):
        gradient = nnx.grad(lambda net: loss_fn(net(X)))(tuned)
        optimizer.update(tuned, gradient)
        return gradient

    gradient = values(step(tuned, optimizer))
    after = values(tuned)
    for path, factor in {
        ("head", "kernel"): factors["head"]["update"],
        ("blocks", 1, "kernel"): factors["blocks"]["1"]["update"],
        ("shift",): factors["shift"]["update"],
    }.items():
        sign = gradient[path] / (np.abs(gradient[path]) + 1e-8)
        expected = before[path] - factor * sign
        np.testing.assert_allclose(after[path], expected, rtol=1e-3, atol=1e-5)


def test_the_learning_rate_is_found():
    found = ei.find_learning_rate(
        model(), None, X, loss_fn, scales=scales(optimizer=optax.adam),
        learning_rates=RATES, steps=3,
    )  # fmt: skip
    assert found.losses.shape[-1] == len(RATES) or found.losses.shape[1] == len(RATES)


def test_strategies_are_compared_in_the_users_own_terms():
    def halved(net, params, input_fn, loss, *, key):
        assert isinstance(net, Net) and isinstance(params, nnx.State)
        return jax.tree.map(lambda w: w / 2, params)

    def renewed(net, params, input_fn, loss, *, key):
        return Net(16, nnx.Rngs(key))

    strategies = {"plain": None, "halved": halved, "renewed": renewed, "tuned": ei.tune}
    table = ei.compare(
        model(), None, X, loss_fn, strategies=strategies, steps=2, learning_rates=RATES
    )
    rows = {row["strategy"]: row for row in table.rows()}
    assert rows.keys() == strategies.keys() and not any(t.error for t in table.trials)
    assert rows["tuned"]["activations"] < 0.05 < rows["halved"]["activations"]


def test_widths_are_checked_with_random_streams():
    check = ei.coordinate_check(
        lambda width, rngs: Net(width, rngs), (8, 16), X, loss_fn, steps=1, seeds=2
    )
    assert set(check.paths) == {"first", "norm", "blocks/0", "blocks/1", "head"}
    with refuses(ValueError, "rngs"):
        ei.coordinate_check(
            lambda width: Net(width, nnx.Rngs(0)), (8, 16), X, loss_fn, seeds=2
        )
