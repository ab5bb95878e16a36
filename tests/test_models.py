"""The claims of the package, on every model of the table."""

import fnmatch

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import einit_jax as ei
from einit_jax.core import draw_batches, path_str
from einit_jax.linen import make_objective, trace_model
from tests.models import CASES, Case, Job

PILLARS = ("output_rms", "input_grad_rms", "update_rms")
EVERY = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def some(*names):
    """A parametrization by the named rows of the table."""
    return pytest.mark.parametrize("case", [CASES[n] for n in names], ids=names)


def tuned(job: Job, **keywords):
    return ei.tune(*job[:4], **job.options, **keywords)


def measured(job: Job, **keywords):
    return ei.measure(*job[:4], **job.options, **keywords)


def applied(job: Job, model, variables):
    """The outputs of one call, as `apply` gives them."""
    keywords = dict(job.options)
    collections = keywords.pop("collections", {})
    (batch,) = draw_batches(
        job.input_fn, jax.random.key(0), keywords.get("rngs", ()), None, 1
    )

    def run(_):
        return model.apply(
            {**variables, **collections},
            *batch.inputs.args,
            rngs=dict(batch.rngs),
            method=keywords.get("method"),
            mutable=[*collections],
            **batch.inputs.kwargs,
        )

    axis = keywords.get("axis_name")
    return jax.jit(jax.vmap(run, axis_name=axis, axis_size=1))(jnp.zeros(1))


def off(table: ei.Measurement) -> dict[str, float]:
    """How far each pillar is from 1 at the worst row that was reached."""
    rows = [r for r in table.rows() if r["flag"] != "unreached"]
    return {
        name: max(abs(r[name] - 1) for r in rows if not np.isnan(r[name]))
        for name in PILLARS
    }


@EVERY
def test_units_are_found(case: Case):
    """The trace alone tells units, shared units, loose parameters, blocking zeros."""
    job = case.build()
    keywords = job.options
    task = make_objective(
        job.model, job.loss_fn, keywords.get("method"), keywords.get("axis_name")
    )
    batches = draw_batches(
        job.input_fn, jax.random.key(0), keywords.get("rngs", ()), None, 1
    )
    graph = trace_model(task, job.params, keywords.get("collections", {}), batches[0])
    assert {u.name for u in graph.units} == case.units
    assert {u.name for u in graph.units if u.calls > 1} == case.shared
    loose = {path_str(path) for path in graph.loose}
    unreached = {
        p for p in loose for q in case.unreached if fnmatch.fnmatch(p, q + "*")
    }
    assert loose - unreached == case.loose
    assert {path_str(path) for path in graph.factors} >= case.zeros - case.loose


@EVERY
def test_tune_brings_every_pillar_to_one(case: Case):
    """On the batch that was measured: 1% where called once, 10% where called often.

    Activations: every unit. Gradients: true ones up to a factor for each parameter, of
    geometric mean 1 in every region but the loss's (so exactly 1 where one unit alone
    reads a region). Updates: all alike, and 1 at most when all move together. The same
    checks fail with factors of 1.
    """
    job = case.build()
    scales = tuned(job)
    leaves = np.concatenate([np.ravel(x) for x in jax.tree.leaves(scales)])
    assert np.all(np.isfinite(leaves) & (leaves > 0))
    table = measured(job, scales=scales)
    rows = table.rows()
    idle = {row["path"] for row in rows if row["path"].split("[")[0] in case.idle}
    assert {r["path"] for r in rows if r["flag"] == "unreached"} == idle
    live = [row for row in rows if row["path"] not in idle]
    assert {row["flag"] for row in live} == {"ok"}
    several = any(row.calls > 1 for row in table.rows_of)
    for row in live:
        tolerance = 0.1 if row["calls"] > 1 else 0.01
        assert abs(row["output_rms"] - 1) < tolerance, row
    for region, members in by_region(live).items():
        grads = [r["input_grad_rms"] for r in members]
        phis = [r["potential"] for r in members]
        if region == table.loss_region:
            np.testing.assert_allclose(phis, 1, rtol=1e-3)
        else:
            mean = np.exp(np.mean(np.log(grads)))
            assert abs(mean - 1) < (0.1 if several else 0.01), (region, members)
            np.testing.assert_allclose(phis, phis[0], rtol=0.02)
    assert "exact" in table.modes()["gradients"]
    assert "total" in table.modes()["update"]
    assert set(table.probed_paths()) >= case.zeros - case.loose
    untuned = measured(job, scales=jax.tree.map(jnp.ones_like, scales))
    assert max(off(untuned).values()) > 0.1
    assert not untuned.modes()["update"]


