"""`autoinit`: what it draws, for whom, and what it refuses."""

import math
import warnings

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import einit_jax as ei
from tests.benchmarks.accuracy import estimates
from tests.support.checks import refuses
from tests.support.models import CASES

KEY, SIZE = jax.random.key(0), 8192
X = jax.random.normal(jax.random.key(1), (64, 32))
of = estimates.batch_of


def sizes(model, params, x):
    _, seen = model.apply({"params": params}, x, capture_intermediates=True)
    layers = seen["intermediates"]
    return {
        name: float(jnp.mean(jnp.square(of["__call__"][0])))
        for name, of in layers.items()
        if name != "__call__"
    }


def test_keeps_activations_where_the_default_loses_them():
    model = estimates.Chain(nn.gelu, 256)
    params = model.init(KEY, X)["params"]
    kept = sizes(model, ei.autoinit(model, params, X), X)
    assert all(0.6 < size < 1.6 for size in kept.values())
    assert min(sizes(model, params, X).values()) < 0.1


def test_moments_of_inputs():
    """`signal_variance / (fan_in (mean^2 + var))`, whatever the batch says."""
    model = nn.Dense(512)
    params = model.init(KEY, X)["params"]
    given = {"input_mean": 2.0, "input_var": 0.25, "signal_variance": 3.0}
    made = ei.autoinit(model, params, X, **given)
    want, count = 3 / (4 + 0.25), params["kernel"].size
    found = 32 * float(jnp.mean(jnp.square(made["kernel"])))
    assert found == pytest.approx(want, rel=4 / math.sqrt(2 * count))
    measured = 32 * float(jnp.mean(jnp.square(ei.autoinit(model, params, X)["kernel"])))
    assert measured == pytest.approx(1 / float(jnp.mean(X**2)), rel=0.06)


@pytest.mark.parametrize("draw", ["truncated_normal", "uniform", "orthogonal", None])
def test_distributions(draw):
    model = nn.Dense(64)
    params = model.init(KEY, X)["params"]
    params["bias"] = params["bias"] + 3.0
    made = ei.autoinit(model, params, X, input_mean=0.0, distribution=draw)
    kernel = made["kernel"]
    assert 32 * float(jnp.mean(kernel**2)) == pytest.approx(1, rel=0.09)
    assert not made["bias"].any()
    bound = float(jnp.max(jnp.abs(kernel))) * math.sqrt(32)
    if draw == "uniform":
        assert bound <= math.sqrt(3) + 1e-4
    if draw == "truncated_normal":
        assert 1.9 < bound < 2.3
    if draw == "orthogonal":
        gram = kernel @ kernel.T
        assert np.allclose(gram, 2 * np.eye(32), atol=1e-4)
    if draw is None:
        assert np.allclose(
            kernel / params["kernel"], kernel[0, 0] / params["kernel"][0, 0]
        )


def test_weights_of_zero_mean_take_away_what_inputs_share():
    x = X + 5.0
    model = nn.Sequential([nn.Dense(256)])
    params = model.init(KEY, x)["params"]
    made = ei.autoinit(model, params, x, zero_mean=True)["layers_0"]["kernel"]
    assert float(jnp.abs(made.sum(0)).max()) < 1e-4
    assert float(jnp.mean(jnp.square(x @ made))) == pytest.approx(1, rel=0.1)
    plain = ei.autoinit(model, params, x)["layers_0"]["kernel"]
    assert float(jnp.mean(jnp.square(made))) > 10 * float(jnp.mean(jnp.square(plain)))


class Layers(nn.Module):
    """Three layers, scanned or written out."""

    scanned: bool

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(32, name="first")(x)
        step = lambda layer, x: (nn.gelu(layer(x)), None)
        if self.scanned:
            over = nn.scan(
                lambda layer, x, _: step(layer, x), length=3,
                variable_axes={"params": 0}, split_rngs={"params": True},
            )  # fmt: skip
            return over(nn.Dense(32, name="layers"), x, None)[0]
        for i in range(3):
            x, _ = step(nn.Dense(32, name=f"layers_{i}"), x)
        return x


def test_scanned_layers_are_scaled_one_by_one():
    made = {}
    for scanned in (True, False):
        model = Layers(scanned)
        params = model.init(KEY, X)["params"]
        made[scanned] = ei.autoinit(model, params, X)
    size = lambda k: float(jnp.mean(jnp.square(k)))
    stacked = [size(k) for k in made[True]["layers"]["kernel"]]
    apart = [size(made[False][f"layers_{i}"]["kernel"]) for i in range(3)]
    assert np.allclose(stacked, apart, rtol=4 * math.sqrt(2) / math.sqrt(2 * 32 * 32))
    assert stacked[1] > 1.5 * stacked[0]


