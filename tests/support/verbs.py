"""The verbs that run a user's model, all called alike."""

from collections.abc import Callable
from typing import Any

import einit_jax as ei
from tests.support.checks import KEY


def folded(model, params, input_fn, loss_fn, *, scales, **options):
    return ei.fold(model, params, scales, input_fn, **options)


def drawn(model, params, input_fn, loss_fn, *, key=KEY, **options):
    inside = {"model": model, "input_fn": input_fn, **options}
    return ei.initialize(params, "keras", key, **inside)


def compared(model, params, input_fn, loss_fn, **options):
    short = {"strategies": {"as it is": None}, "steps": 1, "learning_rates": (0.1,)}
    return ei.compare(model, params, input_fn, loss_fn, **short, **options)


def checked(model, params, input_fn, loss_fn, **options):
    widths = lambda width: model
    return ei.coordinate_check(widths, (4, 8), input_fn, loss_fn, steps=1, **options)


def searched(model, params, input_fn, loss_fn, **options):
    short = {"steps": 1, "learning_rates": (0.1,)}
    return ei.find_learning_rate(model, params, input_fn, loss_fn, **short, **options)


VERBS: dict[str, Callable[..., Any]] = {
    "tune": ei.tune,
    "measure": ei.measure,
    "distinct_targets": ei.distinct_targets,
    "lsuv": ei.lsuv,
    "looks_linear": ei.looks_linear,
    "autoinit": ei.autoinit,
    "gradinit": ei.gradinit,
    "metainit": ei.metainit,
    "fold": folded,
    "initialize": drawn,
    "compare": compared,
    "coordinate_check": checked,
    "find_learning_rate": searched,
}
"""Each is called as `verb(model, params, input_fn, loss_fn, **options)`; `fold` wants
scales besides."""
