"""Plain parameters out: the same function, the same first update, or a refusal."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import einit_jax as ei
from tests.support.cases import Case
from tests.support.checks import applied, refuses, scales_of, some, tuned
from tests.support.models import CASES


def folded(job, scales, **keywords):
    return ei.fold(*job[:2], scales, job.input_fn, **job.options, **keywords)


def outputs(job, model, **variables) -> np.ndarray:
    """All floating outputs of one call, one after the other."""
    leaves = jax.tree.leaves(applied(job, model, variables))
    floats = [x for x in leaves if jnp.issubdtype(x.dtype, jnp.inexact)]
    return np.concatenate([np.ravel(x.astype(jnp.complex64)) for x in floats])


@some("scan_axis_1", "nn_jit_cached", "used_twice", "batch_norm_axis_name", "unit_rng",
      "complex", "bfloat16", "boxed", "integer_parameter", "named_tuple")  # fmt: skip
def test_the_plain_model_computes_the_tuned_function(case: Case):
    """To rounding; with the parameters as they were it does not."""
    job = case.build()
    scales = scales_of(case)
    new = folded(job, scales)
    assert jax.tree.structure(new) == jax.tree.structure(job.params)
    kind = lambda x: (x.shape, x.dtype)
    assert jax.tree.map(kind, new) == jax.tree.map(kind, job.params)
    wanted = outputs(job, ei.scaled(job.model), params=job.params, scales=scales)
    size = np.sqrt(np.mean(np.abs(wanted) ** 2))
    off = lambda params: np.abs(outputs(job, job.model, params=params) - wanted).max()
    assert off(new) < (0.1 if case.name == "bfloat16" else 1e-4) * size
    assert off(job.params) > 0.1 * size


@some("two_outputs", "custom_vjp", "weight_norm", "spectral_norm", "tied_lm")
def test_what_cannot_be_folded_is_named(case: Case):
    """And once those units are left out, the rest folds."""
    job = case.build()
    with refuses(ValueError, match="exclude=") as error:
        folded(job, scales_of(case))
    guilty = [name for name in case.units if name in str(error.value)]
    assert guilty
    scales = tuned(job, exclude=guilty)
    wanted = outputs(job, ei.scaled(job.model), params=job.params, scales=scales)
    found = outputs(job, job.model, params=folded(job, scales))
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)


def test_units_that_the_batch_does_not_reach():
    """Nothing shows whether they are homogeneous; a factor of 1 needs no showing."""
    job = CASES["cond"].build()
    scales = scales_of(CASES["cond"])
    folded(job, scales)
    doubled = jax.tree.map(lambda s: 2 * s, scales)
    with refuses(ValueError, match="does not reach") as error:
        folded(job, doubled)
    assert any(name in str(error.value) for name in CASES["cond"].idle)


class Hidden(nn.Module):
    """Parameters are squared on their way to the unit, whatever rides with them."""

    @nn.compact
    def __call__(self, x):
        square = lambda tree: jax.tree.map(lambda t: t * jnp.abs(t), tree)
        dense = nn.map_variables(
            nn.Dense, "params", square, init=self.is_initializing()
        )
        return dense(4, name="inner")(x)


def test_what_no_unit_can_know_is_seen_in_the_outputs():
    x = jax.random.normal(jax.random.key(1), (8, 3))
    model = Hidden()
    params = model.init(jax.random.key(0), x)["params"]
    scales = ei.scaled(model).init(jax.random.key(0), x)["scales"]
    pick = lambda path, s: 2 * s if path[-1].key == "output" else s
    with refuses(ValueError, match="fold"):
        ei.fold(model, params, jax.tree.map_with_path(pick, scales), x)


class Faint(nn.Module):
    """Parameters are kept below a bound, in a layer that outputs hardly depend on."""

    bound: float

    @nn.compact
    def __call__(self, x):
        clip = lambda tree: jax.tree.map(
            lambda t: jnp.clip(t, -self.bound, self.bound), tree
        )
        clipped = nn.map_variables(
            nn.Dense, "params", clip, init=self.is_initializing()
        )
        return nn.Dense(4, name="loud")(x) + 1e-4 * clipped(4, name="faint")(x)


@pytest.mark.parametrize("reaches", [True, False])
def test_what_leaves_parameters_as_they_are_but_not_the_folded_ones(reaches):
    """Seen at the unit: the outputs are within rounding in the large."""
    x = jax.random.normal(jax.random.key(1), (8, 3))
    bound = 2.0  # kernels are below 2 / sqrt(3), and the factor is 4
    model = Faint(bound if reaches else 100 * bound)
    params = model.init(jax.random.key(0), x)["params"]
    assert max(jnp.max(jnp.abs(p)) for p in jax.tree.leaves(params)) < bound
    scales = ei.scaled(model).init(jax.random.key(0), x)["scales"]
    scales["faint"]["output"] = jnp.float32(4)
    if reaches:
        with refuses(ValueError, match="hold for faint .*, or something transforms"):
            ei.fold(model, params, scales, x)
    else:
        new = ei.fold(model, params, scales, x)
        wanted = ei.scaled(model).apply({"params": params, "scales": scales}, x)
        found = model.apply({"params": new}, x)
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["compact_mlp", "setup_list"])
@pytest.mark.parametrize("rule", [optax.sgd, optax.adam])
def test_the_first_update_is_the_same(name, rule):
    """Of the outputs, to 1e-3, in a chain and around skips; not by other factors."""
    job, unit_step = CASES[name].build(), rule(1.0)
    x = job.input_fn(jax.random.key(0))
    loss_of = lambda y: job.loss_fn(y, **key) if key else job.loss_fn(y)
    key = (
        {"key": jax.random.key(3)} if "key" in job.loss_fn.__code__.co_varnames else {}
    )
    case = (job.model, job.params, x, loss_of)
    scales = ei.tune(*case, optimizer=unit_step)
    new = ei.fold(job.model, job.params, scales, x)
    steps = ei.tune(job.model, new, x, loss_of, gradients="plain", optimizer=unit_step)

    def moved(apply, params, *last) -> np.ndarray:
        tx = optax.chain(rule(1e-2), *last)
        gradient = jax.grad(lambda p: loss_of(apply(p)))(params)
        change, _ = tx.update(gradient, tx.init(params), params)
        return np.asarray(apply(optax.apply_updates(params, change)) - apply(params))

    plain = lambda params: job.model.apply({"params": params}, x)
    scaled = lambda params: ei.scaled(job.model).apply(
        {"params": params, "scales": scales}, x
    )
    wanted = moved(scaled, job.params, ei.scale_updates(scales))
    size = np.abs(wanted).max()
    close = partial(np.testing.assert_allclose, desired=wanted, atol=2e-3 * size)
    close(moved(plain, new, ei.scale_updates(steps)))
    for others in ([], [ei.scale_updates(scales)]):
        with pytest.raises(AssertionError):
            close(moved(plain, new, *others))


class Noisy(nn.Module):
    """A unit with dropout that it has set up."""

    def setup(self):
        self.drop = nn.Dropout(0.5, deterministic=False)
        self.kernel = self.param("kernel", nn.initializers.normal(1.0), (8, 8))

    def __call__(self, x):
        return self.drop(self.drop(x) @ self.kernel)


class Noise(nn.Module):
    """One after the other."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(4)(Noisy()(Noisy()(x)))


