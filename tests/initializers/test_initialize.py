"""Rules: what they select, what they are given, and what is refused."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import einit_jax as ei
from tests.support.checks import KEY, refuses
from tests.support.models import (
    CASES,
    calls,
    inputs,
    insides,
    lifted,
    numbers,
    transformers,
)

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
x8, sequence = jnp.ones((2, 8)), jnp.ones((2, 5, 8))
tokens = jnp.ones((2, 8), int)


def test_axes_reach_initializers_as_flax_orders_them():
    """Stacked layers and heads are drawn apart; the rest is (inputs, outputs)."""
    seen = {}

    def note(key, shape, dtype, path, fan_in, fan_out):
        seen[path] = (shape, fan_in, fan_out)
        return jax.random.normal(key, shape, dtype)

    found = arrays(drawn(lifted.Layers(axis=1), {"head/*": None, "*": note}, x8))
    assert seen["layers/block/up/kernel"] == ((8, 16), 8, 16)
    assert seen["layers/block/up/bias"] == ((16,), 8, 16)
    kernel = found["layers/block/up/kernel"]
    assert not np.allclose(kernel[:, 0], kernel[:, 1])
    drawn(insides.Tensors(), {"*/kernel": note, "*": None}, sequence)
    assert seen["heads/kernel"] == ((4, 6), 4, 6)
    assert seen["split/kernel"] == ((8, 8), 8, 8)
    drawn(inputs.TiedLm(), {"wte/*": note, "*": None}, tokens)
    assert seen["wte/embedding"][0] == (11, 8)
    rules = {"*/kernel": nn.initializers.orthogonal(), "*": 0.0}
    orthogonal = arrays(drawn(lifted.RematScan(), rules, x8))
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
    found = arrays(drawn(inputs.Bag(), rules, tokens))
    assert found["head/kernel"] == jax.ShapeDtypeStruct((8, 4), jnp.float32)
    assert (found["embed/embedding"] == 2).all()
    found = arrays(drawn(inputs.TiedLm(), list(rules.items())[1:], tokens))
    assert (found["block/up/bias"] == 3).all()
    assert (found["norm/scale"] == 5).all()
    assert (found["block/up/kernel"] == 1).all()
    mixed = arrays(drawn(inputs.TiedLm(), [("block/*", 0.0), ("*", "pytorch")], tokens))
    assert not mixed["block/up/kernel"].any()
    assert float(mixed["wte/embedding"].std()) > 0.5
    assert (drawn(calls.Halved(4), {nn.Dense: 2.0}, x8)["kernel"] == 2).all()


def test_ranks_do_not_count_stacked_layers():
    found = arrays(drawn(lifted.Layers(), {1: 0.0, 2: 1.0}, x8))
    assert (found["layers/block/up/kernel"] == 1).all()
    assert not found["layers/block/up/bias"].any()
    ensemble = arrays(drawn(lifted.Ensemble(), {nn.Dense: "he_normal"}, x8))
    assert ensemble["members/Dense_0/kernel"].shape == (3, 8, 16)


def test_boxes_dtypes_and_purity():
    """What is no floating array stays; nothing given is changed; keys decide."""
    same = lambda a, b: a.dtype == b.dtype and a.shape == b.shape
    shuffled = nn.Sequential([numbers.Shuffle(), nn.tanh])
    for model in (numbers.Boxed(), shuffled, numbers.Complex()):
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
    kept = drawn(transformers.ViT(), only("pytorch"), pixels)
    redrawn = drawn(transformers.ViT(), only("gpt2"), pixels)
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
    with refuses(error, match=words):
        ei.initialize(DENSE, rules, KEY)


def test_what_only_the_model_tells():
    with refuses(ValueError, match=r"'query/kernel' by its fans.*pass model"):
        ei.initialize(THREE, "he_normal", KEY)
    assert (ei.initialize(THREE, {"*": 2.0}, KEY)["query"]["bias"] == 2).all()
    with refuses(ValueError, match="input_fn is not given"):
        ei.initialize(DENSE, "zeros", KEY, model=nn.Dense(4))
    with refuses(ValueError, match="modules are of: Dense"):
        drawn(nn.Dense(4), {nn.Conv: 0.0, ...: 0.0}, jnp.ones((1, 4)))
    with refuses(ValueError, match=r"\(0, 4\): its fan is zero.*None"):
        ei.initialize({"kernel": jnp.ones((0, 4))}, "he_normal", KEY)
    kept = ei.initialize({"kernel": jnp.ones((0, 4))}, {"*": None}, KEY)
    assert kept["kernel"].shape == (0, 4)
