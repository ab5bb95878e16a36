"""`activation_stats` against numpy, over steps."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import einit_jax as ei
from tests.support.checks import KEY, refuses


class Net(nn.Module):
    """Two layers and a ReLU: everything about it can be computed by hand."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Dense(64)(x))
        return nn.Dense(4)(x)


X = jax.random.normal(jax.random.key(1), (128, 16))
PARAMS = Net().init(KEY, X)["params"]


def square(y):
    return jnp.mean(jnp.square(y - 1))


def train(stats, state, steps, params=PARAMS, x=X, model_loss=square):
    """Steps of SGD in one `lax.scan`, watched."""

    def step(carry, _):
        params, state = carry

        def loss(params, taps):
            return model_loss(stats.apply({"params": params, "taps": taps}, x))

        grads, seen = jax.grad(loss, argnums=(0, 1))(params, state.taps)
        params = optax.apply_updates(params, jax.tree.map(lambda g: -0.1 * g, grads))
        return (params, stats.update(state, seen)), None

    run = jax.jit(lambda carry: jax.lax.scan(step, carry, None, length=steps)[0])
    return run((params, state))


def by_hand(params):
    """Outputs of both layers and their gradients, without the package."""
    first = X @ params["Dense_0"]["kernel"] + params["Dense_0"]["bias"]

    def loss(first, shift):
        second = nn.relu(first) @ params["Dense_1"]["kernel"]
        return square(second + params["Dense_1"]["bias"] + shift)

    of_first, of_second = jax.grad(loss, argnums=(0, 1))(first, jnp.zeros((128, 4)))
    second = nn.relu(first) @ params["Dense_1"]["kernel"] + params["Dense_1"]["bias"]
    return {"activations": (first, second), "gradients": (of_first, of_second)}


def test_moments_and_histograms_are_those_of_numpy():
    stats = ei.activation_stats(Net(), sample=None)
    _, state = train(stats, stats.init({"params": PARAMS}, X), 1)
    history = stats.value(state)
    for signal, arrays in by_hand(PARAMS).items():
        seen = getattr(history, signal)
        for row, array in enumerate(np.asarray(a, np.float64) for a in arrays):
            np.testing.assert_allclose(seen.mean[0, row], array.mean(), atol=1e-6)
            np.testing.assert_allclose(seen.std[0, row], array.std(), rtol=1e-4)
            edges = np.asarray(history.edges, np.float64)
            counts = np.histogram(array, edges)[0] / array.size
            np.testing.assert_allclose(seen.histogram[0, row], counts, atol=1e-6)


def test_dead_share_is_that_of_a_shut_relu():
    """A large negative bias shuts a quarter of the units; others are half shut."""
    bias = jnp.where(jnp.arange(64) < 16, -100.0, 0.0)
    params = {**PARAMS, "Dense_0": {**PARAMS["Dense_0"], "bias": bias}}
    stats = ei.activation_stats(Net(), sample=None)
    _, state = train(stats, stats.init({"params": params}, X), 1, params)
    dead = float(stats.value(state).gradients.dead[0, 0])
    shut = float(jnp.mean(by_hand(params)["gradients"][0] == 0))
    assert 0.5 < shut <= dead < shut + 0.02
    behind = ei.activation_stats(Net(), of="input", sample=None)
    _, state = train(behind, behind.init({"params": params}, X), 1, params)
    np.testing.assert_allclose(
        behind.value(state).activations.dead[0, 1], shut, atol=0.01
    )


