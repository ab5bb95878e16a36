"""The three pillars, on every model of the table."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import einit_jax as ei
from tests.support.cases import Case, squared_error
from tests.support.checks import (
    KEY,
    LARGE,
    PILLARS,
    by_region,
    every,
    measured,
    off,
    scales_of,
    some,
    table_of,
    tuned,
    untuned_of,
)

TIED_RAW = {"hand_tied": {"last"}}
"""Units that read products with the raw parameters of another one: how large gradients
are there follows from the update rule of that one, to which they belong as well."""


@every(LARGE - {"gpt2"} | {"rnn_lstm"})
def test_tune_brings_every_pillar_to_one(case: Case):
    """On the batch that was measured: 1% where called once, 10% where called often.

    Activations: every unit. Gradients: true ones up to a factor for each parameter, of
    geometric mean 1 in every region but the loss's (so exactly 1 where one unit alone
    reads a region). Updates: all alike, and 1 at most when all move together. The same
    checks fail with factors of 1.
    """
    scales, table = scales_of(case), table_of(case)
    leaves = np.concatenate([np.ravel(x) for x in jax.tree.leaves(scales)])
    assert np.all(np.isfinite(leaves) & (leaves > 0))
    rows = table.rows()
    idle = {row["path"] for row in rows if row["path"].split("[")[0] in case.idle}
    assert {r["path"] for r in rows if r["flag"] == "unreached"} == idle
    live = [row for row in rows if row["path"] not in idle]
    assert {row["flag"] for row in live} == {"ok"}
    tied = TIED_RAW.get(case.name, set())
    several = any(row.calls > 1 for row in table.rows_of)
    for row in live:
        tolerance = 0.1 if row["calls"] > 1 else 0.01
        assert abs(row["output_rms"] - 1) < tolerance, row
    for region, members in by_region(live).items():
        grads = [r["input_grad_rms"] for r in members]
        phis = [r["potential"] for r in members]
        if region == table.loss_region:
            np.testing.assert_allclose(phis, 1, rtol=1e-3)
            continue
        if not tied & {r["path"] for r in members}:
            mean = np.exp(np.mean(np.log(grads)))
            assert abs(mean - 1) < (0.1 if several else 0.01), (region, members)
        np.testing.assert_allclose(phis, phis[0], rtol=0.02)
    assert "exact" in table.modes()["gradients"]
    assert "total" in table.modes()["update"]
    assert table.summary()[0].startswith("OK: ")
    assert set(table.probed_paths()) >= case.zeros - case.loose
    untuned = untuned_of(case)
    assert max(off(untuned).values()) > 0.1
    assert not untuned.modes()["update"]
    assert untuned.summary()[0].startswith("NOT TUNED: ")


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


class WrittenOut(nn.Module):
    """A recurrence over steps that hands on what it returns, in one module."""

    @nn.compact
    def __call__(self, x):
        into = self.param("into", nn.initializers.lecun_normal(), (8, 8))
        on = self.param("on", nn.initializers.orthogonal(), (8, 8))

        def step(h, x):
            h = jnp.tanh(x @ into + h @ on)
            return h, h

        _, every = jax.lax.scan(step, jnp.zeros_like(x[:, 0]), jnp.moveaxis(x, 1, 0))
        return every[-1]


def test_a_recurrence_of_the_users_own_is_a_unit():
    """JAX 0.10.2 cannot differentiate twice what a scan both hands on and returns."""

    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(2)(WrittenOut()(nn.Dense(8)(x)))

    x = jax.random.normal(KEY, (16, 5, 4))
    params = Model().init(KEY, x)["params"]
    scales = ei.tune(Model(), params, x, squared_error)
    table = ei.measure(Model(), params, x, squared_error, scales=scales)
    assert "WrittenOut_0" in {row["path"] for row in table.rows()}
    np.testing.assert_allclose(table.output_rms, 1, rtol=1e-5)
    np.testing.assert_allclose(table.input_grad_rms, 1, rtol=1e-4)
    np.testing.assert_allclose(jnp.max(table.total_update_rms), 1, rtol=1e-4)
