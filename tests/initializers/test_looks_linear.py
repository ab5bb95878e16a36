"""Starts that are as good as linear, against what a linear network is."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import einit_jax as ei
from einit_jax.core import flatten
from tests.distinctness.test_pairs import NETWORKS, Written
from tests.support.checks import allclose

KEY = jax.random.key(0)
AUTO = jax.sharding.AxisType.Auto
x = jax.random.normal(jax.random.key(1), (32, 64))
LINEAR = {
    "relu": nn.relu,
    "leaky relu": nn.leaky_relu,
    "gelu": nn.gelu,
    "exact gelu": lambda x: nn.gelu(x, approximate=False),
    "silu": nn.silu,
    "softplus": nn.softplus,
}


class Plain(nn.Module):
    """Dense layers with a function between them."""

    function: object
    depth: int = 8
    width: int = 16
    dtype: object = jnp.float32

    @nn.compact
    def __call__(self, x):
        for _ in range(self.depth - 1):
            x = self.function(nn.Dense(self.width, param_dtype=self.dtype)(x))
        return nn.Dense(4, param_dtype=self.dtype)(x)


def params_of(model, x=x):
    return jax.jit(model.init)(KEY, x)["params"]


def start(model, x=x, **options):
    """The parameters and the report, where nothing is left that need not be."""
    options = {"amplification": 1.0, "key": KEY, "with_report": True} | options
    return ei.looks_linear(model, params_of(model, x), x, **options)


def function_of(model, params):
    return jax.jit(lambda x: model.apply({"params": params}, x))


def jvp_amplification(f, x):
    """The definition, by `jax.jvp` of the plain model."""
    rms = lambda t: np.sqrt(np.mean(np.square(t)))
    spread = lambda t: rms(t - t.mean(0))
    step = jnp.roll(x, 1, 0) - x
    y, moved = jax.jvp(f, (x,), (step,))
    return rms(moved) / spread(y) / (rms(step) / spread(x))


@pytest.mark.parametrize("name", LINEAR)
def test_a_mirrored_network_is_linear(name):
    """Sums of inputs give sums of outputs, to some roundings a layer of numbers near 1;
    orthonormal weights as they are do not."""
    model = Plain(LINEAR[name])
    params, report = start(model)
    f, g = function_of(model, params), x[::-1]
    assert bool(report.in_pairs)
    allclose(f(x + g), f(x) + f(g), rtol=0, atol=2e-5)
    plainly = function_of(model, ei.lsuv(model, params_of(model), x, key=KEY))
    assert jnp.abs(plainly(x + g) - plainly(x) - plainly(g)).max() > 0.1


def test_bfloat16_stays_bfloat16():
    params, report = start(Plain(nn.relu, dtype=jnp.bfloat16))
    assert {p.dtype for p in jax.tree.leaves(params)} == {jnp.dtype("bfloat16")}
    assert 0.9 < report.after < 1.1 < report.before


ODD = {
    name: NETWORKS[name][0] for name in ("CNN", "U-Net", "pre-activation", "scanned")
}
ODD |= {name: NETWORKS[name][0] for name in ("shuffled", "shared")}


@pytest.mark.parametrize("name", ODD)
def test_what_is_mirrored_throughout_is_odd(name):
    """Inputs of opposite sign give opposite outputs: pooling, norms, groups, windows,
    shuffles, joins and loops treat both of a pair alike."""
    model, key = Written(ODD[name]), {"params": KEY, "dropout": KEY}
    variables = dict(model.init(key, x))
    params = variables.pop("params")
    mutable = list(variables)
    options = {"collections": variables, "key": KEY, "with_report": True}
    found, report = ei.looks_linear(model, params, x, amplification=1.0, **options)
    run = lambda p, x: model.apply({"params": p, **variables}, x, mutable=mutable)[0]
    assert bool(report.in_pairs)
    allclose(run(found, -x), -run(found, x), rtol=0, atol=3e-5)
    plainly = ei.lsuv(model, params, x, collections=variables, key=KEY)
    assert jnp.abs(run(plainly, -x) + run(plainly, x)).max() > 0.05


@pytest.mark.parametrize(
    ("function", "limit"), [(nn.tanh, 1.2), (jnp.sin, 1.2), (nn.elu, 1.05)]
)
def test_outputs_shrink_until_the_amplification_is_what_was_asked_for(function, limit):
    model = Plain(function, depth=16)
    params, report = start(model, amplification=limit)
    f = function_of(model, params)
    allclose(report.after, jvp_amplification(f, x), rtol=1e-3, atol=0)
    assert not report.in_pairs  # of ELU too: what mirrored weights leave is curved
    assert 0 < report.size < 1
    assert report.after < 1.04 * limit < report.before
    table = ei.measure(model, params, x, lambda y: jnp.mean(y**2))
    share = jnp.sqrt(1 - table.output_mean**2)  # a share of the rms, too
    deviation = table.output_rms * share
    allclose(deviation[:-1], report.size, rtol=0.02)
    allclose(deviation[-1], 1, rtol=0.02)


def test_where_smaller_outputs_do_not_help_alone_there_are_pairs():
    """Behind sigmoids a constant drowns all differences, at any size."""
    _, report = start(Plain(nn.sigmoid, depth=16), amplification=2.0)
    assert bool(report.in_pairs)
    assert not report.before < 100
    assert report.after < 2
    assert all(row["mirrored"] for row in report.rows()[:-1])


def test_networks_that_need_nothing_get_plain_draws():
    """The very weights of `lsuv`."""
    model = Plain(nn.relu, depth=3)
    params, report = start(model, amplification=2.0)
    assert report.before < 2
    assert not report.in_pairs
    assert report.size == 1
    assert report.smaller == ()
    plain = ei.lsuv(model, params_of(model), x, key=KEY)
    jax.tree.map(lambda a, b: allclose(a, b, rtol=1e-6), params, plain)


def test_residual_streams_stay_and_blocks_are_mirrored():
    model = Written(NETWORKS["residual"][0])
    _, report = start(model)
    assert report.mirrored == ("up0/kernel", "up1/kernel")
    assert "no function with an even part" in dict(report.left)["stem/kernel"]
    assert "up0/kernel" in str(report)
    assert [row["weight"] for row in report.rows() if row["mirrored"]] == [
        "up0/kernel",
        "up1/kernel",
    ]


def test_training_ends_the_symmetry():
    """After ten steps no layer's halves are mirror images, and features span as many
    directions as those of plain draws."""
    model, labels = Plain(nn.relu), jax.random.randint(KEY, (32,), 0, 4)
    adam = optax.adam(1e-3)

    @jax.jit
    def step(params, state):
        loss = lambda p: optax.softmax_cross_entropy_with_integer_labels(
            model.apply({"params": p}, x), labels
        ).mean()
        updates, state = adam.update(jax.grad(loss)(params), state)
        return optax.apply_updates(params, updates), state

    def features(params):
        state = adam.init(params)
        for _ in range(10):
            params, state = step(params, state)
        seen = model.apply({"params": params}, x, capture_intermediates=True)[1]
        return params, nn.relu(seen["intermediates"]["Dense_6"]["__call__"][0])

    trained, mirrored = features(start(model)[0])
    kernels = [p["kernel"] for p in trained.values()][:-1]
    assert all(jnp.abs(w[:, ::2] + w[:, 1::2]).max() > 1e-3 for w in kernels)
    plain = features(ei.lsuv(model, params_of(model), x, key=KEY))[1]
    spectrum = lambda y: jnp.linalg.svd(y - y.mean(0), compute_uv=False)
    entropy = lambda s: jnp.exp(-jnp.sum(s / s.sum() * jnp.log(s / s.sum())))
    assert entropy(spectrum(mirrored)) >= entropy(spectrum(plain))


def test_tuned_it_keeps_all_pillars():
    for function in (nn.relu, nn.tanh):
        model, loss = Plain(function), lambda y: jnp.mean(jnp.square(y - 1))
        params, report = start(model, amplification=1.1)
        targets = report.targets()
        given = (model, params, x, loss)
        table = ei.measure(*given, scales=ei.tune(*given, targets=targets))
        assert table.modes() == {"gradients": ("exact", "unit"), "update": ("total",)}
        allclose(table.output_rms[:-1], targets.get("Dense_0", 1.0), rtol=1e-4)


def test_folded_it_is_still_linear():
    """The plain model computes the tuned function, mirrored as it is."""
    model = Plain(nn.relu)
    params, _ = start(model)
    scales = ei.tune(model, params, x, lambda y: jnp.mean(jnp.square(y - 1)))
    folded = ei.fold(model, params, scales, x)
    f, other = function_of(model, folded), x[::-1]
    tuned = jax.jit(ei.scaled(model).apply)
    allclose(f(x), tuned({"params": params, "scales": scales}, x), rtol=1e-4, atol=1e-5)
    allclose(f(x + other), f(x) + f(other), rtol=0, atol=2e-5)


@pytest.mark.parametrize("function", [nn.relu, jnp.tanh])
def test_split_parameters_give_what_one_device_finds(function):
    """Features over one axis of a mesh, the batch over the other; they stay split."""
    model = Plain(function)
    params = params_of(model)
    run = lambda params, x: ei.looks_linear(
        model, params, x, key=KEY, amplification=1.1
    )
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(AUTO, AUTO))
    on = lambda *axes: NamedSharding(mesh, PartitionSpec(*axes))
    columns = lambda p: on(*[None] * (p.ndim - 1), "model")
    split = jax.tree.map(lambda p: jax.device_put(p, columns(p)), params)
    found = run(split, jax.device_put(x, on("data")))
    near = lambda a, b: allclose(a, b, rtol=1e-4, atol=1e-5)
    jax.tree.map(near, found, run(params, x))
    assert all(p.sharding == columns(p) for p in jax.tree.leaves(found))


def test_parameters_of_64_bits():
    """Drawn in 64 bits: linear to their rounding, and not only to that of 32."""
    with jax.enable_x64(True):
        wide = jnp.asarray(x, jnp.float64)
        model = Plain(nn.relu, dtype=jnp.float64)
        params, report = start(model, wide)
        f, other = function_of(model, params), wide[::-1]
        off = float(jnp.abs(f(wide + other) - f(wide) - f(other)).max())
    assert bool(report.in_pairs)
    assert {p.dtype for p in jax.tree.leaves(params)} == {jnp.dtype("float64")}
    assert off < 1e-12


def test_it_is_a_pure_function_of_the_key():
    model = Plain(nn.tanh)
    params = params_of(model)
    run = lambda key: ei.looks_linear(model, params, x, key=key, amplification=1.1)
    first, again, other = run(KEY), run(KEY), run(jax.random.key(5))
    same = lambda a, b: all(map(np.array_equal, jax.tree.leaves(a), jax.tree.leaves(b)))
    assert same(first, again)
    assert not same(first, other)
    jitted = jax.jit(run)(KEY)
    jax.tree.map(lambda a, b: allclose(a, b, rtol=1e-3, atol=1e-5), jitted, first)


def test_what_is_excluded_stays():
    model = Plain(nn.relu)
    before = params_of(model)
    after, report = start(model, exclude="Dense_3")
    jax.tree.map(np.testing.assert_array_equal, after["Dense_3"], before["Dense_3"])
    left = dict(report.left)
    assert left["Dense_3/kernel"] == "it is left out"
    assert left["Dense_2/kernel"] == "the weight that reads it has no pairs"
    assert "Dense_1/kernel" in report.mirrored


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"x": x[:1]}, ValueError, "several, distinct examples"),
        ({"amplification": 0.5}, ValueError, "a number from 1"),
        ({"amplification": float("nan")}, ValueError, "a number from 1"),
        ({"exclude": "*"}, ValueError, "leave no unit"),
    ],
)
def test_errors_say_what_to_pass(options, error, text):
    with pytest.raises(error, match=text):
        start(Plain(nn.relu), **options)


def test_gates_hear_inputs_at_their_size():
    """Inside of a cell in one piece, where no pass brings outputs to a size."""
    model = nn.Sequential([nn.RNN(nn.OptimizedLSTMCell(24)), nn.Dense(4)])
    steps = jax.random.normal(KEY, (16, 5, 6))
    found, _ = start(model, steps)
    kernels = [v for path, v in flatten(found).items() if path[-1] == "kernel"]
    rms = lambda t: float(jnp.sqrt(jnp.mean(jnp.square(t))))
    read = [rms(steps @ v) for v in kernels if v.shape == (6, 24)]
    assert read == pytest.approx([rms(steps)] * 4, rel=1e-3)
    recurrent = [v for v in kernels if v.shape == (24, 24)]
    assert len(recurrent) == 4
    for v in recurrent:
        allclose(v @ v.T, jnp.eye(24), atol=1e-5)
