"""Carried gradients are true ones, and updates add up to 1."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

import einit_jax as ei
from einit_jax.core import flatten, inner_axes, insert, is_float, is_under, unboxed
from einit_jax.graph import Regions
from einit_jax.units import from_tree
from tests.support.cases import Case, Job
from tests.support.checks import (
    allclose,
    forward_only,
    gradients,
    measured,
    scales_of,
    some,
    third,
    tuned,
    unit_outputs,
    untuned_of,
)
from tests.support.models import CASES

# Models that compute in fewer than 64 bits whatever their parameters are: by their
# dtype, or by an initial carry that Flax's cells make in float32.
NARROW = {"bfloat16", "float16", "complex", "rnn_lstm", "rnn_gru", "rnn_optimized_lstm",
          "cell_beside_rnn", "cell_passed_in", "seq2seq", "seq2seq_sampled",
          "time_scan"}  # fmt: skip


def deviation(job: Job, scales: dict) -> tuple[float, str]:
    """The largest |g/|g| - t/|t|| over parameter tensors and layers, and its path.

    A tensor whose gradient is nothing beside that of the others of its unit (the bias
    of an attention's keys, which softmax ignores) is compared on their level.
    """
    carried, true = gradients(job, scales, forward_only(scales))
    lifts = {
        path: tuple(n if n > 1 else 0 for n in np.shape(own["output"]))
        for (path, _), own in from_tree(scales, unboxed(job.params)).items()
    }
    worst = (0.0, "")
    for path in true:
        unit = next((u for u in lifts if is_under(path, u)), None)
        kin = [p for p in true if unit is not None and is_under(p, unit)] or [path]
        g, t = (layers(x[path], lifts.get(unit, ())) for x in (carried, true))
        floor = max(np.linalg.norm(layers(true[p], ()).ravel()) for p in kin)
        sizes = np.linalg.norm(g, axis=1), np.linalg.norm(t, axis=1)
        live = (sizes[1] > 1e-4 * floor) & (sizes[1] > 0)
        assert np.all(sizes[0][live] > 0), path
        g, t = (x[live] / s[live, None] for x, s in zip((g, t), sizes, strict=True))
        far = np.linalg.norm(g - t, axis=1).max(initial=0)
        worst = max(worst, (float(far), "/".join(path)))
    return worst


def layers(x: jax.Array, lift: tuple[int, ...]) -> np.ndarray:
    """The array as (layers, elements), in double precision."""
    inner = inner_axes(x.shape, lift)
    first = [i for i in range(x.ndim) if i not in inner]
    wide = np.asarray(x).astype(complex if jnp.iscomplexobj(x) else float)
    count = int(np.prod([x.shape[i] for i in first]))
    return np.moveaxis(wide, first, range(len(first))).reshape(count, -1)


def widened(job: Job) -> Job:
    """The same in 64 bits."""
    wide = lambda p: p.astype(jnp.result_type(p, jnp.float64)) if is_float(p) else p
    return job._replace(params=jax.tree.map(wide, job.params))


@third(2)
def test_directions_are_those_of_plain_gradients(case: Case):
    """To 1e-9 in 64 bits; where a model computes in fewer, cosine above 0.9999."""
    job = case.build()
    if case.name in NARROW:
        far, path = deviation(job, scales_of(case))
        assert 1 - far**2 / 2 > 0.9999, path
        return
    with jax.enable_x64(True):
        job = widened(job)
        far, path = deviation(job, tuned(job))
        assert far < 1e-9, path


@pytest.mark.parametrize(
    "keywords",
    [{"exclude": "*/down"}, {"include": "blocks_0/*"}, {"draws": 3}],
    ids=str,
)
def test_directions_survive_choices(keywords):
    """Units left out tie what they touch; averages over batches are potentials too."""
    job = CASES["setup_list"].build()
    far, path = deviation(job, tuned(job, **keywords))
    assert 1 - far**2 / 2 > 0.9999, path


@some("setup_list", "masked_attention", "remat_scan", "preact_resnet")
def test_unit_rule_turns_gradients(case: Case):
    """The negative: where branches meet, the original's rule fails the same check."""
    job = case.build()
    far, _ = deviation(job, tuned(job, gradients="unit"))
    assert 1 - far**2 / 2 < 0.9999


@some("compact_mlp", "deep_nesting", "embed", "mnist_cnn", "uint8_images", "bfloat16")
def test_a_chain_has_the_scales_of_the_unit_rule(case: Case, monkeypatch):
    """To 1e-5, also when its potentials are solved for all units together."""
    job = case.build()
    alone = tuned(job, gradients="unit")
    rtol = 1e-2 if case.name == "bfloat16" else 1e-5  # 8 bits of mantissa
    allclose(scales_of(case), alone, rtol)
    monkeypatch.setattr(Regions, "is_chain", lambda self: False)
    anew = job._replace(loss_fn=partial(job.loss_fn))  # not what jit has compiled
    allclose(tuned(anew), alone, rtol)


@some("compact_mlp", "setup_list", "swiglu", "masked_attention", "adaln_zero",
      "tensors", "fusion")  # fmt: skip
def test_a_step_of_sgd_moves_outputs_as_much_as_its_rate(case: Case):
    """At 1e-3 the largest change of a unit's output is 1e-3 within 5%, for real.

    Without the common factor it is several times as much.
    """
    job = case.build()
    if case.zeros:  # a step is measured where tuning was: zeros are probed there
        fill = lambda p: p + 0.1 * jax.random.normal(jax.random.key(3), p.shape)
        job = job._replace(params=jax.tree.map(fill, job.params))
    moved = {}
    for update in ("total", "local"):
        scales = tuned(job, update=update)
        (gradient,) = gradients(job, scales)
        rule = optax.sgd(1e-3)
        step, _ = rule.update(gradient, rule.init(gradient))
        params = flatten(unboxed(job.params))
        stepped = insert({}, {p: v + step[p] for p, v in params.items()})
        before = unit_outputs(job, job.params, scales, case.units)
        after = unit_outputs(job, stepped, scales, case.units)
        assert len(before) == len(case.units)
        change = jax.tree.map(jnp.subtract, after, before)
        sizes = jax.tree.map(lambda d: jnp.sqrt(jnp.mean(d**2)), change)
        moved[update] = max(map(float, jax.tree.leaves(sizes)))
    np.testing.assert_allclose(moved["total"], 1e-3, rtol=0.05)
    assert moved["local"] > 1.5e-3


def test_parameters_left_out_are_left_to_their_rate():
    """What they move is reported apart, and named."""
    job = CASES["layer_scale"].build()
    scales = tuned(job, exclude="*/gain")
    table = measured(job, scales=scales)
    assert float(table.loose_update_rms) > 0.1
    head = "not in the total update, and moving outputs by up to"
    (words,) = (line for line in table.notes() if line.startswith(head))
    assert "layers_0/gain (raw parameter without a factor)" in words
    assert float(untuned_of(CASES["setup_list"]).loose_update_rms) == 0


@jax.custom_vjp
def loud(x):
    return jnp.tanh(x)


def _loud_forward(x):
    return jnp.tanh(x), None


loud.defvjp(_loud_forward, lambda _, g: (3000.0 * g,))


class Loud(nn.Module):
    """Gradients that grow beyond float32 within one long branch of a skip."""

    depth: int = 6

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(8, name="stem")(x)
        h = x
        for _ in range(self.depth):
            h = loud(nn.Dense(8)(h))
        return nn.Dense(4, name="head")(x + h)


def test_gradients_beyond_the_range_of_the_dtype():
    """Potentials found in a first pass let a second one read on.

    At true scale the squares of gradients overflow; with the factors none does.
    """
    model, x = Loud(), jax.random.normal(jax.random.key(1), (16, 8))
    params = model.init(jax.random.key(0), x)["params"]
    loss = lambda y: jnp.mean((y - 1.0) ** 2)
    scales = ei.tune(model, params, x, loss)
    table = ei.measure(model, params, x, loss, scales=scales)
    for row in table.rows():
        if row["path"] not in ("head", "Dense_0"):
            np.testing.assert_allclose(row["input_grad_rms"], 1, rtol=0.01)
    mean = [
        r["input_grad_rms"] for r in table.rows() if r["path"] in ("head", "Dense_0")
    ]
    np.testing.assert_allclose(mean[0] * mean[1], 1, rtol=0.01)
    forward = ei.measure(model, params, x, loss, scales=forward_only(scales))
    assert np.max(forward.input_grad_rms) > 1e19
