"""From what was observed to the table of a measurement: whole columns at once."""

from collections.abc import Collection, Mapping
from dataclasses import replace
from functools import partial, reduce
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from ..core import (
    Path,
    geometric_mean,
    in_range,
    log_deviation,
    or_all,
    times,
)
from ..graph import Regions
from ..reporting import OFF
from ..units import (
    FACTORS,
    UPDATE,
    ModelGraph,
    UnitSelection,
    call_order,
    concat_units,
    unit_rows,
)
from ._findings import FLAGS
from ._measurement import Measurement
from ._observation import Factors, Observed


def tabulate(
    graph: ModelGraph,
    regions: Regions,
    observation: Observed,
    *,
    factors: Factors,
    uncounted: Collection[Path],
    about: Mapping[str, Any],
) -> Measurement:
    """The table of a measurement, from statistics per draw: whole columns at once.

    Updates of what is `uncounted` are not in the total. `about` has the fields that
    are no columns of units.
    """
    units = graph.units
    rows, order = unit_rows(
        units, regions.input_region, regions.output_region, regions.inner_region
    )

    columns = {name: every[:, order] for name, every in observation.columns.items()}

    def factor(name: str) -> Float[Array, " rows"]:
        one = lambda own: jnp.ones_like(own["output"])
        own = {key: v[name] if name in v else one(v) for key, v in factors.items()}
        return concat_units(units, own)[order]

    floats = jnp.array([row.floats for row in rows])
    loose = {u.key: jnp.full(u.carried_shape, u.path in uncounted) for u in units}
    counted = ~concat_units(units, loose)[order]
    strength, update, total = (columns[n] for n in ("rms", "update", "total"))
    reached = columns["calls"] > 0
    over_draws = partial(geometric_mean, counted=reached)
    scatter = partial(log_deviation, counted=reached)
    once = or_all(reached)
    mean = partial(jnp.mean, axis=0, where=once)
    back_rms = columns["input_rms"]
    safe = jnp.where(strength > 0, strength, 1)
    bad = columns["bad"]
    dead = (strength == 0) | (update == 0) | (counted & (total == 0))
    dead |= floats & (back_rms == 0)
    finite = jnp.isfinite(strength) & jnp.isfinite(back_rms) & jnp.isfinite(update)
    broken = (bad > 0) | ~finite | jnp.isinf(total)
    a, b, c, u = (factor(name) for name in (*FACTORS, UPDATE))
    fit = [in_range(size) for size in (a, b, c, u, times(a, c), times(b, c))]
    beyond = ~reduce(jnp.logical_and, fit)
    flag = FLAGS.index("ok") + dead
    flag = jnp.where(beyond, FLAGS.index("out of range"), flag)
    flag = jnp.where(broken, FLAGS.index("non-finite"), flag)
    flag = jnp.where(reached, flag, FLAGS.index("unreached"))
    true = columns["true_rms"]
    potential = back_rms / jnp.where(true > 0, true, jnp.nan)
    back_rms = jnp.where(floats, back_rms, jnp.nan)
    return Measurement(
        output_rms=over_draws(strength),
        output_target=jnp.ones_like(a),
        output_mean=mean(columns["mean"] / safe),
        output_spread=mean(columns["varying"] / safe),
        input_grad_rms=over_draws(back_rms),
        update_rms=over_draws(update),
        total_update_rms=over_draws(total),
        amplification=over_draws(columns["amplification"]),
        epsilon_share=mean(columns["epsilon_share"]),
        cosine=mean(columns["cosine"]),
        potential=jnp.where(floats, over_draws(potential), jnp.nan),
        param_rms=columns["params"][0],
        param_grad_rms=over_draws(columns["param_grads"]),
        output_factor=a,
        input_grad_factor=b,
        output_grad_factor=c,
        update_factor=u,
        nonfinite=jnp.sum(bad, 0).astype(jnp.int32),
        flag=jnp.max(flag, 0, initial=0, where=once),
        output_deviation=scatter(strength),
        input_grad_deviation=scatter(back_rms),
        update_deviation=scatter(update),
        loss=jnp.mean(observation.loss),
        loose_update_rms=geometric_mean(observation.raw_change),
        outputs_amplification=geometric_mean(observation.outputs_amplification),
        rows_of=tuple(rows),
        draws=observation.loss.shape[0],
        loss_region=regions.loss,
        **about,
    )


def flag_missed(
    table: Measurement, graph: ModelGraph, selection: UnitSelection
) -> Measurement:
    """The table with targets, and rows flagged whose outputs miss them."""
    targets = selection.among(graph.units).items()
    by_unit = {unit.key: jnp.asarray(target) for unit, target in targets}
    _, order = call_order(graph.units)
    due = concat_units(graph.units, by_unit)[order]
    off = jnp.abs(jnp.log(table.output_rms / due)) > OFF
    off &= (table.output_factor != 1) & (table.flag == FLAGS.index("ok"))
    flag = jnp.where(off, FLAGS.index("missed"), table.flag)
    return replace(table, flag=flag, output_target=due)
