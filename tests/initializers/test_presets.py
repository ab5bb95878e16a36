"""Presets against the frameworks' own draws, Flax's own, and formulas."""

import json
import math
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import einit_jax as ei
from tests.support.checks import KEY
from tests.support.models import lifted, transformers

GOLDEN = json.loads((Path(__file__).parents[1] / "golden/frameworks.json").read_text())


def shapes_of(model, *inputs):
    return jax.eval_shape(model.init, KEY, *inputs)["params"]


def drawn(model, rules, *inputs, key=KEY, **options):
    """The parameters of a model by rules, from their shapes alone."""
    params = shapes_of(model, *inputs)
    given = {"model": model, "input_fn": inputs, **options}
    return ei.initialize(params, rules, key, **given)


def arrays(tree):
    """Arrays by path as a name."""
    leaves, _ = jax.tree.flatten_with_path(tree)
    return {"/".join(str(k.key) for k in path): leaf for path, leaf in leaves}


x8 = jnp.ones((2, 8))
tokens = jnp.ones((2, 8), int)


def check(found, want):
    """Moments of what we drew against the golden ones, both of samples.

    An rms of N numbers deviates by 1/sqrt(2N) relatively, a mean by rms/sqrt(N), and
    so, at most, does the mean size over the rms.
    """
    x = np.asarray(found, np.float64).ravel()
    rms = math.sqrt(np.mean(x**2))
    few = min(x.size, want["count"])
    assert rms == pytest.approx(want["rms"], rel=4 * 2**0.5 / (2 * few) ** 0.5)
    assert abs(x.mean() - want["mean"]) <= 4 * 2**0.5 * want["rms"] / few**0.5
    if rms:
        shape = np.abs(x).mean() / rms
        assert shape == pytest.approx(want["shape"], abs=4 / few**0.5)
    if want["shape"] > 0.85:  # uniform or constant: the bound itself
        assert np.abs(x).max() <= want["largest"] * (1 + 1e-3)


image = jnp.ones((1, 9, 9, 8))
LAYERS = {
    "dense": (nn.Dense(256), jnp.ones((1, 64))),
    "conv": (nn.Conv(32, (3, 3)), image),
    "conv_grouped": (nn.Conv(32, (3, 3), feature_group_count=2), image),
    "conv_transpose": (nn.ConvTranspose(32, (4, 4), strides=(2, 2)), image),
    "embed": (nn.Embed(100, 64), jnp.ones((1, 5), int)),
    "norm": (nn.LayerNorm(), jnp.ones((1, 64))),
}
CELLS = {"lstm": nn.OptimizedLSTMCell, "gru": nn.GRUCell}


@pytest.mark.parametrize("framework", ["pytorch", "keras"])
@pytest.mark.parametrize("layer", LAYERS)
def test_layers_are_drawn_as_by_the_framework(framework, layer):
    found = drawn(LAYERS[layer][0], framework, LAYERS[layer][1])
    golden = GOLDEN[framework][layer]
    assert set(found) == set(golden)
    for name, want in golden.items():
        check(found[name], want)


@pytest.mark.parametrize("framework", ["pytorch", "keras"])
@pytest.mark.parametrize("kind", CELLS)
def test_recurrent_cells_are_drawn_as_by_the_framework(framework, kind):
    model, golden = nn.RNN(CELLS[kind](32)), GOLDEN[framework][kind]
    cell = drawn(model, framework, jnp.ones((1, 2, 48)))["cell"]
    of = lambda side, name: jnp.stack(
        [v[name] for n, v in sorted(cell.items()) if n[0] == side and name in v]
    )
    check(of("i", "kernel"), golden["input"])
    check(of("h", "kernel"), golden["recurrent"])
    if framework == "keras":  # rows of all gates together are orthonormal
        whole = jnp.concatenate(list(of("h", "kernel")), 1)
        np.testing.assert_allclose(whole @ whole.T, np.eye(32), atol=1e-5)
    if kind == "lstm":
        check(of("h", "bias"), golden["bias"])


def test_the_default_of_flax_differs_from_the_golden_draws():
    """The check above is not idle."""
    dense = nn.Dense(256).init(KEY, jnp.ones((1, 64)))["params"]
    for framework in ("pytorch", "keras"):
        with pytest.raises(AssertionError):
            check(dense["kernel"], GOLDEN[framework]["dense"]["kernel"])


def test_dcgan():
    golden = GOLDEN["dcgan"]["conv_norm"]
    model = nn.Sequential([nn.Conv(64, (4, 4)), nn.LayerNorm(), nn.Dense(4)])
    found = drawn(model, "dcgan", image)
    check(found["layers_0"]["kernel"], golden["kernel"])
    check(found["layers_1"]["bias"], golden["bias"])
    gains = found["layers_1"]["scale"] - 1
    assert float(gains.std()) == pytest.approx(0.02, rel=4 / (2 * gains.size) ** 0.5)


