"""Factors of 1 leave every model of the table as it is."""

import jax
import numpy as np

import einit_jax as ei
from tests.support.cases import Case
from tests.support.checks import applied, ones_of, third


@third(1)
def test_factors_of_one_change_nothing(case: Case):
    """Bit by bit, written collections included."""
    job = case.build()
    plain = applied(job, job.model, {"params": job.params})
    variables = {"params": job.params, "scales": ones_of(case)}
    scaled = applied(job, ei.scaled(job.model), variables)
    assert jax.tree.structure(plain) == jax.tree.structure(scaled)
    jax.tree.map(np.testing.assert_array_equal, plain, scaled)
