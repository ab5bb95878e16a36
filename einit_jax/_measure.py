"""`measure`: the three pillars of a model as it stands, unit by unit."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial, reduce
from operator import getitem
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import PyTree

from ._graph import Graph, Unit
from ._lift import inner_axes
from ._math import rms
from ._measurement import FLAGS, Measurement
from ._observe import OBSERVE, OUTPUT, observing, slots, statistics
from ._paths import Path, show, unboxed
from ._plan import anchor, checked_loss, describe, floats_of, outputs_of, plan
from ._probe import probe as put_probes
from ._probe import suspects
from ._problem import Batch, Problem, draw_batches, over_axis, problem, stack
from ._scaled import Scaled, refuse_foreign, refuse_missing
from ._units import (
    FACTORS,
    Kind,
    blank,
    from_tree,
    kind_of,
    ones,
    own_floats,
    riding,
    rows,
    vector,
)


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
    task = problem(model, loss_fn, method, axis_name)
    key = jax.random.key(0) if key is None else key
    batches = draw_batches(input_fn, key, rngs, batch_size, draws)
    values = None if scales is None else from_tree(scales, unboxed(params))
    zeros = suspects(params) if probe else frozenset()
    return _measure(task, zeros, params, dict(collections or {}), batches, key, values)


@partial(jax.jit, static_argnums=(0, 1))
def _measure(
    task: Problem,
    zeros: frozenset[Path] | None,
    params: Any,
    collections: Mapping,
    batches: tuple[Batch, ...],
    key: jax.Array,
    values: dict[Kind, dict[str, jax.Array]] | None,
) -> Measurement:
    graph = plan(task, params, collections, batches[0])
    if values is None:
        values = ones(graph.units)
    refuse_missing(graph, values)
    refuse_foreign(graph, values)
    params, replaced = put_probes(params, graph, key, zeros)
    observe = partial(_observe, task, graph, params, collections, values)
    stacked = stack(batches)
    try:
        facts, losses = jax.lax.map(partial(observe, capture=True), stacked)
    except ValueError:  # branches of nn.cond cannot capture: their trees would differ
        facts, losses = jax.lax.map(partial(observe, capture=False), stacked)
    return _report(graph, facts, losses, values, replaced, batches[0])


def _observe(
    task: Problem,
    graph: Graph,
    params: Any,
    collections: Mapping,
    values: dict,
    batch: Batch,
    capture: bool,
) -> tuple[dict[Kind, dict[str, Any]], jax.Array]:
    """The statistics of each unit on one batch, and the loss."""
    units = {kind_of(u): u for u in graph.units}
    own = {kind: own_floats(params, unit) for kind, unit in units.items()}
    still = {kind: blank(params, unit) for kind, unit in units.items()}
    empty = {kind: slots(unit) for kind, unit in units.items()}

    def loss(params, shifts, slots, steps):
        entries = {
            kind: {"factors": values[kind], "slots": slots[kind], "step": steps[kind]}
            | {"shift": shifts[kind]}
            | ({"opaque": values[kind]["output"]} if unit.opaque else {})
            for kind, unit in units.items()
        }
        filled = riding(params, OBSERVE, entries)
        wanted = lambda module, name: (module.path, name) in units
        with nn.intercept_methods(observing()):
            outputs, written = outputs_of(
                task, filled, collections, batch,
                capture_intermediates=wanted if capture else False,
            )  # fmt: skip
        seen = _captured(written.get("intermediates", {}), units)
        value = checked_loss(task, outputs, batch)
        total = value + anchor(floats_of(outputs)).astype(value.dtype)
        return total, (seen, value)

    def look(steps, _):
        gradient = jax.grad(loss, (0, 1, 2), has_aux=True, allow_int=True)
        inside = lambda: gradient(params, still, empty, steps)
        (of_params, of_shifts, sums), (seen, value) = over_axis(task.axis_name, inside)
        total = {kind: own_floats(of_params, unit) for kind, unit in units.items()}
        steps = jax.tree.map(jnp.conj, of_shifts)
        return steps, (sums, seen, value, total)

    _, looks = jax.lax.scan(look, still, length=2)
    # the second look only adds the change by an update: with a step, cotangents also
    # flow through the derivative along it
    sums, seen, value, total = jax.tree.map(lambda x: x[0], looks)
    moved = jax.tree.map(lambda x: x[1], looks[0])
    for kind, unit in units.items():
        for name in ("update", "update_power"):
            sums[kind]["output"][name] = moved[kind]["output"][name]
        sums[kind]["output"] |= seen.get(kind, {})
        sums[kind]["params"] = _strength(own[kind], unit)
        sums[kind]["param_grads"] = _strength(total[kind], unit)
    return sums, value


def _captured(tree: Mapping, units: Mapping[Kind, Unit]) -> dict[Kind, dict]:
    """The statistics of captured outputs, of the units whose calls were all captured.

    A `super().__call__` chain captures the inner outputs of a call before its own.
    """
    found = {}
    for (path, method), unit in units.items():
        node: Any = tree
        for name in (*path, method):
            node = node.get(name, {}) if isinstance(node, Mapping) else {}
        if unit.lift or not node or len(node) % unit.calls:
            continue
        chain = len(node) // unit.calls
        calls = [floats_of(y) for y in node[chain - 1 :: chain]]
        if all(tuple(t.shape for t in y) == unit.shape for y in calls):
            each = [statistics(y) for y in calls]
            found[(path, method)] = {k: sum(e[k] for e in each) for k in each[0]}
    return jax.lax.stop_gradient(found)


def _strength(leaves: Mapping[str, jax.Array], unit: Unit) -> jax.Array:
    """The rms of some arrays shaped like the unit's parameters, per layer."""
    count = len(unit.layers)
    fronted = []
    for leaf in leaves.values():
        inner = inner_axes(leaf.shape, unit.lift)
        lifted = [i for i in range(leaf.ndim) if i not in inner]
        fronted.append(jnp.moveaxis(leaf, lifted, range(count)))
    return rms(fronted, keep=count).reshape(unit.ride_shape)


