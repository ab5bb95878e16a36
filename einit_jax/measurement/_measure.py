"""`measure`: the three pillars of a model as it stands, unit by unit."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, SupportsIndex

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike
from jaxtyping import PyTree

from ..binding import Arrays, Model, any_library, check_convolved, compiled_once, setup
from ..core import (
    Draw,
    ModelArgs,
    Params,
    Path,
    check_learning_rate,
    describe,
    in_turn,
    only_zeros,
    optimizer_at_one,
    path_str,
    unboxed,
    usual_rules,
)
from ..graph import find_regions, multiplying
from ..units import (
    Objective,
    UnitSelection,
    check_foreign,
    check_measurable,
    check_missing,
    from_tree,
    ones,
    put_probes,
    raw_from_tree,
    unit_selection,
    zero_candidates,
)
from ._measurement import Measurement
from ._observation import Factors, NotCaptured, Observed, Observer
from ._table_of_units import flag_missed, tabulate


@any_library()
@usual_rules()
def measure(
    model: Model,
    params: PyTree,
    input_fn: Any,
    loss_fn: Callable,
    *,
    scales: Mapping | None = None,
    targets: ArrayLike | Mapping[str, ArrayLike | Sequence[float]] = 1.0,
    key: jax.Array | None = None,
    batch_size: SupportsIndex | None = None,
    method: str | Callable | None = None,
    rngs: Sequence[str] | Mapping[str, jax.Array] = (),
    collections: Mapping[str, Any] | None = None,
    axis_name: str | None = None,
    draws: SupportsIndex = 1,
    probe: bool = True,
    optimizer: optax.GradientTransformation | Callable | None = None,
) -> Measurement:
    r"""The three pillars of a model as it stands, unit by unit.

    Independent of `tune`'s sweep: the factors are fixed, outputs are captured as
    intermediates (those of units inside lifted transforms leave as cotangents),
    gradients are `jax.grad`'s, and the update of a unit is the forward-mode derivative
    of its output along its own gradient. The change when all units move is `jax.jvp`'s
    of the captured outputs, and a difference of two runs (to about .1%) where outputs
    cannot be captured. All is reduced in one jitted function; with
    the same key, batch and probe draws are those of `tune`.

    Args:
        scales: the factors in force, from `tune`; None: factors of 1.
        targets: the output rms that the scales were tuned for, as in `tune`. A unit
            that has a factor, and misses its target by more than 10%, is flagged
            "missed".
        draws: batches to measure on; rms values are geometric means over those that
            reach the unit, and their spread is reported.
        probe: whether zero arrays that stop gradients are replaced by probe draws, as
            in `tune`. False measures the parameters as they are.
        optimizer: measures the changes by its first step, at learning rate 1, times the
            factors `update` of `scales` where they have them (so without
            `scale_updates`); given as in `tune`. None: by a step of SGD. Where its
            steps do not tell the learning rate the notes say that 1 was taken.
        model, params, input_fn, loss_fn, key, batch_size, method, rngs, collections,
            axis_name: as in `tune`: `method`, `rngs` and `collections` go to
            `model.apply`, `axis_name` is the mapped axis it expects, `batch_size` the
            number of examples that `input_fn` is asked for; `input_fn(key)` draws a
            batch, or is a loader or a batch; `loss_fn(outputs, labels)` gets labels of
            pairs (x, y) and of `Batch`.

    Returns:
        A `Measurement`: a frozen pytree of columns with a row per unit (and layer) in
        call order. `str()` is a verdict, and a table that fits the console (more of it:
        `to_string`); `rows()` a list of dicts, `to_pandas()` a data frame, `worst()`
        for each rule in force the layer that is farthest from it; `layers_off()` all
        that are off; `targets()` the sizes of outputs, for `tune` to keep them.

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
        >>> table.summary()[0].split(": ")[:2]
        ['OK', 'both layers within 1%']
        >>> [row["path"] for row in table.rows()]
        ['layers_0', 'layers_2']
        >>> as_it_is = ei.measure(model, params, x, loss).targets()
        >>> kept = ei.tune(model, params, x, loss, targets=as_it_is)
        >>> print(f"{kept['layers_2']['output']:.4f}")
        1.0000

    Compilation: as that of `tune`, on a CPU with little effort where that takes longer
    than the run.

    Source: the three pillars are those of P. Bement, empirical_init 0.0.2 (2023).
    """
    bound = setup(
        model,
        params,
        input_fn,
        loss_fn,
        key=key,
        batch_size=batch_size,
        method=method,
        rngs=rngs,
        collections=collections,
        axis_name=axis_name,
        draws=draws,
    )
    factors, raw = None, {}
    if scales is not None:
        factors = from_tree(scales, unboxed(params))
        raw = raw_from_tree(scales, unboxed(params))
    return _measure_compiled(
        bound.arrays,
        factors,
        raw,
        objective=bound.objective,
        zeros=zero_candidates(params) if probe else frozenset(),
        optimizer=optimizer_at_one(optimizer),
        by=_whose_step(optimizer, params),
        blank=all(only_zeros(batch.inputs) for batch in bound.arrays.batches),
        selection=unit_selection(None, (), targets),
    )


def _whose_step(optimizer: Any, params: PyTree) -> str:
    """By whom changes are made, before "at learning rate 1".

    Raises:
        ValueError: the steps of the optimizer tell of another learning rate.
    """
    if optimizer is None:
        return "SGD"
    called = not isinstance(optimizer, optax.GradientTransformation)
    known = called or check_learning_rate(optimizer, params)
    return "the optimizer" if known else "the optimizer, taken to be"


@compiled_once(
    *("objective", "zeros", "optimizer", "by", "blank", "selection"), long=True
)
def _measure_compiled(
    arrays: Arrays,
    factors: Factors | None,
    raw: Mapping[Path, Mapping[str, jax.Array]],
    *,
    objective: Objective,
    zeros: frozenset[Path] | None,
    optimizer: optax.GradientTransformation | None,
    by: str,
    blank: bool,
    selection: UnitSelection,
) -> Measurement:
    """The measurement of a model under factors (None: 1), geometric mean over draws."""
    graph = objective.trace(arrays.args)
    check_measurable(graph.units)
    convolved = check_convolved(graph)
    factors = ones(graph.units) if factors is None else factors
    check_missing(graph, factors)
    check_foreign(graph, factors)
    params, probed = put_probes(arrays.params, graph, arrays.key, zeros)
    factors = {unit.key: factors[unit.key] for unit in graph.units}
    regions = find_regions(graph, graph.units)
    with_factors = {each: raw[each.path] for each in graph.movable if each.path in raw}
    movers = (*graph.units, *with_factors)
    added = {mover.path for mover in movers} - multiplying(graph, movers)
    bound = regions.bound_units(graph.units) if optimizer is None else frozenset()
    uncounted = bound | added
    observer = Observer(
        objective,
        graph.units,
        factors,
        with_factors,
        optimizer,
        like=arrays.params,
        uncounted=uncounted,
        captured=tuple(u for u in graph.units if not u.lifted_axes),
        written_out=convolved,
    )

    observation = _observed(observer, arrays, params)
    about = {
        "probed": jnp.array(list(probed.values()), bool),
        "probes": tuple(map(path_str, probed)),
        "batch": describe(arrays.batches[0].inputs) + ", all zeros" * blank,
        "by": by,
    }
    about["raw"] = tuple(path_str(p) for p in graph.raw_parameters if p in raw)
    about["loose"] = tuple(path_str(p) for p in graph.raw_parameters if p not in raw)
    about["added"] = tuple(m.name for m in movers if m.path in added)
    known = {"factors": factors, "uncounted": uncounted, "about": about}
    table = tabulate(graph, regions, observation, **known)
    return flag_missed(table, graph, selection)


def _observed(observer: Observer, arrays: Arrays, params: Params) -> Observed:
    """What all batches show, along a new first axis."""

    def on(batch: Draw) -> Observed:
        return observer.observe(ModelArgs(params, arrays.collections, batch))

    try:
        return in_turn(on, arrays.batches, written_out=observer.written_out)
    except NotCaptured as lack:
        captured = lack.captured
    except (TypeError, ValueError):  # branches of nn.cond cannot capture: other trees
        if not observer.captured:
            raise
        captured = ()
    return _observed(replace(observer, captured=captured), arrays, params)
