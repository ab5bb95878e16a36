"""Anderson acceleration: roots that substitution misses."""

import jax.numpy as jnp
import numpy as np
import pytest

from einit_jax.core import anderson_init, anderson_step


@pytest.mark.parametrize("slope", [1.0, 30.0])
def test_search_finds_the_root_that_substitution_misses(slope):
    """A miss that all unknowns drive together, `slope` times as fast as each alone."""
    root = jnp.array([0.3, -0.2, 0.1])

    def miss(at):
        return (at - root) + slope * jnp.sum(at - root) * jnp.ones(3)

    search, _ = anderson_step(anderson_init(3), jnp.zeros(3), 1e-3)
    passes = 0
    while float(search.error) > 1e-3 and passes < 32:
        search, _ = anderson_step(search, miss(search.at), 1e-3)
        passes += 1
    assert passes < 20
    np.testing.assert_allclose(search.best, root, atol=2e-3)

    at = jnp.zeros(3)
    for _ in range(passes):
        at = at - miss(at)
    assert slope == 1.0 or float(jnp.max(jnp.abs(at - root))) > 0.1


def test_search_survives_an_overflow():
    """A pass that is not finite sends it back, and it still arrives."""
    search, _ = anderson_step(anderson_init(1), jnp.zeros(1), 1e-3)
    search, better = anderson_step(search, jnp.array([5.0]), 1e-3)
    search, better = anderson_step(search, jnp.array([jnp.inf]), 1e-3)
    assert not better
    assert jnp.all(jnp.isfinite(search.at))
    for _ in range(30):
        search, _ = anderson_step(search, search.at + 5.0, 1e-3)
    np.testing.assert_allclose(search.best, [-5.0], atol=1e-2)
