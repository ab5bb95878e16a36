"""Classic rules against the frameworks' own draws, Flax's own, and formulas."""

import json
import math
from functools import partial
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import einit_jax as ei
from tests import models, published
from tests.models import CASES

KEY = jax.random.key(0)
GOLDEN = json.loads((Path(__file__).parent / "golden/frameworks.json").read_text())
Constant = nn.initializers.constant


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


def of_case(name, rules):
    """The arrays of a row of the table of models, with all its options."""
    job = CASES[name].build()
    given = {"model": job.model, "input_fn": job.input_fn, **job.options}
    return arrays(ei.initialize(job.params, rules, KEY, **given))


DENSE = {"kernel": jnp.ones((4, 4)), "bias": jnp.ones(4)}
x8, series = jnp.ones((2, 8)), jnp.ones((2, 5, 8))
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
    found = arrays(drawn(published.Gpt2(), "gpt2", tokens))
    scaled = {**golden["out"], "rms": golden["out"]["rms"] * blocks}
    check(found["wte/embedding"], golden["wte"])
    check(found["wpe/embedding"], golden["wpe"])
    for block in ("h0", "h1"):
        check(found[f"{block}/attention/query/kernel"], golden["qkv"])
        check(found[f"{block}/mlp/up/kernel"], golden["up"])
        check(found[f"{block}/attention/out/kernel"], scaled)
        check(found[f"{block}/mlp/down/kernel"], scaled)
        assert not found[f"{block}/mlp/up/bias"].any()
    stack = arrays(drawn(models.Layers(), "gpt2", x8))["layers/block/down/kernel"]
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


def test_axes_reach_initializers_as_flax_orders_them():
    """Stacked layers and heads are drawn apart; the rest is (inputs, outputs)."""
    seen = {}

    def note(key, shape, dtype, path, fan_in, fan_out):
        seen[path] = (shape, fan_in, fan_out)
        return jax.random.normal(key, shape, dtype)

    found = arrays(drawn(models.Layers(axis=1), {"head/*": None, "*": note}, x8))
    assert seen["layers/block/up/kernel"] == ((8, 16), 8, 16)
    assert seen["layers/block/up/bias"] == ((16,), 8, 16)
    kernel = found["layers/block/up/kernel"]
    assert not np.allclose(kernel[:, 0], kernel[:, 1])
    drawn(models.Tensors(), {"*/kernel": note, "*": None}, series)
    assert seen["heads/kernel"] == ((4, 6), 4, 6)
    assert seen["split/kernel"] == ((8, 8), 8, 8)
    drawn(models.TiedLm(), {"wte/*": note, "*": None}, tokens)
    assert seen["wte/embedding"][0] == (11, 8)
    rules = {"*/kernel": nn.initializers.orthogonal(), "*": 0.0}
    orthogonal = arrays(drawn(models.RematScan(), rules, x8))
    for matrix in orthogonal["stack/up/kernel"].reshape(4, 8, 16):
        np.testing.assert_allclose(matrix @ matrix.T, np.eye(8), atol=1e-5)


def test_the_first_rule_that_matches_draws():
    rules = {
        "head/*": None,
        (nn.Dense, "bias"): 3,
        1: 5.0,
        nn.Embed: Constant(2.0),
        ...: 1.0,
    }
    found = arrays(drawn(models.Bag(), rules, tokens))
    assert found["head/kernel"] == jax.ShapeDtypeStruct((8, 4), jnp.float32)
    assert (found["embed/embedding"] == 2).all()
    found = arrays(drawn(models.TiedLm(), list(rules.items())[1:], tokens))
    assert (found["block/up/bias"] == 3).all()
    assert (found["norm/scale"] == 5).all()
    assert (found["block/up/kernel"] == 1).all()
    mixed = arrays(drawn(models.TiedLm(), [("block/*", 0.0), ("*", "pytorch")], tokens))
    assert not mixed["block/up/kernel"].any()
    assert float(mixed["wte/embedding"].std()) > 0.5
    assert (drawn(models.Halved(4), {nn.Dense: 2.0}, x8)["kernel"] == 2).all()


def test_ranks_do_not_count_stacked_layers():
    found = arrays(drawn(models.Layers(), {1: 0.0, 2: 1.0}, x8))
    assert (found["layers/block/up/kernel"] == 1).all()
    assert not found["layers/block/up/bias"].any()
    ensemble = arrays(drawn(models.Ensemble(), {nn.Dense: "he_normal"}, x8))
    assert ensemble["members/Dense_0/kernel"].shape == (3, 8, 16)


def test_boxes_dtypes_and_purity():
    """What is no floating array stays; nothing given is changed; keys decide."""
    same = lambda a, b: a.dtype == b.dtype and a.shape == b.shape
    shuffled = nn.Sequential([models.Shuffle(), nn.tanh])
    for model in (models.Boxed(), shuffled, models.Complex()):
        params = shapes_of(model, x8)
        found = drawn(model, "general_rule", x8)
        assert jax.tree.structure(found) == jax.tree.structure(params)
        assert jax.tree.all(jax.tree.map(same, found, params))
    assert found["first"]["kernel"].imag.std() > 0
    kept = dict(DENSE)
    one, two = (ei.initialize(DENSE, "pytorch", KEY) for _ in range(2))
    jax.tree.map(np.testing.assert_array_equal, one, two)
    assert all(kept[name] is DENSE[name] for name in kept)
    half = {n: {"kernel": jnp.ones((8, 8), jnp.bfloat16)} for n in ("up", "down")}
    found, other = (
        ei.initialize(half, "normal_rule", k) for k in jax.random.split(KEY)
    )
    assert jax.tree.all(jax.tree.map(same, found, half))
    assert (found["up"]["kernel"] != other["up"]["kernel"]).any()
    assert (found["up"]["kernel"] != found["down"]["kernel"]).any()


