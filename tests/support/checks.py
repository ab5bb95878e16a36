"""What several test files do with a job, and the one place that knows its insides."""

import random
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import config

import einit_jax as ei
from einit_jax.binding import bind
from einit_jax.core import Draw, ModelArgs, draw_batches, flatten, is_float, unboxed
from einit_jax.experiments import CoordinateCheck
from einit_jax.units import ModelGraph, Objective, ones, to_tree
from tests.support.cases import QUICK, Case, Job
from tests.support.models import CASES

KEY = jax.random.key(0)
PILLARS = ("output_rms", "input_grad_rms", "update_rms")
# Large models, each part of which is some other row of the table.
LARGE = {"vit", "gpt2", "dit", "mlp_mixer", "seq2seq", "seq2seq_sampled", "unet",
         "graph_network", "preact_resnet", "ppo_actor_critic"}  # fmt: skip
# One per way in which a unit is reached or its factors are laid out.
VARIED = (
    *("compact_mlp", "scan_remat", "vmap_ensemble", "rnn_gru", "fusion", "keywords"),
    *("tied_lm", "batch_norm", "dropout", "complex", "bfloat16", "boxed"),
)
# The traps of all others lie in what is found and tuned.
ALIKE = CASES.keys() - set(VARIED)


def every(slow: Collection[str] = LARGE) -> pytest.MarkDecorator:
    """A parametrization by all rows of the table, of which some are slow tests."""
    return _rows(tuple(CASES), slow)


def some(*names: str, slow: Collection[str] = ()) -> pytest.MarkDecorator:
    """A parametrization by the named rows of the table; large ones are slow tests."""
    return _rows(names, LARGE | set(slow))


def third(seed: int) -> pytest.MarkDecorator:
    """A parametrization by the varied rows and a third of the others, drawn by seed.

    For what the fuzzer asks of every model, too. All but the varied ones are slow.
    """
    drawn = random.Random(seed).sample(sorted(ALIKE - LARGE), len(ALIKE) // 3)
    return some(*VARIED, *drawn, slow=drawn)


def _rows(names: tuple[str, ...], slow: Collection[str]) -> pytest.MarkDecorator:
    late = lambda name: pytest.mark.slow if name in slow else ()
    rows = [pytest.param(CASES[name], marks=late(name)) for name in names]
    return pytest.mark.parametrize("case", rows, ids=names)


@contextmanager
def unchecked() -> Iterator[None]:
    """Meanwhile no signature is checked."""
    config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        config.update("jaxtyping_disable", False)


@contextmanager
def refuses(
    exception: type[Exception], match: str | None = None
) -> Iterator[pytest.ExceptionInfo]:
    """`pytest.raises`, for what is called with wrong arguments on purpose.

    It is to refuse them in its own words, not in those of the type checker.
    """
    with unchecked(), pytest.raises(exception, match=match) as error:
        yield error


# Trees.


def quick(function: Callable) -> Callable:
    """Jitted for a short compile time."""
    return jax.jit(function, compiler_options=QUICK)


def same(left: Any, right: Any) -> bool:
    """Whether two trees agree in structure, shapes, dtypes and every bit."""
    pairs = zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True)
    return jax.tree.structure(left) == jax.tree.structure(right) and all(
        x.dtype == y.dtype and np.array_equal(x, y) for x, y in pairs
    )


def allclose(left: Any, right: Any, rtol: float = 1e-6, atol: float = 0.0) -> None:
    """Asserts that two trees agree in structure and, up to rounding, in values."""
    assert jax.tree.structure(left) == jax.tree.structure(right)
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=atol)


def uneven(scales: Any) -> Any:
    """Factors that are all different, between 1/2 and 2."""
    leaves, treedef = jax.tree.flatten(scales)
    keys = jax.random.split(KEY, len(leaves))
    draw = lambda k, x: jax.random.uniform(k, x.shape, x.dtype, 0.5, 2.0)
    return jax.tree.unflatten(treedef, map(draw, keys, leaves))


def initialized(model: nn.Module, *args: Any) -> tuple[Any, dict]:
    """The scaled model and its variables, factors of 1 among them."""
    scaled = ei.scaled(model)
    return scaled, quick(scaled.init)(KEY, *args)


@cache
def params_of(model: nn.Module, *shapes: tuple[int, ...]) -> Any:
    """The model's parameters for inputs of these shapes, (16, 8) by default."""
    rngs = {"params": KEY, "dropout": KEY}
    inputs = map(jnp.ones, shapes or ((16, 8),))
    return quick(model.init)(rngs, *inputs)["params"]


def factors_of(scales: Any) -> dict[str, Any]:
    """The factors of each unit, by the path of the unit."""
    found: dict[str, Any] = {}
    for path, leaf in jax.tree.flatten_with_path(scales)[0]:
        *unit, name = (key.key for key in path)
        found.setdefault("/".join(unit) or ".", {})[name] = leaf
    return found


# The verbs, on a job.


def tuned(job: Job, **keywords: Any) -> dict:
    return ei.tune(*job[:4], **job.options, **keywords)