def test_watching_changes_nothing():
    """Parameters after five steps are those of training without taps."""
    stats = ei.activation_stats(Net())
    watched, _ = train(stats, stats.init({"params": PARAMS}, X), 5)
    plain = PARAMS
    for _ in range(5):
        grads = jax.grad(lambda p: square(Net().apply({"params": p}, X)))(plain)
        plain = jax.tree.map(lambda p, g: p - 0.1 * g, plain, grads)
    for a, b in zip(jax.tree.leaves(watched), jax.tree.leaves(plain), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_a_long_history_is_pooled():
    """100 steps in 8 slots: 16 steps a slot, moments pooled over all of them."""
    stats = ei.activation_stats(Net(), slots=8, sample=None)
    _, state = train(stats, stats.init({"params": PARAMS}, X), 100)
    each = ei.activation_stats(Net(), slots=100, sample=None)
    _, fine = train(each, each.init({"params": PARAMS}, X), 100)
    pooled, history = stats.value(state), each.value(fine)
    assert pooled.steps.tolist() == [0, 16, 32, 48, 64, 80, 96, -1]
    want = np.asarray(history.gradients.rms)[16:32]
    np.testing.assert_allclose(
        pooled.gradients.rms[1], np.sqrt(np.mean(want**2, 0)), rtol=1e-4
    )


def test_every_other_step_is_read():
    """A switched tap reads in its steps what a tap that is always on reads there."""
    always = ei.activation_stats(Net(), slots=10)
    _, full = train(always, always.init({"params": PARAMS}, X), 10)
    stats = ei.activation_stats(Net(), slots=10, every=4)
    _, state = train(stats, stats.init({"params": PARAMS}, X), 10)
    some, all_ = stats.value(state), always.value(full)
    assert some.steps.tolist()[:4] == [0, 4, 8, -1]
    np.testing.assert_allclose(
        some.activations.std[:3], all_.activations.std[jnp.array([0, 4, 8])], rtol=1e-5
    )


def test_a_sample_is_as_good_as_it_says():
    """Within four standard deviations of the whole; untuned inputs are far off."""
    x = jax.random.normal(jax.random.key(2), (64, 32, 16))
    params = Net().init(KEY, x)["params"]
    found = {}
    for sample in (None, 1024):
        stats = ei.activation_stats(Net(), of="input", sample=sample)
        start = stats.init({"params": params}, x)
        _, state = train(stats, start, 1, params, x)
        found[sample] = float(stats.value(state).activations.std[0, 0])
    assert found[None] != found[1024]
    np.testing.assert_allclose(found[1024], found[None], rtol=4 / np.sqrt(2 * 1024))


def test_nonfinite_elements_are_counted_apart():
    x = X.at[0, 0].set(jnp.nan).at[1, 0].set(jnp.inf)
    stats = ei.activation_stats(Net(), of="input", sample=None)
    _, state = train(stats, stats.init({"params": PARAMS}, x), 1, PARAMS, x)
    first = stats.value(state).rows()[0]
    assert first["nonfinite"] == pytest.approx(2 / X.size)
    assert np.isfinite(first["std"])


def test_beyond_the_range_of_squares_nothing_is_called_dead():
    stats = ei.activation_stats(Net(), of="input", sample=None)
    _, state = train(stats, stats.init({"params": PARAMS}, X), 1, PARAMS, 1e25 * X)
    first = stats.value(state).rows()[0]
    assert first["std"] == np.inf
    assert np.isnan(first["dead"])
    assert first["nonfinite"] == 0


def test_scaled_models_are_read_outside_of_their_factors():
    scales = ei.tune(Net(), PARAMS, X, square)
    tuned = ei.scaled(Net())
    stats = ei.activation_stats(tuned, sample=None)
    state = stats.init({"params": PARAMS, "scales": scales}, X)

    def loss(taps):
        variables = {"params": PARAMS, "scales": scales, "taps": taps}
        return square(stats.apply(variables, X))

    history = stats.value(stats.update(state, jax.grad(loss)(state.taps)))
    np.testing.assert_allclose(history.activations.rms[0], 1, rtol=1e-5)
    plain = stats.value(train(ei.activation_stats(Net()), state, 1)[1])
    assert np.max(np.abs(plain.activations.rms[0] - 1)) > 0.1


def test_over_a_mesh_readings_are_of_the_whole_batch():
    """Sharded as on one device, and no activation is gathered for it."""
    mesh = Mesh(np.array(jax.devices()[:8]), ("data",))
    x = jax.device_put(X, NamedSharding(mesh, PartitionSpec("data")))
    stats = ei.activation_stats(Net(), sample=512)
    state = stats.init({"params": PARAMS}, X)

    @jax.jit
    def seen(taps, x):
        loss = lambda t: square(stats.apply({"params": PARAMS, "taps": t}, x))
        return jax.grad(loss)(taps)

    whole, sharded = seen(state.taps, X), seen(state.taps, x)
    for name, tap in whole.items():
        np.testing.assert_allclose(sharded[name], tap, rtol=1e-4, atol=1e-5)
    text = seen.lower(state.taps, x).compile().as_text()
    assert "all-reduce" in text
    gathered = re.findall(r"= \w+\[([\d,]*)\][^ ]* all-gather\(", text)
    sizes = [np.prod([int(n) for n in found.split(",") if n]) for found in gathered]
    assert max(sizes, default=0) <= 64  # sums of each device, if anything


def test_patterns_choose_units():
    stats = ei.activation_stats(Net(), include="Dense_*", exclude="*_1")
    assert stats.value(stats.init({"params": PARAMS}, X)).paths == ("Dense_0",)


def test_with_64_bits():
    with jax.enable_x64(True):
        stats = ei.activation_stats(Net())
        wide = jax.tree.map(lambda p: p.astype(jnp.float64), PARAMS)
        _, state = train(stats, stats.init({"params": wide}, X), 2, wide)
        assert state.sums.dtype == jnp.float32
        assert np.isfinite(stats.value(state).gradients.std[1]).all()


def test_under_vmap_over_seeds():
    stats = ei.activation_stats(Net(), slots=2)
    keys = jax.random.split(KEY, 3)
    params = jax.vmap(lambda k: Net().init(k, X)["params"])(keys)

    def run(params):
        state = stats.init({"params": params}, X)
        for _ in range(3):
            loss = lambda t: square(stats.apply({"params": params, "taps": t}, X))
            state = stats.update(state, jax.grad(loss)(state.taps))
        return stats.value(state)

    many, one = jax.vmap(run)(params), run(jax.tree.map(lambda p: p[1], params))
    assert "3 runs" in str(many)
    with refuses(ValueError, match=r"look at one: jax.tree.map"):
        many.plot()
    np.testing.assert_allclose(
        many.activations.std[1], one.activations.std, rtol=1e-5, equal_nan=True
    )


def test_values_read_well():
    stats = ei.activation_stats(Net())
    state = stats.init({"params": PARAMS}, X)
    assert "empty" in str(stats.value(state))
    history = stats.value(train(stats, state, 3)[1])
    assert "Dense_1" in str(history)
    assert "2 slots" not in str(history)
    scalars = history.scalars()
    assert scalars["Dense_0/grad_dead"] == pytest.approx(
        float(history.gradients.dead[2, 0])
    )
    assert all(np.isfinite(list(scalars.values())))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"of": "middle"}, "expected 'output' or 'input'"),
        ({"every": 0}, "positive integer"),
        ({"slots": 3}, "even positive integer"),
        ({"octaves": (4, 2)}, "low, high"),
        ({"near": -1}, "at least 0"),
        ({"sample": 0}, "positive integer or None"),
    ],
)
def test_wrong_options_are_refused(options, words):
    with refuses(ValueError, match=words):
        ei.activation_stats(Net(), **options)