def by_region(rows: list[dict]) -> dict[int, list[dict]]:
    """The rows whose input gradients lie in each region."""
    found: dict[int, list[dict]] = {}
    for row in rows:
        if not np.isnan(row["input_grad_rms"]):
            found.setdefault(row["region"], []).append(row)
    return found


@some(
    "remat_scan", "vmap_ensemble", "switch", "rnn_lstm", "tied_lm", "zero_gain_resnet",
    "float16", "graph_network",
)  # fmt: skip
def test_like_original_brings_every_unit_to_one(case: Case):
    """With the original's rules each unit's own gradient and update are 1."""
    job = case.build()
    table = measured(job, scales=tuned(job, like="original"))
    for row in table.rows():
        if row["path"].split("[")[0] in case.idle:
            continue
        assert row["flag"] == "ok", row
        tolerance = 0.1 if row["calls"] > 1 else 0.01
        for pillar in PILLARS:
            if not np.isnan(row[pillar]):
                assert abs(row[pillar] - 1) < tolerance, (pillar, row)
    assert "unit" in table.modes()["gradients"]


@EVERY
def test_factors_of_one_change_nothing(case: Case):
    """Bit by bit, written collections included."""
    job = case.build()
    scales = jax.tree.map(jnp.ones_like, tuned_paths(job))
    plain = applied(job, job.model, {"params": job.params})
    variables = {"params": job.params, "scales": scales}
    scaled = applied(job, ei.scaled(job.model), variables)
    assert jax.tree.structure(plain) == jax.tree.structure(scaled)
    jax.tree.map(np.testing.assert_array_equal, plain, scaled)


def tuned_paths(job: Job):
    """The structure of the scales, without tuning."""
    return jax.eval_shape(lambda: tuned(job))


@some("compact_mlp", "scan_remat", "used_twice", "vit", "rnn_gru", "bfloat16", "cond")
def test_jit_of_tune_equals_tune(case: Case):
    job = case.build()
    eager = tuned(job)
    jitted = jax.jit(lambda params: tuned(job._replace(params=params)))(job.params)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6)
    jax.tree.map(close, eager, jitted)
    again = tuned(job)
    jax.tree.map(np.testing.assert_array_equal, eager, again)


@some("compact_mlp", "tied_lm", "scan_layers", "adaln_zero")
def test_tune_under_vmap_over_parameters(case: Case):
    """One compiled tune of stacked parameters equals a loop over them."""
    job = case.build()
    many = jax.tree.map(lambda p: jnp.stack([p, 0.5 * p]), job.params)
    stacked = jax.vmap(lambda p: tuned(job._replace(params=p)))(many)
    for i in range(2):
        params = jax.tree.map(lambda p, i=i: p[i], many)
        alone = tuned(job._replace(params=params))
        one = jax.tree.map(lambda s, i=i: s[i], stacked)
        close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3)
        jax.tree.map(close, alone, one)


@some("compact_mlp", "tied_lm", "scan_layers")
def test_measure_under_jit(case: Case):
    """A measurement is a pytree: it leaves a jitted function as it is."""
    job = case.build()
    inside = jax.jit(lambda params: measured(job._replace(params=params)))(job.params)
    outside = measured(job)
    np.testing.assert_allclose(inside.output_rms, outside.output_rms, rtol=1e-5)
    assert inside.rows_of == outside.rows_of
    assert str(outside) in str(inside) or len(str(inside)) > 0
