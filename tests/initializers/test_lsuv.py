"""Unit variance against a plain loop over layers, and where a loop has no answer."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import einit_jax as ei
from tests.support.cases import Case
from tests.support.checks import allclose, refuses, some
from tests.support.models import CASES, calls, dense, insides, lifted

KEY = jax.random.key(0)
x = jax.random.normal(jax.random.key(1), (64, 8)) + 0.5
image = jax.random.normal(jax.random.key(2), (16, 8, 8, 3))
pool = partial(nn.avg_pool, window_shape=(2, 2), strides=(2, 2))
flat = lambda y: y.reshape(len(y), -1)
MLP = nn.Sequential([nn.Dense(32), nn.relu, nn.Dense(32), nn.tanh, nn.Dense(8)])
CNN = nn.Sequential(
    [nn.Conv(8, (3, 3)), nn.relu, pool, nn.Conv(8, (3, 3)), nn.relu, flat, nn.Dense(8)]
)
PLAIN = {
    "mlp": (MLP, x, ("layers_0", "layers_2", "layers_4")),
    "cnn": (CNN, image, ("layers_0", "layers_3", "layers_6")),
    "residual": (
        dense.SetupMlp(),
        x,
        ("blocks_0/up", "blocks_0/down", "blocks_1/up", "blocks_1/down", "head"),
    ),
}
RUN = pytest.mark.parametrize(("model", "x", "layers"), PLAIN.values(), ids=PLAIN)


def params_of(model, *inputs):
    return jax.jit(model.init)(KEY, *inputs)["params"]


def runner(model, x):
    """The outputs of all modules, as a function of parameters."""

    @jax.jit
    def run(params):
        variables = {"params": params}
        return model.apply(variables, x, capture_intermediates=True)[1]["intermediates"]

    return run


def at(tree, name):
    """What lies at a path."""
    for part in name.split("/"):
        tree = tree[part]
    return tree


def output(run, params, name):
    return np.asarray(at(run(params), name)["__call__"][0], np.float64)


def mapped(params, name, change):
    """The parameters with the kernel of a layer changed."""
    pick = lambda path, p: (
        change(p) if "/".join(k.key for k in path) == f"{name}/kernel" else p
    )
    return jax.tree.map_with_path(pick, params)


def plain_loop(run, params, layers):
    """Algorithm 1 of the paper: a run of the model for each division."""
    for name in layers:
        for _ in range(10):
            variance = output(run, params, name).var()
            if abs(variance - 1) < 1e-6:
                break
            params = mapped(params, name, lambda w, v=variance: w / v**0.5)
    return params


def unscaled(kernel):
    """The draw that a scaled one came from."""
    return kernel / jnp.linalg.norm(kernel.reshape(-1, kernel.shape[-1]), 2)


@RUN
def test_it_is_what_the_plain_loop_finds(model, x, layers):
    """From the same orthonormal draw, to 1e-4; Flax's own draws are off by 10%."""
    params = params_of(model, x)
    found = ei.lsuv(model, params, x, key=jax.random.key(3))
    start = found
    for name in layers:
        start = mapped(start, name, unscaled)
        matrix = at(start, name)["kernel"].reshape(-1, at(start, name)["bias"].size)
        gram = min(matrix @ matrix.T, matrix.T @ matrix, key=len)
        np.testing.assert_allclose(gram, np.eye(len(gram)), atol=1e-5)
        assert not at(found, name)["bias"].any()
    run = runner(model, x)
    wanted = plain_loop(run, start, layers)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4), found, wanted)
    for name in layers:
        assert output(run, found, name).var() == pytest.approx(1, abs=1e-4)
    assert max(abs(output(run, params, n).var() - 1) for n in layers) > 0.1
    assert max(abs(output(run, start, n).var() - 1) for n in layers) > 0.1


@RUN
def test_channels_are_centred(model, x, layers):
    """To 1e-5 deviations, variance 1 around them; without, they are not."""
    params = params_of(model, x)
    run = runner(model, x)
    centred, plain = (ei.lsuv(model, params, x, center=c) for c in (True, False))
    means = lambda p, n: (y := output(run, p, n)).mean(tuple(range(y.ndim - 1)))
    for name in layers:
        assert np.abs(means(centred, name)).max() < 1e-5
        assert np.abs(means(plain, name)).max() > 0.05
        assert output(run, centred, name).var() == pytest.approx(1, abs=1e-4)


def variances(job, params):
    """Of each row of `measure`, which reads them in another way."""
    table = ei.measure(job.model, params, *job[2:4], **job.options)
    rows = [row for row in table.rows() if row["flag"] != "unreached"]
    return {r["path"]: r["output_rms"] ** 2 * (1 - r["output_mean"] ** 2) for r in rows}