def test_wrong_use_is_refused():
    stats = ei.activation_stats(Net())
    state = stats.init({"params": PARAMS}, X)
    with refuses(TypeError, match=r"flax.linen.Module"):
        ei.activation_stats(jnp.tanh)
    with refuses(ValueError, match=r"expected 'params' among them"):
        stats.init(PARAMS, X)
    with refuses(ValueError, match="no 'taps'"):
        stats.apply({"params": PARAMS}, X)
    with refuses(ValueError, match="no module of these params"):
        stats.apply({"params": PARAMS, "taps": {"a/b/c": jnp.ones(3)}}, X)
    with refuses(ValueError, match=r"gradient of the loss"):
        stats.update(state, {"Dense_0": state.taps["Dense_0"]})
    with refuses(ValueError, match="the history is empty"):
        stats.value(state).rows()
    with refuses(ValueError, match="the history is empty"):
        stats.value(state).plot()
    with refuses(ValueError, match="expected 'activations' or 'gradients'"):
        stats.value(state).plot("weights")
    with refuses(ValueError, match=r"matches no unit"):
        bad = ei.activation_stats(Net(), include="Conv_*")
        bad.init({"params": PARAMS}, X)
    with refuses(ValueError, match="no unit is left"):
        none = ei.activation_stats(Net(), exclude="*")
        none.init({"params": PARAMS}, X)