def test_dropout_in_a_unit_is_no_lack_of_homogeneity():
    """Both runs draw alike."""
    x = jax.random.normal(jax.random.key(0), (16, 8))
    keys = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
    params = Noise().init(keys, x)["params"]
    scales = ei.tune(Noise(), params, x, lambda y: jnp.mean(y**2), rngs="dropout")
    new = ei.fold(Noise(), params, scales, x, rngs="dropout")
    wanted = scales["Noisy_0"]["output"] * params["Noisy_0"]["kernel"]
    np.testing.assert_allclose(new["Noisy_0"]["kernel"], wanted, rtol=1e-6)
    assert abs(scales["Noisy_0"]["output"] - 1) > 0.1


def test_fold_under_jit_and_vmap():
    """As without; over seeds too."""
    job = CASES["scan_layers"].build()
    scales = scales_of(CASES["scan_layers"])
    x = job.input_fn(jax.random.key(0))
    run = lambda params: ei.fold(job.model, params, scales, x)
    eager = run(job.params)
    close = partial(np.testing.assert_allclose, rtol=1e-6)
    jax.tree.map(close, jax.jit(run)(job.params), eager)
    both = jax.vmap(run)(jax.tree.map(lambda p: jnp.stack([p, -p]), job.params))
    jax.tree.map(lambda b, e: close(b[1], -e), both, eager)