@some("used_twice", "time_scan", "float16")
def test_every_way_to_call_a_layer(case: Case):
    """Shared, recurrent and centred, in 16 bits: within 1% of 1, of the same kinds."""
    job = case.build()
    found = ei.lsuv(*job[:3], center=case.name == "time_scan", **job.options)
    kind = lambda v: (v.shape, v.dtype)
    assert jax.tree.structure(found) == jax.tree.structure(job.params)
    assert jax.tree.map(kind, found) == jax.tree.map(kind, job.params)
    far = lambda params: [abs(v - 1) for v in variances(job, params).values()]
    assert max(far(found)) < 0.01 < 0.1 < max(far(job.params))


def test_stacked_layers_are_centred_one_by_one():
    """Unrolled, by parameters alone: each layer's input is the sum so far."""
    model = CASES["scan_axis_1"].build().model
    found = ei.lsuv(model, params_of(model, x), x, center=True)
    stack, y = found["layers"]["block"], x
    for i in range(3):
        up = y @ stack["up"]["kernel"][:, i] + stack["up"]["bias"][:, i]
        weights, bias = (stack["down"][name][:, i] for name in ("kernel", "bias"))
        down = nn.relu(up) @ weights + bias
        for made in (up, down):
            assert np.abs(made.mean(0)).max() < 1e-4
            assert made.var() == pytest.approx(1, abs=1e-4)
        y = y + down


def test_a_cell_in_one_piece_is_drawn_alone():
    job = CASES["rnn_optimized_lstm"].build()
    found = ei.lsuv(*job[:3])
    for gate in found["rnn"]["cell"].values():
        w = gate["kernel"]
        np.testing.assert_allclose(w @ w.T, np.eye(len(w)), atol=1e-5)
    run = runner(job.model, job.input_fn(jax.random.key(1)))
    assert output(run, found, "head").var() == pytest.approx(1, abs=0.3)


class Deep(nn.Module):
    """Weights that act twice, so that dividing them by the deviation swings."""

    @nn.compact
    def __call__(self, x):
        inner = self.param("inner", nn.initializers.lecun_normal(), (8, 16))
        return nn.relu(x @ inner) @ self.param(
            "outer", nn.initializers.lecun_normal(), (16, 8)
        )


def test_weights_that_act_twice():
    model = nn.Sequential([Deep(), nn.Dense(4)])
    found = ei.lsuv(model, params_of(model, x), 3 * x, tolerance=1e-3)
    run = runner(model, 3 * x)
    for name in ("layers_0", "layers_1"):
        assert output(run, found, name).var() == pytest.approx(1, abs=1e-3)


class Stopped(nn.Module):
    """No gradient reaches the first layer, so no pass sees it."""

    @nn.compact
    def __call__(self, x):
        y = nn.Dense(8, name="first")(x)
        return nn.Dense(4, name="last")(jax.lax.stop_gradient(y))


def test_behind_what_no_gradient_passes():
    found, run = ei.lsuv(Stopped(), params_of(Stopped(), x), x), runner(Stopped(), x)
    kernel = found["first"]["kernel"]
    np.testing.assert_allclose(kernel @ kernel.T, np.eye(8), atol=1e-5)
    assert output(run, found, "last").var() == pytest.approx(1, abs=1e-4)


def test_what_is_there_can_be_kept():
    """Weights and biases times one number; zeros stay, and so does what is left out."""
    params = jax.tree.map(lambda p: p + 0.1, params_of(MLP, x))
    params["layers_4"]["kernel"] *= 0
    options = {"orthogonal": False, "exclude": "layers_0", "target": {"layers_2": 4.0}}
    found = ei.lsuv(MLP, params, x, **options)
    run = runner(MLP, x)
    assert output(run, found, "layers_2").var() == pytest.approx(4, abs=1e-3)
    ratios = jax.tree.map(jnp.divide, found["layers_2"], params["layers_2"])
    assert np.ptp(np.concatenate([r.ravel() for r in ratios.values()])) < 1e-5
    for name in ("layers_0", "layers_4"):
        jax.tree.map(np.testing.assert_array_equal, found[name], params[name])


def test_constant_outputs_have_no_variance():
    """Equal rows, centred, leave rounding alone: the factor stays 1."""
    rows = jnp.tile(x[:1], (7, 1)) / 3
    found = ei.lsuv(MLP, params_of(MLP, x), rows, center=True)
    for own in found.values():
        assert np.linalg.norm(own["kernel"], 2) == pytest.approx(1, abs=1e-5)
    assert np.abs(output(runner(MLP, rows), found, "layers_4")).max() < 1e-5


class Counted(nn.Module):
    depth: int

    @nn.compact
    def __call__(self, x, note):
        jax.debug.callback(note)
        for _ in range(self.depth):
            x = nn.relu(nn.Dense(8)(x))
        return x


