"""`measure`: the three pillars of a model as it stands, unit by unit."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial, reduce
from operator import getitem
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jaxtyping import PyTree

from ..core import (
    Batch,
    Path,
    check_optimizer,
    describe,
    draw_batches,
    path_str,
    stack_batches,
    unboxed,
)
from ..graph import find_regions
from ..linen import (
    Objective,
    Scaled,
    check_foreign,
    check_missing,
    make_objective,
    trace_model,
)
from ..units import (
    FACTORS,
    UPDATE,
    ModelGraph,
    UnitKey,
    concat_units,
    from_tree,
    ones,
    put_probes,
    unit_rows,
    zero_candidates,
)
from ._measurement import FLAGS, Measurement
from ._observation import observe
from ._unit_statistics import OUTPUT_STATISTICS


def measure(
    model: nn.Module | Scaled,
    params: PyTree,
    input_fn: Any,
    loss_fn: Callable,
    *,
    scales: Mapping | None = None,
    key: jax.Array | None = None,
    batch_size: int | None = None,
    method: str | Callable | None = None,
    rngs: Sequence[str] | Mapping[str, jax.Array] = (),
    collections: Mapping[str, Any] | None = None,
    axis_name: str | None = None,
    draws: int = 1,
    probe: bool = True,
    optimizer: optax.GradientTransformation | None = None,
) -> Measurement:
    r"""The three pillars of a model as it stands, unit by unit.

    Independent of `tune`'s sweep: the factors are fixed, outputs are captured as
    intermediates (those of units inside lifted transforms leave as cotangents),
    gradients are `jax.grad`'s, and the update of a unit is the forward-mode derivative
    of its output along its own gradient. All is reduced in one jitted function; with
    the same key, batch and probe draws are those of `tune`.

    Args:
        scales: the factors in force, from `tune`; None: factors of 1.
        draws: batches to measure on; rms values are geometric means over them, and
            their spread is reported.
        probe: whether zero arrays that stop gradients are replaced by probe draws, as
            in `tune`. False measures the parameters as they are.
        optimizer: measures the changes by its first step, at learning rate 1, times the
            factors `update` of `scales` where they have them (so without
            `scale_updates`); None: by a step of SGD.
        model, params, input_fn, loss_fn, key, batch_size, method, rngs, collections,
            axis_name: as in `tune`.

    Returns:
        A `Measurement`: a frozen pytree of columns with a row per unit (and layer) in
        call order. `str()` is a table, `rows()` a list of dicts, `worst()` the largest
        |log2 rms| per pillar.

    Raises:
        TypeError, ValueError: as in `tune`; also of scales that are of another model.

    Example:
        >>> import flax.linen as nn, jax, jax.numpy as jnp, einit_jax as ei
        >>> model = nn.Sequential([nn.Dense(32), jnp.tanh, nn.Dense(4)])
        >>> x = jax.random.normal(jax.random.key(1), (64, 8))
        >>> params = model.init(jax.random.key(0), x)["params"]
        >>> loss = lambda y, key: jnp.mean((y - jax.random.normal(key, y.shape)) ** 2)
        >>> scales = ei.tune(model, params, x, loss)
        >>> table = ei.measure(model, params, x, loss, scales=scales)
        >>> bool(jnp.allclose(table.output_rms, 1, rtol=1e-4))
        True
        >>> [row["path"] for row in table.rows()]
        ['layers_0', 'layers_2']

    Source: the three pillars are those of P. Bement, empirical_init 0.0.2 (2023).
    """
    model = model.model if isinstance(model, Scaled) else model
    task = make_objective(model, loss_fn, method, axis_name)
    key = jax.random.key(0) if key is None else key
    batches = draw_batches(input_fn, key, rngs, batch_size, draws)
    values = None if scales is None else from_tree(scales, unboxed(params))
    check_optimizer(optimizer)
    zeros = zero_candidates(params) if probe else frozenset()
    given = (params, dict(collections or {}), batches, key, values)
    return _measure_compiled(task, zeros, optimizer, *given)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _measure_compiled(
    task: Objective,
    zeros: frozenset[Path] | None,
    optimizer: optax.GradientTransformation | None,
    params: Any,
    collections: Mapping,
    batches: tuple[Batch, ...],
    key: jax.Array,
    values: dict[UnitKey, dict[str, jax.Array]] | None,
) -> Measurement:
    graph = trace_model(task, params, collections, batches[0])
    if values is None:
        values = ones(graph.units)
    check_missing(graph, values)
    check_foreign(graph, values)
    like = params
    params, replaced = put_probes(params, graph, key, zeros)
    values = {u.key: values[u.key] for u in graph.units}
    look = partial(observe, task, graph.units, params, collections, values)
    look = partial(look, optimizer=optimizer, like=like)
    stacked = stack_batches(batches)
    try:
        seen = jax.lax.map(partial(look, capture=True), stacked)
    except ValueError:  # branches of nn.cond cannot capture: their trees would differ
        seen = jax.lax.map(partial(look, capture=False), stacked)
    facts, losses, loose = seen
    by = "SGD" if optimizer is None else "the optimizer"
    return _table(graph, facts, losses, loose, values, replaced, batches[0], by)


def _table(
    graph: ModelGraph,
    sums: dict[UnitKey, dict],
    losses: jax.Array,
    loose: jax.Array,
    values: dict,
    replaced: dict,
    batch: Batch,
    by: str,
) -> Measurement:
    """The table of a measurement, from sums per draw: arithmetic on whole columns."""
    units = graph.units
    where = find_regions(graph, units)
    table, order = unit_rows(units, where.into, where.out, where.own)

    def column(*names: str) -> jax.Array:
        pick = lambda value: reduce(getitem, names, value)
        tree = {kind: pick(value) for kind, value in sums.items()}
        return jax.vmap(partial(concat_units, units))(tree)[:, order]

    out = {name: column("output", name) for name in OUTPUT_STATISTICS}
    back = {name: column("input", name) for name in ("rms", "power", "bad")}
    calls = jnp.maximum(out["calls"], 1)
    once = jnp.array([table[i].calls == 1 for i in range(len(table))])
    floats = jnp.array([row.floats for row in table])

    def combined(single, power):
        return jnp.where(once, single, jnp.sqrt(power / calls))

    strength = combined(out["rms"], out["power"])
    safe = jnp.where(strength > 0, strength, 1)
    back_rms = combined(back["rms"], back["power"])
    update = combined(out["update"], out["update_power"])
    bad = out["bad"] + back["bad"]
    dead = (strength == 0) | (update == 0) | (floats & (back_rms == 0))
    broken = (bad > 0) | ~jnp.isfinite(strength + back_rms + update)
    flag = jnp.where(broken, FLAGS.index("non-finite"), FLAGS.index("ok") + dead)
    flag = jnp.where(out["calls"] == 0, FLAGS.index("unreached"), flag)
    factor = {
        name: concat_units(units, {k: v[name] for k, v in values.items()})[order]
        for name in FACTORS
    }
    steps = {k: v.get(UPDATE, jnp.ones_like(v["output"])) for k, v in values.items()}
    true = combined(column("true", "rms"), column("true", "power"))
    potential = back_rms / jnp.where(true > 0, true, jnp.nan)
    back_rms = jnp.where(floats, back_rms, jnp.nan)
    return Measurement(
        output_rms=_typical(strength),
        output_mean=jnp.mean(out["mean"] / calls / safe, 0),
        output_spread=jnp.mean(jnp.sqrt(out["varying"] / calls) / safe, 0),
        input_grad_rms=_typical(back_rms),
        update_rms=_typical(update),
        total_update_rms=_typical(column("total")),
        cosine=jnp.mean(column("cosine"), 0),
        potential=jnp.where(floats, _typical(potential), jnp.nan),
        param_rms=column("params")[0],
        param_grad_rms=_typical(column("param_grads")),
        output=factor["output"],
        input_grad=factor["input_grad"],
        output_grad=factor["output_grad"],
        update=concat_units(units, steps)[order],
        nonfinite=jnp.sum(bad, 0).astype(jnp.int32),
        flag=jnp.max(flag, 0),
        output_deviation=_deviation(strength),
        input_grad_deviation=_deviation(back_rms),
        update_deviation=_deviation(update),
        loss=jnp.mean(losses),
        loose_update_rms=_typical(loose),
        probed=jnp.array([replaced[p] for p in replaced], bool),
        rows_of=tuple(table),
        loose=tuple(path_str(path) for path in graph.loose),
        probes=tuple(path_str(path) for path in replaced),
        batch=describe(batch.inputs),
        draws=losses.shape[0],
        loss_region=where.loss,
        by=by,
    )


def _typical(draws: jax.Array) -> jax.Array:
    """The geometric mean over draws; the value itself of a single one."""
    if draws.shape[0] == 1:
        return draws[0]
    return jnp.exp(jnp.mean(jnp.log(draws), 0))


def _deviation(draws: jax.Array) -> jax.Array:
    """The standard deviation over draws of the natural logarithm."""
    if draws.shape[0] == 1:
        return jnp.zeros_like(draws[0])
    return jnp.std(jnp.log(draws), 0)
