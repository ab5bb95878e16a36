"""From what was observed to the table of a measurement: whole columns at once."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial, reduce
from operator import getitem
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..core import path_str
from ..graph import Regions
from ..units import (
    FACTORS,
    UPDATE,
    ModelGraph,
    UnitSelection,
    call_order,
    concat_units,
    unit_rows,
)
from ._measurement import FLAGS, Measurement
from ._observation import Factors, Observed
from ._unit_statistics import INPUT_STATISTICS, OUTPUT_STATISTICS

MISSED = 0.1
"""How far the logarithm of an output's rms may be from its target's: on other batches,
too, which differ."""


def tabulate(
    graph: ModelGraph,
    regions: Regions,
    observation: Observed,
    *,
    factors: Factors,
    about: Mapping[str, Any],
) -> Measurement:
    """The table of a measurement, from statistics per draw: whole columns at once.

    `about` has the fields that are no columns of units.
    """
    units = graph.units
    rows, order = unit_rows(
        units, regions.input_region, regions.output_region, regions.inner_region
    )

    def column(*names: str) -> Float[Array, "draws rows"]:
        pick = lambda value: reduce(getitem, names, value)
        tree = {key: pick(value) for key, value in observation.statistics.items()}
        return jax.vmap(partial(concat_units, units))(tree)[:, order]

    def factor(name: str) -> Float[Array, " rows"]:
        one = lambda own: jnp.ones_like(own["output"])
        own = {key: v[name] if name in v else one(v) for key, v in factors.items()}
        return concat_units(units, own)[order]

    out = {name: column("output", name) for name in OUTPUT_STATISTICS}
    back = {name: column("input", name) for name in INPUT_STATISTICS}
    calls = jnp.maximum(out["calls"], 1)
    once = jnp.array([row.calls == 1 for row in rows])
    floats = jnp.array([row.floats for row in rows])

    def combined(single: Array, power: Array) -> Array:
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
    a, b, c, u = (factor(name) for name in (*FACTORS, UPDATE))
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
        output=a,
        input_grad=b,
        output_grad=c,
        update=u,
        nonfinite=jnp.sum(bad, 0).astype(jnp.int32),
        flag=jnp.max(flag, 0),
        output_deviation=_deviation(strength),
        input_grad_deviation=_deviation(back_rms),
        update_deviation=_deviation(update),
        loss=jnp.mean(observation.loss),
        loose_update_rms=_typical(observation.raw_change),
        rows_of=tuple(rows),
        loose=tuple(map(path_str, graph.raw_parameters)),
        draws=observation.loss.shape[0],
        loss_region=regions.loss,
        **about,
    )


def flag_missed(
    table: Measurement, graph: ModelGraph, selection: UnitSelection
) -> Measurement:
    """The table, with rows flagged whose outputs are not what their factors are for."""
    targets = selection.among(graph.units).items()
    by_unit = {u.key: jnp.full(u.carried_shape, target) for u, target in targets}
    _, order = call_order(graph.units)
    due = concat_units(graph.units, by_unit)[order]
    off = jnp.abs(jnp.log(table.output_rms / due)) > MISSED
    off &= (table.output != 1) & (table.flag == FLAGS.index("ok"))
    return replace(table, flag=jnp.where(off, FLAGS.index("missed"), table.flag))


def _typical(draws: Array) -> Array:
    """The geometric mean over draws; the value itself of a single one."""
    if draws.shape[0] == 1:
        return draws[0]
    return jnp.exp(jnp.mean(jnp.log(draws), 0))


def _deviation(draws: Array) -> Array:
    """The standard deviation over draws of the natural logarithm."""
    if draws.shape[0] == 1:
        return jnp.zeros_like(draws[0])
    return jnp.std(jnp.log(draws), 0)
