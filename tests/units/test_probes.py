"""Which arrays count as zeros."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from einit_jax.units import _probes, zero_candidates


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (np.zeros((3, 4)), True),
        (np.ones((3, 4)), False),
        (np.stack([np.ones((3, 4)), np.zeros((3, 4))]), True),
        (np.stack([np.ones((3, 4)), np.zeros((3, 4))], 1), True),
        (np.zeros(()), True),
        (np.ones(5), False),
    ],
)
def test_zeros_are_suspected_alike_on_host_and_device(value, found):
    """A layer of zeros among others counts; the device path gives the same answer."""
    assert bool(_probes._cross(np, value)) is found
    assert bool(jax.jit(_probes._cross, static_argnums=0)(jnp, value)) is found
    assert (("w",) in zero_candidates({"w": jnp.asarray(value)})) is found