def test_under_jit_and_over_devices():
    model, x = nn.Dense(8), jnp.ones((1, 4))
    params = model.init(KEY, x)["params"]
    draw = partial(ei.initialize, model=model, input_fn=x)
    eager = draw(params, "he_normal", KEY)
    jitted = jax.jit(lambda p, k: draw(p, "he_normal", k))(params, KEY)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6), eager, jitted)
    mesh = jax.make_mesh((4,), ("model",))
    spec = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, "model"))
    sharded = {**params, "kernel": jax.device_put(params["kernel"], spec)}
    found = draw(sharded, "he_normal", KEY)
    assert found["kernel"].sharding == spec
    np.testing.assert_array_equal(found["kernel"], eager["kernel"])


def test_what_is_no_layer_stays():
    """A class token keeps its values, and so do raw positions; not for GPT-2."""
    pixels, raw = jnp.ones((1, 8, 8, 3)), ("cls", "pos_embedding")
    only = lambda preset: {**dict.fromkeys(raw, preset), "*": None}
    kept = drawn(published.ViT(), only("pytorch"), pixels)
    redrawn = drawn(published.ViT(), only("gpt2"), pixels)
    for name in raw:
        assert isinstance(kept[name], jax.ShapeDtypeStruct)
        assert 0.01 < float(redrawn[name].std()) < 0.03


def test_models_called_in_other_ways():
    """Random streams, collections, methods and axis names reach the trace."""
    for case in ("dropout", "batch_norm_axis_name", "method_function"):
        found = of_case(case, {nn.Dense: 2.0, "*": None})
        assert any((v == 2).all() for v in found.values())
    cached = of_case("nn_jit_cached", {nn.Dense: 2.0})
    assert all((v == 2).all() for v in cached.values())


THREE = {"query": {"kernel": jnp.ones((4, 2, 2)), "bias": jnp.ones((2, 2))}}
WRONG = lambda key, shape, dtype: jnp.ones((3, 3), dtype)
scaling = nn.initializers.variance_scaling


@pytest.mark.parametrize(
    ("rules", "error", "words"),
    [
        ("torch", ValueError, "presets are: pytorch, keras"),
        ({"*": "he"}, ValueError, "preset 'he' is not known"),
        ({}, ValueError, "add a default"),
        (3, TypeError, "expected a preset's name"),
        ([("*", 1.0, 2.0)], TypeError, "sequence of"),
        ({2.5: 0.0}, TypeError, "is no selector"),
        ({"*": [1.0]}, TypeError, "is a list, expected a number"),
        ({"*/kernel": 0.0, "*": 0.0}, ValueError, "matches no array.*are: bias, k"),
        ({"kernel": 0.0}, ValueError, "no rule matches 'bias'.*default last"),
        ({3: 0.0, ...: 0.0}, ValueError, "rule 3 matches no array"),
        ({nn.Dense: 0.0}, ValueError, "Dense: only the model tells"),
        ("gpt2", ValueError, "pass model=..., input_fn=..."),
        ({"*": nn.initializers.orthogonal()}, ValueError,
         r"cannot draw 'bias' of shape \(4,\).*\(1, 0.0\)"),
        ({"*": WRONG}, ValueError, r"returned shape \(3, 3\)"),
        ({"bias": 0.0, "*": scaling(-1.0, "fan_in", "normal")}, ValueError,
         "not finite for 'kernel'; is its variance negative"),
    ],
)  # fmt: skip
def test_rules_that_cannot_be_followed(rules, error, words):
    with pytest.raises(error, match=words):
        ei.initialize(DENSE, rules, KEY)


def test_what_only_the_model_tells():
    with pytest.raises(ValueError, match=r"'query/kernel' by its fans.*pass model"):
        ei.initialize(THREE, "he_normal", KEY)
    assert (ei.initialize(THREE, {"*": 2.0}, KEY)["query"]["bias"] == 2).all()
    with pytest.raises(ValueError, match="input_fn is not given"):
        ei.initialize(DENSE, "zeros", KEY, model=nn.Dense(4))
    with pytest.raises(ValueError, match="modules are of: Dense"):
        drawn(nn.Dense(4), {nn.Conv: 0.0, ...: 0.0}, jnp.ones((1, 4)))
    with pytest.raises(ValueError, match=r"\(0, 4\): its fan is zero.*None"):
        ei.initialize({"kernel": jnp.ones((0, 4))}, "he_normal", KEY)
    kept = ei.initialize({"kernel": jnp.ones((0, 4))}, {"*": None}, KEY)
    assert kept["kernel"].shape == (0, 4)