def test_two_runs_of_the_model_at_any_depth():
    for depth in (2, 16):
        runs = []
        note = partial(runs.append, 1)
        inputs = ei.Inputs(x, note=note)
        model = Counted(depth)
        params = model.init(KEY, x, lambda: None)["params"]
        ei.lsuv(model, params, inputs)
        jax.effects_barrier()
        assert len(runs) == 2


def test_keys_jit_vmap_and_devices():
    """The same key, the same weights, wherever it runs."""
    model, params = lifted.Layers(), params_of(lifted.Layers(), x)
    draw = lambda key, x=x: ei.lsuv(model, params, x, key=key)
    close = partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6)
    eager = draw(KEY)
    jax.tree.map(np.testing.assert_array_equal, eager, draw(KEY))
    several = jax.jit(jax.vmap(draw))(jax.random.split(KEY, 2))
    first = jax.tree.map(lambda p: p[0], several)
    jax.tree.map(close, first, draw(jax.random.split(KEY, 2)[0]))
    assert not np.allclose(several["head"]["kernel"][0], several["head"]["kernel"][1])
    mesh = Mesh(np.array(jax.devices()), ("data",))
    spec = NamedSharding(mesh, PartitionSpec("data"))
    jax.tree.map(close, eager, draw(KEY, jax.device_put(x, spec)))


@pytest.mark.parametrize("size", [2.0**-100, 2.0**100])
def test_inputs_and_weights_of_any_size(size):
    """Inputs near 1e-30 and 1e30, and all kernels so."""
    model = nn.Sequential([nn.Dense(8, use_bias=False), nn.tanh, dense.Twice()])
    params = params_of(model, x)
    times = lambda by: jax.tree.map(lambda p: np.float32(by) * p, params)
    base = ei.lsuv(model, params, x, orthogonal=False)
    found = ei.lsuv(model, params, np.float32(size) * x, orthogonal=False)
    first, same = found["layers_0"]["kernel"], base["layers_0"]["kernel"]
    np.testing.assert_allclose(first * np.float32(size), same, rtol=2e-5)
    allclose(found["layers_2"], base["layers_2"], rtol=1e-2)
    kept = ei.lsuv(model, times(size), x, orthogonal=False)
    allclose(kept["layers_0"], base["layers_0"], rtol=2e-5)
    allclose(kept["layers_2"], base["layers_2"], rtol=1e-2)


class TiedStream(nn.Module):
    """A residual stream between embeddings that are its head as well; no norm."""

    @nn.compact
    def __call__(self, tokens):
        embed = nn.Embed(32, 64)
        y = embed(tokens)
        for _ in range(8):
            y = y + nn.Dense(64)(nn.relu(nn.Dense(64)(y)))
        return embed.attend(y)


def test_layers_behind_embeddings_that_are_the_head_may_change_much():
    """Lookups become as small as logits need them, and what reads them larger."""
    tokens = jax.random.randint(KEY, (16, 8), 0, 32)
    model, loss = TiedStream(), lambda y: jnp.mean(y**2)
    drawn = ei.lsuv(model, params_of(model, tokens), tokens)
    sizes = ei.measure(model, drawn, tokens, loss).rows()
    sizes = {row["path"]: row["output_rms"] for row in sizes}
    assert sizes.pop("Embed_0") < 0.15 and sizes.pop("Embed_0/attend") > 1
    assert len(sizes) == 16
    np.testing.assert_allclose([*sizes.values()], 1, rtol=0.05)  # means are not 0


class Table(nn.Module):
    @nn.compact
    def __call__(self, x):
        return self.param("table", nn.initializers.normal(), (5,))[x.astype(int)]


NORM = nn.LayerNorm()


@pytest.mark.parametrize(
    ("model", "options", "error", "words"),
    [
        (
            MLP,
            {"target": -1.0},
            ValueError,
            "target -1.0 .* is no number that is positive",
        ),
        (MLP, {"center": "all"}, TypeError, "center is 'all', expected True or False"),
        (MLP, {"orthogonal": "keep"}, TypeError, "expected True or False"),
        (MLP, {"max_sweeps": 0}, ValueError, "max_sweeps is 0"),
        (MLP, {"include": "Dense_0"}, ValueError, "units are: layers_0, layers_2"),
        (MLP, {"input_fn": jnp.ones((2, 3))}, ValueError, "params do not fit"),
        (MLP, {"input_fn": x.at[0].set(jnp.nan)}, FloatingPointError, "'layers_0'"),
        (NORM, {}, ValueError, "no unit among . has weights"),
        (Table(), {}, ValueError, r"'table' has shape \(5,\).*orthogonal=False"),
        (insides.BoundedDense(8), {}, ValueError, "do not follow .*exclude='.'"),
        (calls.NormBeside(), {}, ValueError, "inner .*exclude='inner'"),
    ],
)
def test_what_cannot_be_scaled_is_refused(model, options, error, words):
    given = {"input_fn": x, **options}
    with refuses(error, match=words):
        ei.lsuv(model, params_of(model, x), **given)
