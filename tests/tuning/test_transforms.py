"""`tune` under `jit` and `vmap`."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import einit_jax as ei
from tests.support.cases import Case, squared_error, vectors
from tests.support.checks import KEY, allclose, params_of, quick, scales_of, some, tuned
from tests.support.models.dense import CompactMlp, Twice
from tests.support.models.lifted import Layers

X = jax.random.normal(KEY, (16, 8))


def tuned_with(model, params, key):
    return ei.tune(model, params, vectors, squared_error, key=key)


@pytest.mark.parametrize(
    "model",
    [
        CompactMlp(),
        pytest.param(Layers(), marks=pytest.mark.slow),
        pytest.param(Twice(), marks=pytest.mark.slow),
    ],
    ids=type,
)
def test_tune_under_jit_is_tune(model):
    """The same factors under an outer jit over params and key."""
    params = params_of(model)
    outer = jax.jit(partial(tuned_with, model))(params, KEY)
    allclose(outer, tuned_with(model, params, KEY), rtol=1e-5)


@pytest.mark.parametrize(
    "verb",
    [ei.tune, lambda *a, **k: ei.measure(*a, **k).update_rms],
    ids=["tune", "measure"],
)
def test_params_may_be_constants_of_an_outer_jit(verb):
    """Nothing of the values is asked while another function is traced."""
    model, params = nn.Dense(4), params_of(nn.Dense(4))
    run = lambda key: verb(model, params, vectors, squared_error, key=key)
    allclose(jax.jit(run)(KEY), run(KEY), rtol=1e-5)


@pytest.mark.parametrize("model", [CompactMlp(), Twice()], ids=type)
def test_tune_under_vmap_is_a_loop(model):
    """Seeds stacked by `vmap` of init are tuned one by one, each with its key."""
    keys = jax.random.split(KEY, 3)
    stack = quick(jax.vmap(lambda key: model.init(key, X)["params"]))(keys)
    together = quick(jax.vmap(partial(tuned_with, model)))(stack, keys)
    for i in range(3):
        at = lambda tree, i=i: jax.tree.map(lambda leaf: leaf[i], tree)
        allclose(at(together), tuned_with(model, at(stack), keys[i]), rtol=1e-5)


@some("compact_mlp", "scan_remat", "used_twice", "vit", "rnn_gru", "bfloat16", "cond",
      slow=["rnn_gru", "cond"])  # fmt: skip
def test_jit_of_tune_equals_tune(case: Case):
    job, eager = case.build(), scales_of(case)
    jitted = jax.jit(lambda params: tuned(job._replace(params=params)))(job.params)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5)
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