def _report(
    graph: Graph,
    sums: dict[Kind, dict],
    losses: jax.Array,
    values: dict,
    replaced: dict,
    batch: Batch,
) -> Measurement:
    """The table of a measurement, from sums per draw: arithmetic on whole columns."""
    units = graph.units
    table, order = rows(units)

    def column(*names: str) -> jax.Array:
        pick = lambda value: reduce(getitem, names, value)
        tree = {kind: pick(value) for kind, value in sums.items()}
        return jax.vmap(partial(vector, units))(tree)[:, order]

    out = {name: column("output", name) for name in OUTPUT}
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
        name: vector(units, {k: v[name] for k, v in values.items()})[order]
        for name in FACTORS
    }
    back_rms = jnp.where(floats, back_rms, jnp.nan)
    return Measurement(
        output_rms=_typical(strength),
        output_mean=jnp.mean(out["mean"] / calls / safe, 0),
        output_spread=jnp.mean(jnp.sqrt(out["varying"] / calls) / safe, 0),
        input_grad_rms=_typical(back_rms),
        update_rms=_typical(update),
        param_rms=column("params")[0],
        param_grad_rms=_typical(column("param_grads")),
        output=factor["output"],
        input_grad=factor["input_grad"],
        output_grad=factor["output_grad"],
        nonfinite=jnp.sum(bad, 0).astype(jnp.int32),
        flag=jnp.max(flag, 0),
        output_deviation=_deviation(strength),
        input_grad_deviation=_deviation(back_rms),
        update_deviation=_deviation(update),
        loss=jnp.mean(losses),
        probed=jnp.array([replaced[p] for p in replaced], bool),
        rows_of=tuple(table),
        loose=tuple(show(path) for path in graph.loose),
        probes=tuple(show(path) for path in replaced),
        batch=describe(batch.inputs),
        draws=losses.shape[0],
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