def measured(job: Job, **keywords: Any) -> ei.Measurement:
    return ei.measure(*job[:4], **job.options, **keywords)


@cache
def scales_of(case: Case, **keywords: Any) -> dict:
    """The factors of a row of the table, found once."""
    return tuned(case.build(), **keywords)


@cache
def table_of(case: Case) -> ei.Measurement:
    """The measurement of a row of the table with its factors, made once."""
    return measured(case.build(), scales=scales_of(case))


@cache
def ones_of(case: Case) -> dict:
    """Factors of 1 in the structure that `tune` returns, which a trace tells."""
    return to_tree(ones(traced(case.build()).units))


@cache
def untuned_of(case: Case) -> ei.Measurement:
    """The measurement with factors of 1: the same program as for `table_of`."""
    return measured(case.build(), scales=ones_of(case))


def off(table: ei.Measurement) -> dict[str, float]:
    """How far each pillar is from 1 at the worst row that was reached."""
    rows = [r for r in table.rows() if r["flag"] != "unreached"]
    return {
        name: max(abs(r[name] - 1) for r in rows if not np.isnan(r[name]))
        for name in PILLARS
    }


def by_region(rows: Iterable[dict]) -> dict[int, list[dict]]:
    """The rows whose input gradients lie in each region."""
    groups: dict[int, list[dict]] = {}
    for row in rows:
        if not np.isnan(row["input_grad_rms"]):
            groups.setdefault(row["region"], []).append(row)
    return groups


# What verbs do inside.


def objective_of(job: Job) -> Objective:
    """The model and its loss, as the package runs them."""
    how = {name: job.options.get(name) for name in ("method", "axis_name")}
    return bind(job.model, job.loss_fn, **how)


def batch_of(job: Job, key: jax.Array = KEY) -> Draw:
    """The batch, with its keys, that a verb draws by default."""
    streams = job.options.get("rngs", ())
    (batch,) = draw_batches(job.input_fn, key, rngs=streams)
    return batch


def traced(job: Job) -> ModelGraph:
    """What the trace of a job tells."""
    collections = job.options.get("collections", {})
    args = ModelArgs(job.params, collections, batch_of(job))
    return objective_of(job).trace(args)


def mapped(job: Job, function: Callable) -> Any:
    """The function's result, run over the axis that the job names, if any."""
    return objective_of(job).over_axis(function)


def applied(job: Job, model: nn.Module, variables: dict) -> Any:
    """The outputs of one call, as `apply` gives them."""
    collections, batch = job.options.get("collections", {}), batch_of(job)

    def run(_):
        return model.apply(
            {**variables, **collections},
            *batch.inputs.args,
            rngs=dict(batch.rngs),
            method=job.options.get("method"),
            mutable=[*collections],
            **batch.inputs.kwargs,
        )

    axis = job.options.get("axis_name")
    return jax.jit(jax.vmap(run, axis_name=axis, axis_size=1))(jnp.zeros(1))


def gradients(job: Job, *several: dict) -> list[dict]:
    """`jax.grad` of the loss of the scaled model under several scales, by path."""
    collections, batch = job.options.get("collections", {}), batch_of(job)
    objective = objective_of(job)

    def loss(params, scales):
        outputs, _ = ei.scaled(job.model).apply(
            {"params": params, "scales": scales, **collections},
            *batch.inputs.args,
            rngs=dict(batch.rngs),
            method=job.options.get("method"),
            mutable=[*collections],
            **batch.inputs.kwargs,
        )
        return objective.loss(outputs, batch)

    step = jax.grad(loss, allow_int=True)
    run = jax.jit(lambda scales: mapped(job, lambda: step(job.params, scales)))
    found = [flatten(unboxed(run(scales))) for scales in several]
    return [{p: g for p, g in f.items() if is_float(g)} for f in found]


def forward_only(scales: dict) -> dict:
    """The same activations, with gradients as they are."""
    keep = lambda path, s: s if path[-1].key == "output" else jnp.ones_like(s)
    return jax.tree.map_with_path(keep, scales)


def unit_outputs(job: Job, params: dict, scales: dict, units: frozenset) -> dict:
    """The outputs of units that no transform lifts, by path."""
    found = {}

    def intercept(proceed, args, kwargs, context):
        y = proceed(*args, **kwargs)
        if "/".join(context.module.path) in units:
            found[context.module.path] = y
        return y

    with nn.intercept_methods(intercept):
        variables = {"params": params, "scales": scales}
        ei.scaled(job.model).apply(variables, *batch_of(job).inputs.args)
    return found


# Made up.


def synthetic(*powers: float, steps: int = 2) -> CoordinateCheck:
    """Changes that go exactly like powers of the width."""
    widths = (8, 16, 32)
    values = np.array([[[w**p for p in powers]] * (steps + 1) for w in widths])
    changes = values.copy()
    changes[:, 0] = 0
    paths = tuple(f"row{i}" for i in range(len(powers)))
    return CoordinateCheck(values, changes, widths, paths, 1, 0.2)
