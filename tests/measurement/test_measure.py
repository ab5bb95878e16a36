"""Measurements: over draws, and under `jit`."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import einit_jax as ei
from tests.support.cases import Case, to_one, vectors
from tests.support.checks import KEY, measured, params_of, some, untuned_of
from tests.support.models.dense import CompactMlp
from tests.support.verbs import compared

X = jax.random.normal(KEY, (16, 8))


def test_measure_reports_the_spread_over_draws():
    """Deviations are those of the logarithm over draws; 0 of a single batch."""
    drawn = []

    def draw(key):
        drawn.append(vectors(key))
        return drawn[-1]

    run = partial(ei.measure, CompactMlp(), params_of(CompactMlp()), loss_fn=to_one)
    table = run(draw, draws=4)
    single = [run(batch) for batch in drawn]
    assert (table.draws, single[0].draws) == (4, 1)
    for name in ("output", "input_grad", "update"):
        logs = np.log([getattr(one, f"{name}_rms") for one in single])
        deviation = getattr(table, f"{name}_deviation")
        assert (deviation > 0).all()
        np.testing.assert_allclose(deviation, logs.std(0), rtol=1e-3)
        mean = np.exp(logs.mean(0))
        np.testing.assert_allclose(getattr(table, f"{name}_rms"), mean, rtol=1e-5)
        assert not np.any(getattr(single[0], f"{name}_deviation"))


@some("compact_mlp", "tied_lm", "scan_layers", slow=["tied_lm"])
def test_measure_under_jit(case: Case):
    """A measurement is a pytree: it leaves a jitted function as it is."""
    job = case.build()
    inside = jax.jit(lambda params: measured(job._replace(params=params)))(job.params)
    outside = untuned_of(case)
    np.testing.assert_allclose(inside.output_rms, outside.output_rms, rtol=1e-5)
    assert inside.rows_of == outside.rows_of
    assert str(outside) in str(inside) or len(str(inside)) > 0


def test_a_pillar_that_no_unit_has_is_left_out():
    """A table alone reads no floating input; nothing warns (warnings are errors)."""
    tokens = lambda key: jax.random.randint(key, (16,), 0, 10)
    model = nn.Sequential([nn.Embed(10, 4)])
    params = model.init(KEY, tokens(KEY))["params"]
    run = partial(ei.measure, model, params, tokens, to_one)
    table = run(draws=2)
    assert set(table.worst()) == {"output_rms", "update_rms", "total_update_rms"}
    (note,) = (line for line in table.notes() if line.startswith("largest spread"))
    assert "output" in note and "gradient" not in note
    dense = ei.measure(CompactMlp(), params_of(CompactMlp()), vectors, to_one, draws=2)
    assert "; gradient 0" in "\n".join(dense.notes())


def test_what_is_compared_may_lack_a_pillar():
    tokens = jnp.arange(16) % 10
    params = nn.Embed(10, 4).init(KEY, tokens)["params"]
    table = compared(nn.Embed(10, 4), params, tokens, to_one)
    (row,) = table.rows()
    assert np.isnan(row["gradients"]) and np.isfinite(row["activations"])
    assert "as it is" in str(table)
