"""Verbs in modes of JAX that check more, or that tell more by types: the same numbers.

As many rows as are a third of the table, drawn once from all that are not large models
made of the others. Where modes only check, every bit is the same; over a mesh sums are
taken in another order.
"""

import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import einit_jax as ei
from einit_jax.core import is_key
from tests.support.cases import Case, Job, to_one
from tests.support.checks import (
    KEY,
    LARGE,
    batch_of,
    gradients,
    mapped,
    measured,
    objective_of,
    some,
    tuned,
)
from tests.support.models import CASES

DRAWN = random.Random(0).sample(sorted(CASES.keys() - LARGE), len(CASES) // 3)
drawn = some(*dict.fromkeys(["compact_mlp", *DRAWN]), slow={*DRAWN} - {"compact_mlp"})
CHECKS: dict[str, Callable[[], list]] = {
    "promotion": lambda: [
        jax.numpy_rank_promotion("raise"),
        jax.numpy_dtype_promotion("strict"),
    ],
    "nans": lambda: [jax.debug_nans(True)],
    "transfers": lambda: [jax.transfer_guard("disallow")],
}
COLUMNS = ("output_rms", "input_grad_rms", "update_rms", "cosine", "potential",
           "param_grad_rms", "flag", "loss", "total_update_rms")  # fmt: skip
DIFFERENCES = 2.0**-10
"""How exact total updates are, which may be taken from differences over 2^-10."""


@contextmanager
def checking(*modes: str) -> Iterator[None]:
    """Meanwhile JAX checks what the modes are about."""
    with ExitStack() as stack:
        for mode in modes:
            for check in CHECKS[mode]():
                stack.enter_context(check)
        yield


@cache
def job_of(case: Case) -> Job:
    """The job of a row, on one batch that is drawn already."""
    job = case.build()
    return job._replace(input_fn=batch_of(job).inputs)


def numbers(job: Job, gradient_of: Callable = gradients) -> dict[str, Any]:
    """What verbs find: factors, a table, a gradient, and folded parameters."""
    scales = tuned(job)
    table = measured(job, scales=scales)
    found = {"scales": scales, "table": [getattr(table, name) for name in COLUMNS]}
    found["gradient"] = gradient_of(job, scales)
    try:
        found["folded"] = ei.fold(*job[:2], scales, job.input_fn, **job.options)
    except ValueError as error:
        assert "folded" in str(error)
    return found


@cache
def numbers_of(case: Case) -> dict[str, Any]:
    """The numbers without any mode."""
    return numbers(job_of(case))


def passes(job: Job) -> bool:
    """Whether the gradient of the plain model passes in the mode that we are in."""
    collections, batch = job.options.get("collections", {}), batch_of(job)
    objective = objective_of(job)

    def loss(params):
        outputs, _ = job.model.apply(
            {"params": params, **collections},
            *batch.inputs.args,
            rngs=dict(batch.rngs),
            method=job.options.get("method"),
            mutable=[*collections],
            **batch.inputs.kwargs,
        )
        return objective.loss(outputs, batch)

    step = jax.grad(loss, allow_int=True)
    try:
        jax.eval_shape(lambda: mapped(job, lambda: step(job.params)))
    except Exception:
        return False
    return True


def agree(case: Case, found: dict[str, Any], *, in_shard_map: bool = False) -> None:
    """Asserts that numbers are those without a mode, to 1e-5 of the largest.

    In `shard_map` total updates may be unknown, where they are differences.

    Gradients are compared over all parameters together: there are some that are
    nothing but rounding. 16 bits round sums of some ten numbers in another order.
    """
    tolerance = 2.0**-6 if "16" in case.name else 1e-5
    for name, expected in numbers_of(case).items():
        pairs = [
            (np.asarray(a).astype(complex), np.asarray(b).astype(complex))
            for a, b in zip(*map(jax.tree.leaves, (found[name], expected)), strict=True)
            if expected is not None
        ]
        sizes = [np.max(np.abs(b), initial=0, where=np.isfinite(b)) for _, b in pairs]
        if name == "gradient":
            sizes = [max(sizes)] * len(sizes)
        errors = [tolerance * size for size in sizes]
        if name == "table":
            errors[-1] = max(tolerance, DIFFERENCES) * sizes[-1]
            if in_shard_map:
                pairs[-1][1][np.isnan(pairs[-1][0])] = np.nan
        for (a, b), error in zip(pairs, errors, strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=error)


@drawn
def test_checks_change_no_bit(case: Case):
    """Strict promotion of ranks and dtypes, no nan, no transfer that nobody asked."""
    job, fit = job_of(case), []
    for mode in CHECKS:
        with checking(mode):
            fit += [mode] * passes(job)
    assert len(fit) >= 2
    expected = numbers_of(case)
    with checking(*fit):
        found = numbers(job)
    for a, b in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        np.testing.assert_array_equal(a, b)


@drawn
def test_explicit_axes(case: Case):
    """The batch is split over an axis that types tell, where it can be."""
    job, mesh = job_of(case), jax.make_mesh((2,), ("data",))
    whole = lambda x: jax.device_put(x, NamedSharding(mesh, P()))

    def split(x):
        fits = x.ndim and x.shape[0] % 2 == 0 and not is_key(x)
        return jax.device_put(x, NamedSharding(mesh, P("data") if fits else P()))

    options = dict(job.options)
    if "collections" in options:
        options["collections"] = jax.tree.map(whole, options["collections"])
    inputs = jax.tree.map(split, job.input_fn)
    params = jax.tree.map(whole, job.params)
    with jax.set_mesh(mesh):
        job = job._replace(params=params, input_fn=inputs, options=options)
        if not passes(job):
            pytest.skip("the plain model refuses arrays that are split")
        agree(case, numbers(job))


@drawn
def test_inside_of_shard_map(case: Case):
    """Each device has a batch of its own, which here is the same; parameters are one.

    A gradient with respect to what is one for all would be the sum over devices.
    """
    job = job_of(case)
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))

    def own(params, collections, inputs):
        options = dict(job.options)
        if "collections" in options:
            options["collections"] = collections
        inputs = jax.tree.map(lambda x: x[0], inputs)
        return job._replace(params=params, input_fn=inputs, options=options)

    def inside(*arrays):
        if not passes(own(*arrays)):
            return None
        vary = lambda x: jax.lax.pcast(x, "data", to="varying")
        varying = own(jax.tree.map(vary, arrays[0]), *arrays[1:])
        found = numbers(own(*arrays), lambda _, scales: gradients(varying, scales))
        return jax.tree.map(lambda x: x[None], found)

    collections = job.options.get("collections", {})
    twice = jax.tree.map(lambda x: jnp.stack([x, x]), job.input_fn)
    specs = {"in_specs": (P(), P(), P("data")), "out_specs": P("data")}
    run = jax.jit(jax.shard_map(inside, mesh=mesh, check_vma=True, **specs))
    found = run(job.params, collections, twice)
    if found is None:
        pytest.skip("the plain model refuses arrays that vary")
    for i in range(2):
        agree(case, jax.tree.map(lambda x, i=i: x[i], found), in_shard_map=True)