def test_gpt2():
    """Residual projections, and these alone, are divided by sqrt(2 L), L = 2."""
    golden, blocks = GOLDEN["gpt2"]["model"], (3 / 2) ** 0.5
    found = arrays(drawn(transformers.Gpt2(depth=2), "gpt2", tokens))
    scaled = {**golden["out"], "rms": golden["out"]["rms"] * blocks}
    check(found["wte/embedding"], golden["wte"])
    check(found["wpe/embedding"], golden["wpe"])
    for block in ("h0", "h1"):
        check(found[f"{block}/attention/query/kernel"], golden["qkv"])
        check(found[f"{block}/mlp/up/kernel"], golden["up"])
        check(found[f"{block}/attention/out/kernel"], scaled)
        check(found[f"{block}/mlp/down/kernel"], scaled)
        assert not found[f"{block}/mlp/up/bias"].any()
    stack = arrays(drawn(lifted.Layers(), "gpt2", x8))["layers/block/down/kernel"]
    want = 0.02 / 3**0.5
    assert float(stack.std()) == pytest.approx(want, rel=4 / (2 * stack.size) ** 0.5)


WIDE = (nn.Sequential([nn.Dense(400), nn.LayerNorm(), nn.Dense(100)]), 100)
UNIFORM = lambda bound: stats.uniform(-bound, 2 * bound).cdf
NORMAL = lambda deviation: stats.norm(0, deviation).cdf


@pytest.mark.parametrize(
    ("preset", "cdf"),
    [
        ("lingvo", UNIFORM(1.000001 * (6 / 500) ** 0.5)),
        ("returnn_theano", NORMAL((12 / 500) ** 0.5)),
        ("general_rule", UNIFORM(0.1)),
        ("normal_rule", NORMAL(0.1)),
        ("uniform", stats.uniform(0, 1).cdf),
        ("uniform_half", UNIFORM(0.5)),
        ("he_normal", stats.truncnorm(-2, 2, scale=0.02**0.5 / 0.87962566).cdf),
        ("lecun_normal", stats.truncnorm(-2, 2, scale=0.1 / 0.87962566).cdf),
        ("glorot_uniform", UNIFORM((6 / 500) ** 0.5)),
    ],
)
def test_presets_follow_their_formulas(preset, cdf):
    """Kolmogorov-Smirnov at 1e-4; the distribution at 1.03 of the width fails."""
    found = drawn(WIDE[0], preset, jnp.ones((1, WIDE[1])))
    kernel = np.asarray(found["layers_0"]["kernel"]).ravel()
    assert stats.kstest(kernel, cdf).pvalue > 1e-4
    assert stats.kstest(kernel * 1.03, cdf).pvalue < 1e-4
    assert not found["layers_0"]["bias"].any()
    assert (found["layers_1"]["scale"] == 1).all()


def test_constant_presets_and_all_presets_by_names_alone():
    params = shapes_of(WIDE[0], jnp.ones((1, WIDE[1])))
    for preset, value in (("zeros", 0), ("ones", 1)):
        found = ei.initialize(params, preset, KEY)
        assert (found["layers_2"]["kernel"] == value).all()
        assert not found["layers_2"]["bias"].any()
    for preset in ("pytorch", "keras", "lecun_normal", "returnn_theano", "dcgan"):
        traced = drawn(WIDE[0], preset, jnp.ones((1, WIDE[1])))
        jax.tree.map(
            np.testing.assert_array_equal, traced, ei.initialize(params, preset, KEY)
        )


@pytest.mark.parametrize(
    ("model", "x"),
    [
        (nn.DenseGeneral((4, 16)), jnp.ones((1, 64))),
        (nn.DenseGeneral(64, axis=(-2, -1)), jnp.ones((1, 8, 16))),
        (nn.Conv(32, (3, 3)), image),
        (nn.ConvTranspose(32, (3,), transpose_kernel=False), jnp.ones((1, 9, 8))),
        (nn.Embed(100, 64), jnp.ones((1, 5), int)),
        (nn.MultiHeadDotProductAttention(4), jnp.ones((1, 3, 64))),
    ],
)
def test_lecun_normal_is_what_flax_draws(model, x):
    """The same distribution: the same rms, array by array, as Flax itself."""
    theirs = arrays(model.init(KEY, x)["params"])
    ours = arrays(drawn(model, "lecun_normal", x))
    assert set(ours) == set(theirs)
    for name, found in ours.items():
        rms = lambda v: float(jnp.sqrt(jnp.mean(jnp.square(v))))
        rel = 4 * 2**0.5 / (2 * found.size) ** 0.5
        assert rms(found) == pytest.approx(rms(theirs[name]), rel=rel)
