"""`activation_stats` against `measure` on models of the table."""

import flax
import jax
import numpy as np

import einit_jax as ei
from tests.support.cases import Case, Job
from tests.support.checks import (
    applied,
    batch_of,
    mapped,
    measured,
    objective_of,
    some,
    third,
    untuned_of,
)

COMPLEX = {"first", "second"}  # real and imaginary parts are counted as two numbers


def readings(job: Job, **options) -> ei.History:
    """One step's statistics of a row of the table."""
    collections, batch = job.options.get("collections", {}), batch_of(job)
    objective, method = objective_of(job), job.options.get("method")
    call = {"rngs": dict(batch.rngs), "method": method, **batch.inputs.kwargs}
    stats = ei.activation_stats(job.model, sample=None, **options)

    def step():
        start = {"params": job.params, **collections}
        state = stats.init(start, *batch.inputs.args, **call)

        def loss(taps):
            mutable = flax.core.DenyList(("params", "intermediates"))
            variables = {**start, "taps": taps}
            out, _ = stats.apply(variables, *batch.inputs.args, **call, mutable=mutable)
            return objective.loss(out, batch)

        return stats.update(state, jax.grad(loss)(state.taps))

    return stats.value(jax.jit(lambda: mapped(job, step))())


def rms_of_elements(job: Job) -> float:
    """The rms of all that a model returns, which is what its shared head returned."""
    outputs, _ = applied(job, job.model, {"params": job.params})
    elements = np.concatenate([np.ravel(y) for y in jax.tree.leaves(outputs)])
    return float(np.sqrt(np.mean(np.square(elements))))


@third(0)
def test_readings_are_those_of_measure(case: Case):
    """Two ways out of the model, every element read: the same rms in every row."""
    job = case.build()
    table = measured(job, probe=False) if case.zeros else untuned_of(case)
    history = readings(job)
    assert history.paths == tuple(row.path for row in table.rows_of)
    reached = np.array(table.output_rms) > 0
    assert reached.any()
    seen = np.array(history.activations.rms[0])
    two = [case.name == "complex" and path in COMPLEX for path in history.paths]
    want = np.where(two, 2**-0.5, 1.0) * np.array(table.output_rms)
    if case.name == "two_sizes":  # of calls: here elements count, in `measure` calls do
        want[history.paths.index("head")] = rms_of_elements(job)
    np.testing.assert_allclose(seen[reached], want[reached], rtol=2e-3)
    assert np.all(np.nan_to_num(seen[~reached]) == 0)
    shares = np.array(history.activations.histogram[0])[reached].sum(-1)
    np.testing.assert_allclose(shares, 1, rtol=1e-5)


@some("compact_mlp", "scan_layers", "vmap_shared", "gpt2")
def test_inputs_have_the_gradients_of_measure(case: Case):
    table, history = untuned_of(case), readings(case.build(), of="input")
    want = np.array(table.input_grad_rms)
    known = ~np.isnan(want)
    np.testing.assert_allclose(
        np.array(history.gradients.rms[0])[known], want[known], rtol=2e-3
    )