@pytest.mark.parametrize("name", ["vmap_ensemble", "boxed", "bfloat16"])
def test_rows_of_the_table(name):
    """The tree, dtypes and boxes stay; weights are finite and not zero."""
    job = CASES[name].build()
    given = {"samples": 512, **job.options}
    made = ei.autoinit(job.model, job.params, job.input_fn, job.loss_fn, **given)
    kind = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)
    assert kind(made) == kind(job.params)
    assert all(jnp.isfinite(x).all() for x in jax.tree.leaves(made))


def test_same_key_same_weights_and_under_jit():
    model = nn.Sequential([nn.Dense(16), nn.relu, nn.Dense(4)])
    params = model.init(KEY, X)["params"]
    make = lambda key: ei.autoinit(model, params, X, key=key, samples=256)
    one, again, other = make(KEY), make(KEY), make(jax.random.key(5))
    same = lambda a, b: jax.tree.all(jax.tree.map(lambda x, y: np.allclose(x, y), a, b))
    assert same(one, again)
    assert same(one, jax.jit(make)(KEY))
    assert not same(one, other)


class Spectrum(nn.Module):
    """Something without a rule, before a layer."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(256)(jnp.abs(jnp.fft.fft(x)))


def test_primitives_without_a_rule_are_named():
    model = Spectrum()
    params = model.init(KEY, X)["params"]
    with pytest.warns(
        UserWarning, match="no rule for the primitives 'fft' at Spectrum"
    ):
        plain = ei.autoinit(model, params, X)
    own = {"fft": lambda mean, variance: (mean, 32 * variance)}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = ei.autoinit(model, params, X, estimators=own)
    ratio = plain["Dense_0"]["kernel"].std() / made["Dense_0"]["kernel"].std()
    assert float(ratio) == pytest.approx(math.sqrt(32), rel=0.05)


class Squashed(nn.Module):
    """A module that its user knows better."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(256, name="after")(Cube()(x))


class Cube(nn.Module):
    """No parameters."""

    @nn.compact
    def __call__(self, x):
        return x**3


def test_estimators_of_modules():
    model, known = Squashed(), {Cube: lambda mean, variance: (0.0, 4 * variance)}
    params = model.init(KEY, X)["params"]
    made = ei.autoinit(model, params, X, input_mean=0.0, estimators=known)
    found = 32 * float(jnp.mean(jnp.square(made["after"]["kernel"])))
    assert found == pytest.approx(1 / 4, rel=0.06)
    plain = ei.autoinit(model, params, X, input_mean=0.0)
    found = 32 * float(jnp.mean(jnp.square(plain["after"]["kernel"])))
    assert found == pytest.approx(1 / 15, rel=0.08)  # E z^6 = 15


def test_weights_that_nothing_meets_are_named():
    job = CASES["weight_norm"].build()
    with pytest.warns(UserWarning, match="nothing multiplied with norm/layer_instance"):
        ei.autoinit(job.model, job.params, job.input_fn, samples=256, **job.options)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"signal_variance": 0.0}, ValueError, "signal_variance=0.0, expected a pos"),
        ({"input_var": -1.0}, ValueError, "input_var=-1.0, expected a number >= 0"),
        ({"input_mean": float("nan")}, ValueError, "input_mean=nan"),
        ({"distribution": "cauchy"}, ValueError, "'cauchy' is not known; expected 'tr"),
        ({"samples": 1000}, ValueError, "samples=1000, expected a power of two"),
        ({"along": 2}, ValueError, "along=2, expected an integer >= 3"),
        ({"estimators": [1]}, TypeError, "expected a mapping"),
        ({"estimators": {"fft": 3}}, TypeError, "estimator 'fft': 3"),
        ({"estimators": {"fft": lambda m, v: (m, v)}}, ValueError, "for fft, which"),
        ({"estimators": {Cube: lambda m, v: (m, v)}}, ValueError, "for Cube, which"),
        ({"estimators": {"tanh": lambda m, v: m}}, TypeError, "expected a pair"),
    ],
)
def test_wrong_arguments(options, error, words):
    model = nn.Sequential([nn.Dense(4), jnp.tanh, nn.Dense(4)])
    params = model.init(KEY, X)["params"]
    with refuses(error, match=words):
        ei.autoinit(model, params, X, **{"samples": 64, **options})
