"""MetaInit on weights that are too large."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import einit_jax as ei
from einit_jax.core import flatten
from einit_jax.initializers.learned import gradient_quotient
from tests.support.descents import MODEL, PARAMS, draw, loss_fn, loss_of, trained

COMPILED = "/jax/core/compile/backend_compile_duration"


@pytest.fixture(scope="module")
def metainit():
    seen = []
    report = lambda *args: seen.append(args)
    found = ei.metainit(MODEL, PARAMS, draw, loss_fn, progress=report)
    return found, seen


def test_metainit_lowers_the_quotient(metainit):
    """On batches of its own; an independent evaluation, on one that it never saw."""
    found, seen = metainit
    assert seen[-1][2] < 0.1 * seen[0][2]
    fresh = partial(loss_of, x=draw(jax.random.key(77)))
    quotient = jax.jit(lambda params: gradient_quotient(fresh, params, 1e-5))
    assert quotient(found) < 0.1 * quotient(PARAMS)


def test_metainit_makes_it_train(metainit):
    before, after = trained(PARAMS), trained(metainit[0])
    assert not before[-20:].mean() < 1.3  # log 4 = 1.39 is chance
    assert after[-20:].mean() < 0.7


def test_metainit_changes_norms_alone(metainit):
    for path, old in flatten(PARAMS).items():
        new = flatten(metainit[0])[path]
        if path[-1] == "bias":
            assert np.array_equal(old, new)
            continue
        by = jnp.linalg.norm(new) / jnp.linalg.norm(old)
        assert 0.01 <= by < 0.99
        np.testing.assert_allclose(new, by * old, rtol=1e-5)


def test_metainit_tells_how_far_it_is(metainit):
    steps, of, values = zip(*metainit[1], strict=True)
    assert steps[0] == 1 and steps[-1] == 200 and set(of) == {200}
    assert list(steps) == sorted(set(steps)) and len(steps) >= 100
    assert np.isfinite(values).all()


def test_one_program_serves_any_number_of_steps(metainit):
    """And the same key gives the same parameters, another key others."""
    compiled = []
    listen = lambda event, duration, **_: compiled.append(event)
    run = partial(ei.metainit, MODEL, PARAMS, draw, loss_fn)
    first = run(steps=3)
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        second, more = run(steps=3), run(steps=7)
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert COMPILED not in compiled
    assert jax.tree.all(jax.tree.map(np.array_equal, first, second))
    assert not np.array_equal(first["Dense_0"]["kernel"], more["Dense_0"]["kernel"])
