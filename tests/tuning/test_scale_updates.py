"""`scale_updates`, wherever optax takes it."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import einit_jax as ei
from einit_jax.core import flatten, unboxed
from einit_jax.units import from_tree, raw_from_tree
from tests.support.cases import Case
from tests.support.checks import allclose, measured, refuses, scales_of, some, tuned
from tests.support.optimizers import (
    ADAM,
    adam_scales,
    by_hand,
    first_update,
    scanned,
    some_gradient,
)


def labels(params):
    return {"head": "left", "layers": "scaled"} if "head" in params else params


def test_scale_updates_multiplies_each_layer():
    allclose(first_update(ei.scale_updates(adam_scales())), by_hand(some_gradient()))
    with pytest.raises(AssertionError):
        allclose(first_update(optax.identity()), by_hand(some_gradient()))


def test_scale_updates_wherever_optax_takes_it():
    """In each of its wrappers, and compiled."""
    ours, adam = ei.scale_updates(adam_scales()), optax.adam(0.1)
    steps = first_update(adam)
    wanted = by_hand(steps)
    allclose(first_update(optax.chain(adam, ours)), wanted)
    allclose(jax.jit(partial(first_update, optax.chain(adam, ours)))(), wanted)
    injected = optax.inject_hyperparams(
        lambda rate: optax.chain(optax.adam(rate), ei.scale_updates(adam_scales()))
    )
    allclose(first_update(injected(rate=0.1)), wanted)
    schedule = optax.chain(optax.adam(optax.constant_schedule(0.1)), ours)
    allclose(first_update(schedule), wanted)
    half = {"head": steps["head"], "layers": wanted["layers"]}
    for mask in (
        {"head": False, "layers": True},
        jax.tree.map_with_path(lambda path, _: path[0].key != "head", scanned().params),
    ):
        allclose(first_update(optax.chain(adam, optax.masked(ours, mask))), half)
    parts = {"left": adam, "scaled": optax.chain(adam, ours)}
    allclose(first_update(optax.multi_transform(parts, labels)), half)
    every = optax.MultiSteps(optax.chain(adam, ours), 2)
    state = every.init(scanned().params)
    still, state = every.update(some_gradient(), state, scanned().params)
    assert max(float(jnp.abs(x).max()) for x in jax.tree.leaves(still)) == 0
    allclose(
        every.update(some_gradient(), state, scanned().params)[0], wanted, rtol=1e-5
    )


@some("tied_lm", "boxed", "frozen_dict", "layer_scale", "scan_axis_1", "bfloat16",
      "method_encode")  # fmt: skip
def test_scale_updates_of_every_kind_of_tree(case: Case):
    """Each array gets the factor of its unit, or its own, in its own dtype; where the
    model does not read it, 1."""
    job = case.build()
    scales = scales_of(case, optimizer=ADAM)
    ones = jax.tree.map(jnp.ones_like, job.params)
    found = first_update(ei.scale_updates(scales), ones, job.params)
    dtype = lambda x: x.dtype
    assert jax.tree.structure(found) == jax.tree.structure(job.params)
    assert jax.tree.map(dtype, found) == jax.tree.map(dtype, ones)
    factors = {
        p: own["update"] for (p, _), own in from_tree(scales, unboxed(ones)).items()
    }
    raw = raw_from_tree(scales, unboxed(ones))
    assert {"/".join(path) for path in raw} == case.loose
    factors |= {path: own["update"] for path, own in raw.items()}
    for path, value in flatten(unboxed(found)).items():
        owner = next((p for p in factors if path[: len(p)] == p), None)
        wanted = jnp.ones(()) if owner is None else factors[owner]
        below = any("/".join(path).startswith(p) for p in case.unreached)
        assert (owner is None) == below
        rtol = 1e-2 if value.dtype == jnp.bfloat16 else 1e-6
        seen, wanted = np.unique(np.float32(value)), np.unique(wanted)
        np.testing.assert_allclose(seen, wanted, rtol=rtol)


def untuned():
    return ei.scale_updates(tuned(scanned()))


def other():
    return first_update(
        ei.scale_updates({**adam_scales(), "body": adam_scales()["head"]})
    )


def variables():
    return first_update(
        ei.scale_updates(adam_scales()), some_gradient(), {"params": scanned().params}
    )


def flat():
    return first_update(optax.flatten(ei.scale_updates(adam_scales())))


def mixed():
    return measured(
        scanned(), scales={**adam_scales(), "head": tuned(scanned())["head"]}
    )


def tuned_with(**options):
    return lambda: tuned(scanned(), **options)


WARM_UP = optax.adam(optax.linear_schedule(0, 1, 9))
NOT_FINITE = optax.scale(float("nan"))
BAD = {
    "untuned": (untuned, ValueError, ["'head'", "optimizer="]),
    "none": (lambda: ei.scale_updates(None), TypeError, ["NoneType"]),
    "loose": (
        lambda: ei.scale_updates(adam_scales(), loose=jnp.ones(2)),
        TypeError,
        ["loose"],
    ),
    "empty": (lambda: ei.scale_updates({}), ValueError, ["update", "optimizer="]),
    "other": (other, ValueError, ["'body'", "no module"]),
    "variables": (variables, ValueError, ["no module", "nested as params"]),
    "flat": (flat, ValueError, ["no module", "nested as params"]),
    "mixed": (mixed, ValueError, ["'head'", "update"]),
    "number": (tuned_with(optimizer=1.0), TypeError, ["1.0", "optax.adam(1.0)"]),
    "warm_up": (tuned_with(optimizer=WARM_UP), ValueError, ["moves no parameter"]),
    "lbfgs": (tuned_with(optimizer=optax.lbfgs(1.0)), ValueError, ["first step"]),
    "not_finite": (
        tuned_with(optimizer=NOT_FINITE),
        FloatingPointError,
        ["first step", "not finite"],
    ),
    "plain": (tuned_with(gradients="plain"), ValueError, ["optimizer=optax"]),
    "name": (
        lambda: measured(scanned(), optimizer="adam"),
        TypeError,
        ["'adam'"],
    ),
}


@pytest.mark.parametrize(("call", "exception", "words"), BAD.values(), ids=BAD)
def test_bad_optimizers_are_refused(call, exception, words):
    with refuses(exception) as error:
        call()
    for word in words:
        assert word in str(error.value)
