"""What the tests draw: a measurement before and after, and a history."""

import jax
import jax.numpy as jnp
import pytest

import einit_jax as ei
from tests.support.reported import Net, X, measurement_of


@pytest.fixture(scope="session")
def before() -> ei.Measurement:
    """As it was initialized."""
    return measurement_of(Net())


@pytest.fixture(scope="session")
def after() -> ei.Measurement:
    """Tuned."""
    return measurement_of(Net(), "tuned")


@pytest.fixture(scope="session")
def history() -> ei.History:
    """Three steps, watched."""
    model, stats = Net(), ei.activation_stats(Net(), slots=4)
    params = model.init(jax.random.key(0), X)["params"]
    state = stats.init({"params": params}, X)
    loss = lambda t: jnp.sum(stats.apply({"params": params, "taps": t}, X) ** 2)
    for _ in range(3):
        state = stats.update(state, jax.grad(loss)(state.taps))
    return stats.value(state)
