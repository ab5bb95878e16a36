"""How much more differences between inputs grow than the signal, and the verdict."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.nn.initializers import orthogonal

import einit_jax as ei
from tests.support.cases import to_one
from tests.support.checks import KEY, params_of, quick

X = jax.random.normal(KEY, (16, 8))
TORN, COLLAPSE = "inputs are torn apart", "inputs collapse"


class Plain(nn.Module):
    """Orthogonal layers of one width, a function after each but the last."""

    activation: Callable
    depth: int
    gain: float = 1.0

    @nn.compact
    def __call__(self, x):
        for i in range(self.depth):
            x = self.activation(x) if i else x
            x = nn.Dense(8, kernel_init=orthogonal(self.gain))(x)
        return x


class PlainLayer(nn.Module):
    """A function and an orthogonal layer, shaped for `nn.scan`."""

    activation: Callable

    @nn.compact
    def __call__(self, x, _):
        x = self.activation(x)
        return nn.Dense(x.shape[-1], kernel_init=orthogonal())(x), None


class Deep(nn.Module):
    """Many plain layers, quick to compile."""

    activation: Callable
    depth: int

    @nn.compact
    def __call__(self, x):
        axes = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}}
        layers = nn.scan(PlainLayer, length=self.depth, **axes)
        return layers(self.activation, name="stack")(x, None)[0]


class Layer(nn.Module):
    """A residual layer shaped for `nn.scan`."""

    @nn.compact
    def __call__(self, x, _=None):
        return x + 2 * nn.Dense(x.shape[-1])(nn.tanh(x)), None


class Scanned(nn.Module):
    """Three layers and a head."""

    @nn.compact
    def __call__(self, x):
        axes = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}}
        x, _ = nn.scan(Layer, length=3, **axes)(name="stack")(x)
        return nn.Dense(4, name="head")(x)


class Written(nn.Module):
    """The same, written out."""

    @nn.compact
    def __call__(self, x):
        for i in range(3):
            x, _ = Layer(name=f"layer_{i}")(x)
        return nn.Dense(4, name="head")(x)


def size(x: Any) -> Any:
    return jnp.sqrt(jnp.mean(jnp.square(x)))


def expected(outputs: Callable, x: jax.Array) -> list[float]:
    """By `jax.jvp`, of a function that gives a list of arrays."""
    around = lambda v: v - v.mean(0)
    moves = jnp.roll(x, 1, 0) - x
    values, tangents = jax.jvp(outputs, (x,), (moves,))
    start = size(moves) / size(around(x))
    pairs = zip(values, tangents, strict=True)
    return [float(size(t) / size(around(y)) / start) for y, t in pairs]


def test_a_linear_network_has_an_amplification_of_one():
    model = Plain(lambda x: x, depth=4)
    table = ei.measure(model, params_of(model), X, to_one)
    np.testing.assert_allclose(table.amplification, 1, rtol=1e-4)
    np.testing.assert_allclose(table.outputs_amplification, 1, rtol=1e-4)
    assert table.verdict() == ""


@pytest.mark.parametrize("scaled", [False, True])
def test_amplifications_are_those_of_captured_outputs(scaled):
    """The factors in force count: tanh bends more where outputs are larger."""
    model, names = Plain(nn.tanh, depth=5, gain=2.0), [f"Dense_{i}" for i in range(5)]
    params = params_of(model)
    scales = ei.tune(model, params, X, to_one) if scaled else None
    factors = {name: scales[name]["output"] if scales else 1.0 for name in names}

    def times_factor(proceed, args, keywords, context):
        y = proceed(*args, **keywords)
        return y * factors.get(context.module.name, 1.0)

    def outputs(x):
        with nn.intercept_methods(times_factor):
            y, state = model.apply({"params": params}, x, capture_intermediates=True)
        found = state["intermediates"]
        return [*(found[name]["__call__"][0] for name in names), y]

    table = ei.measure(model, params, X, to_one, scales=scales)
    *rows, end = expected(outputs, X)
    np.testing.assert_allclose(table.amplification, rows, rtol=1e-4)
    np.testing.assert_allclose(table.outputs_amplification, end, rtol=1e-4)
    assert table.rows()[3]["amplification"] == table.amplification[3]
    assert table.scalars()["Dense_3/amplification"] == table.amplification[3]


@pytest.mark.parametrize(
    "activation, depth, gain, verdict",
    [
        (nn.relu, 64, 2**0.5, COLLAPSE),
        (nn.tanh, 50, 1.5, TORN),
        (nn.sigmoid, 12, 1.0, COLLAPSE),
        (nn.relu, 2, 2**0.5, ""),
        (nn.tanh, 2, 1.0, ""),
    ],
)
def test_verdicts(activation, depth, gain, verdict):
    """Wide layers, as outputs of narrow ones of ReLU still differ in their length."""
    model, x = Deep(activation, depth), jax.random.normal(KEY, (32, 128))
    params = jax.tree.map(lambda w: gain * w, params_of(model, x.shape))
    table = ei.measure(model, params, x, to_one)
    assert table.verdict() == verdict
    (note,) = (line for line in table.notes() if line.startswith("amplification: "))
    assert note.endswith(f": {verdict}" if verdict else f"outputs {end_of(table):.3g}")


def end_of(table: ei.Measurement) -> float:
    return float(table.outputs_amplification)


def test_differences_of_integers_start_at_the_units_that_read_them():
    tokens = jax.random.randint(KEY, (16, 4), 0, 10)
    model = nn.Sequential([nn.Embed(10, 8), nn.Dense(8), nn.tanh, nn.Dense(4)])
    params = quick(model.init)(KEY, tokens)["params"]
    table = ei.measure(model, params, tokens, to_one)
    rest = nn.Sequential(model.layers[1:])
    embedded = model.layers[0].apply({"params": params["layers_0"]}, tokens)
    moved = {f"layers_{i}": params[f"layers_{i + 1}"] for i in (0, 2)}
    (end,) = expected(lambda x: [rest.apply({"params": moved}, x)], embedded)
    first, _, last = table.amplification
    np.testing.assert_allclose(first, 1, rtol=1e-5)
    np.testing.assert_allclose([last, end_of(table)], end, rtol=1e-4)


def test_a_batch_of_one_has_no_differences():
    model = Plain(nn.tanh, depth=2)
    table = ei.measure(model, params_of(model), X[:1], to_one)
    assert np.isnan(table.amplification).all()
    assert np.isnan(table.outputs_amplification)
    assert table.verdict() == ""
    assert "amplification" not in "\n".join(table.notes())
    assert not any(name.endswith("amplification") for name in table.scalars())


class CalledBack(nn.Module):
    """Inputs are prepared on the host."""

    @nn.compact
    def __call__(self, x):
        kind = jax.ShapeDtypeStruct(x.shape, x.dtype)
        return nn.Dense(4)(jax.pure_callback(np.tanh, kind, x))


def test_where_forward_mode_cannot_follow_nothing_is_told():
    table = ei.measure(CalledBack(), params_of(CalledBack()), X, to_one)
    assert np.isnan(table.amplification).all() and np.isnan(end_of(table))
    assert np.isfinite(table.total_update_rms).all()


def test_a_scanned_network_is_as_the_one_written_out():
    """Eager and under `jit`."""
    params = params_of(Scanned())
    layer = lambda i: jax.tree.map(lambda w: w[i], params["stack"])
    written = {f"layer_{i}": layer(i) for i in range(3)} | {"head": params["head"]}
    want = ei.measure(Written(), written, X, to_one)
    run = lambda params: ei.measure(Scanned(), params, X, to_one)
    for found in (run(params), jax.jit(run)(params)):
        np.testing.assert_allclose(found.amplification, want.amplification, rtol=1e-4)
        np.testing.assert_allclose(end_of(found), end_of(want), rtol=1e-4)


def test_amplifications_are_geometric_means_over_draws():
    model, drawn = Plain(nn.tanh, depth=3, gain=2.0), []

    def draw(key):
        drawn.append(jax.random.normal(key, (16, 8)))
        return drawn[-1]

    params = params_of(model)
    table = ei.measure(model, params, draw, to_one, draws=3)
    single = [ei.measure(model, params, batch, to_one) for batch in drawn]
    for name in ("amplification", "outputs_amplification"):
        mean = np.exp(np.mean([np.log(getattr(one, name)) for one in single], 0))
        np.testing.assert_allclose(getattr(table, name), mean, rtol=1e-5)
