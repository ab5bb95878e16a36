"""Units are found in the trace of any model of the table."""

import fnmatch

from einit_jax.core import path_str
from tests.support.cases import Case
from tests.support.checks import every, traced


@every(())
def test_units_are_found(case: Case):
    """The trace alone tells units, shared units, loose parameters, blocking zeros."""
    graph = traced(case.build())
    assert {u.name for u in graph.units} == case.units
    assert {u.name for u in graph.units if u.calls > 1} == case.shared
    loose = {path_str(path) for path in graph.raw_parameters}
    unreached = {
        p for p in loose for q in case.unreached if fnmatch.fnmatch(p, q + "*")
    }
    assert loose - unreached == case.loose
    assert {path_str(path) for path in graph.multiplied} >= case.zeros - case.loose
