"""Factors of an optimizer's own steps."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import einit_jax as ei
from einit_jax.core import flatten, insert, unboxed
from einit_jax.units import from_tree
from tests.support.cases import Case, Job
from tests.support.checks import (
    gradients,
    measured,
    scales_of,
    some,
    tuned,
    unit_outputs,
)
from tests.support.optimizers import ADAM, adam_scales, scanned

OPTIMIZERS = {
    "sgd": optax.sgd(1.0),
    "momentum": optax.sgd(1.0, 0.9, nesterov=True),
    "adam": ADAM,
    "adamw": optax.adamw(1.0, weight_decay=0.1),
    "lion": optax.lion(1.0),
    "muon": optax.contrib.muon(1.0),
    "lamb": optax.lamb(1.0),
    "adafactor": optax.adafactor(1.0),
    "clipped": optax.chain(optax.clip_by_global_norm(1.0), optax.rmsprop(1.0)),
}


def holds(job: Job, optimizer, scales) -> tuple[str, ...]:
    """The rules of updates that hold for an optimizer's own steps."""
    return measured(job, scales=scales, optimizer=optimizer).modes()["update"]


@some("scan_axis_1", "nn_jit_cached", "used_twice", "tied_lm", "adaln_zero", "complex",
      "bfloat16", "integer_parameter", "layer_scale",
      slow=["nn_jit_cached", "complex", "bfloat16"])  # fmt: skip
def test_updates_of_adam_are_one(case: Case):
    """All alike, and the largest change 1; not with the factors left out."""
    job = case.build()
    scales = scales_of(case, optimizer=ADAM)
    leaves = np.concatenate([np.ravel(s) for s in jax.tree.leaves(scales)])
    assert np.all(np.isfinite(leaves) & (leaves > 0))
    assert "total" in holds(job, ADAM, scales)
    without = set_update(scales, jnp.ones_like)
    assert not holds(job, ADAM, without)


@pytest.mark.parametrize(
    "name",
    [
        "sgd", "lion", "muon", "clipped",
        *(pytest.param(name, marks=pytest.mark.slow)
          for name in ("momentum", "adamw", "lamb", "adafactor")),
    ],
)  # fmt: skip
def test_updates_of_any_optimizer_are_one(name):
    """Where the optimizer looks at parameters, norms or whole matrices too."""
    optimizer = OPTIMIZERS[name]
    scales = tuned(scanned(), optimizer=optimizer)
    assert "total" in holds(scanned(), optimizer, scales)
    if name in ("sgd", "momentum"):  # whose first step is the gradient's already
        for own in from_tree(scales, scanned().params).values():
            size = own["update"] / scales["head"]["update"]
            np.testing.assert_allclose(size, 1, rtol=1e-4)


def test_rules_of_updates():
    """Each unit by itself; with gradients as they are; and SGD's own rule as before."""
    assert "local" in holds(
        scanned(), ADAM, tuned(scanned(), optimizer=ADAM, update="local")
    )
    plain = tuned(scanned(), optimizer=ADAM, gradients="plain")
    assert "total" in holds(scanned(), ADAM, plain)
    for own in from_tree(plain, scanned().params).values():
        np.testing.assert_array_equal(own["input_grad"], 1)
        np.testing.assert_array_equal(own["output_grad"], 1)
    assert holds(scanned(), None, adam_scales()) == (
        "local",
    )  # the common factor is in `update`
    assert not holds(scanned(), ADAM, tuned(scanned()))


def set_update(scales: dict, change) -> dict:
    """The scales with their factors `update` changed."""
    pick = lambda path, s: change(s) if path[-1].key == "update" else s
    return jax.tree.map_with_path(pick, scales)


@some("compact_mlp", "swiglu", "masked_attention", "tensors")
def test_a_step_of_adam_moves_outputs_as_much_as_its_rate(case: Case):
    """At 1e-3 the largest change of a unit's output is 1e-3 within 5%, for real.

    By bare Adam, whose step is 1 in each parameter, it is several times as much.
    """
    job, moved = case.build(), {}
    scales = scales_of(case, optimizer=ADAM)
    (gradient,) = gradients(job, scales)
    params = flatten(unboxed(job.params))
    before = unit_outputs(job, job.params, scales, case.units)
    for name, last in {
        "ours": ei.scale_updates(scales),
        "bare": optax.identity(),
    }.items():
        tx = optax.chain(optax.adam(1e-3), last)
        step, _ = tx.update(insert({}, gradient), tx.init(job.params), job.params)
        stepped = insert({}, {p: v + flatten(step)[p] for p, v in params.items()})
        after = unit_outputs(job, stepped, scales, case.units)
        sizes = [jnp.sqrt(jnp.mean((after[k] - before[k]) ** 2)) for k in before]
        moved[name] = float(max(sizes))
    np.testing.assert_allclose(moved["ours"], 1e-3, rtol=0.05)
    assert moved["bare"] > 2e-3


@pytest.mark.parametrize("gradients", ["exact", "plain"])
def test_tune_with_an_optimizer_under_transformations(gradients):
    """`jit`, `vmap`, draws and a choice of units."""
    job, run = scanned(), partial(tuned, optimizer=ADAM, gradients=gradients)
    close = partial(np.testing.assert_allclose, rtol=1e-4)
    eager = run(job)
    with_params = lambda params: run(job._replace(params=params))
    jax.tree.map(close, jax.jit(with_params)(job.params), eager)
    many = jax.tree.map(lambda p: jnp.stack([p, 0.7 * p]), job.params)
    both = jax.vmap(with_params)(many)
    jax.tree.map(lambda s, one: close(s[0], one), both, eager)
    assert jax.tree.structure(run(job, draws=2)) == jax.tree.structure(eager)
    left = run(job, exclude="head")["head"]
    assert set(map(float, left.values())) == {1.0}


def stepped(state: ei.TrainState) -> ei.TrainState:
    """One step of training."""
    x = scanned().input_fn(jax.random.key(5))

    def loss(params):
        y = state.apply_fn({"params": params, "scales": state.scales}, x)
        return scanned().loss_fn(y, key=jax.random.key(6))

    return state.apply_gradients(grads=jax.grad(loss)(state.params))