def leaves_of(*trees: Any) -> list[list]:
    """The leaves of each tree; nan counts as a number like any other."""
    plain = lambda x: np.nan_to_num(np.asarray(x), nan=-1)
    return [[plain(x) for x in jax.tree.leaves(tree)] for tree in trees]


def watched(job: Job) -> Any:
    """What activation statistics tell of two steps."""
    stats = ei.activation_stats(job.model)
    state = stats.init({"params": job.params}, job.input_fn)

    def loss(params, taps):
        y = stats.apply({"params": params, "taps": taps}, job.input_fn)
        return job.loss_fn(y)

    step = jax.jit(jax.grad(loss, 1))
    for _ in range(2):
        seen = step(job.params, state.taps)
        state = stats.update(state, seen)
    history = stats.value(state)
    return history.activations, history.gradients


def checked(job: Job) -> Any:
    """The sizes that a coordinate check sees."""
    model = lambda width: ei.HyperCubes(width, 0)
    draw = lambda key: job.input_fn[:, None]
    return ei.coordinate_check(model, (2, 4), draw, job.loss_fn, steps=1).sizes


QUICK = ("lsuv", "activation_stats")
VERBS: dict[str, Callable[[Job], Any]] = {
    "lsuv": lambda job: ei.lsuv(*job[:3]),
    "looks_linear": lambda job: ei.looks_linear(*job[:3], amplification=1.0),
    "distinct_targets": lambda job: ei.distinct_targets(*job[:3], amplification=1.0),
    "autoinit": lambda job: ei.autoinit(*job[:3]),
    "initialize": lambda job: ei.initialize(job.params, "pytorch", KEY),
    "activation_stats": watched,
    "optimizer": lambda job: ei.tune(*job[:4], optimizer=optax.adam(1.0)),
    "gradinit": lambda job: ei.gradinit(*job[:4], steps=2),
    "metainit": lambda job: ei.metainit(*job[:4], steps=2),
    "coordinate_check": checked,
}


@pytest.mark.parametrize(
    "verb",
    [
        pytest.param(verb, marks=() if verb in QUICK else pytest.mark.slow)
        for verb in VERBS
    ],
)
def test_other_verbs(verb: str):
    """The same bits where a mode only checks, and to 1e-5 on explicit axes."""
    model = nn.Sequential([nn.Dense(8), jnp.tanh, nn.Dense(4)])
    x = jax.random.normal(KEY, (8, 6))
    job = Job(model, model.init(KEY, x)["params"], x, to_one)
    run = VERBS[verb]
    expected = run(job)
    for mode in CHECKS:
        with checking(mode):
            found = run(job)
        assert all(map(np.array_equal, *leaves_of(found, expected))), mode
    mesh = jax.make_mesh((2,), ("data",))
    with jax.set_mesh(mesh):
        put = lambda x, *axes: jax.device_put(x, NamedSharding(mesh, P(*axes)))
        params = jax.tree.map(put, job.params)
        found = run(job._replace(params=params, input_fn=put(x, "data")))
    for a, b in zip(*leaves_of(found, expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
