"""Targets of `tune` under which inputs stay distinct, for weights as they are."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, SupportsIndex

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from ..binding import (
    Arrays,
    Model,
    any_library,
    compiled_once,
    setup,
    sum_of_means,
)
from ..core import (
    ModelArgs,
    Path,
    check_not_zero,
    is_concrete,
    owner_of,
    path_str,
    run_while_more,
    usual_rules,
)
from ..units import (
    Objective,
    Unit,
    UnitSelection,
    check_measurable,
    unit_selection,
)
from ._amplification import amplification_with
from ._pairs import find_pairs
from ._search import (
    Choice,
    check_told_apart,
    checked_amplification,
    first_choice,
    next_choice,
)


@any_library()
@usual_rules()
def distinct_targets(
    model: Model,
    params: PyTree,
    input_fn: Any,
    loss_fn: Callable | None = None,
    *,
    key: jax.Array | None = None,
    amplification: float = 2.0,
    include: str | Sequence[str] | None = None,
    exclude: str | Sequence[str] = (),
    batch_size: SupportsIndex | None = None,
    method: str | Callable | None = None,
    rngs: Sequence[str] | Mapping[str, jax.Array] = (),
    collections: Mapping[str, Any] | None = None,
    axis_name: str | None = None,
) -> dict[str, float]:
    r"""Targets for `tune` with which deep networks of curved functions learn.

    `tune` brings the output of every unit to an rms of 1. Functions such as tanh, sin,
    ELU or sigmoid are bent there, and many in a row tear inputs apart, or let them
    collapse into one: the amplification

        A = [rms(t_y) / rms(s(y))] / [rms(t_x) / rms(s(x))]

    of the model's outputs (see `looks_linear`), which is 1 in a linear network, is
    large. Nearer to 0 they are straighter. Where A is more than `amplification` with
    all units at 1, units whose outputs reach such a function get an rms q < 1, the same
    for all, found by bisecting the measured A until it is 1.2. The weights stay as they
    are; it is the second of the two things that `looks_linear` does, for weights that
    are not to be drawn anew. Functions that look alike at every size (ReLU) get no
    straighter, and A of random weights has a part that no size takes away: `measure`
    tells what is left. Of units that are called several times each call is measured at
    that rms; `tune` has one factor for all, so A differs by some percent.

    Args:
        model, params, input_fn, key, batch_size, method, rngs, collections, axis_name:
            as in `tune`: `input_fn(key)` draws a batch, or is a loader or a batch; of a
            `Batch` the model takes the inputs.
        loss_fn: not called; where it names `labels` or `batch`, batches are pairs
            (inputs, labels).
        amplification: the largest A of the outputs that is left alone, a number from
            1. Where that, or 1.2, cannot be reached, A is 1.1 times the least that can.
        include, exclude: glob patterns over unit paths, as they are given to `tune`;
            the outputs of other units are measured as they are.

    Returns:
        The rms of outputs by unit path, for `tune(targets=...)` and
        `measure(targets=...)`; `"*"`, which stands for all others, is 1.

    Raises:
        TypeError, ValueError: as in `tune`; under `jit`, as targets are numbers; a
            batch with nothing to tell apart (of one example, or of equal ones).

    Example:
        >>> import flax.linen as nn, jax, jax.numpy as jnp, einit_jax as ei
        >>> layers = [layer for _ in range(30) for layer in (nn.Dense(32), jnp.tanh)]
        >>> model = nn.Sequential([*layers, nn.Dense(10)])
        >>> x = jax.random.normal(jax.random.key(1), (64, 16))
        >>> params = model.init(jax.random.key(0), x)["params"]
        >>> targets = ei.distinct_targets(model, params, x)
        >>> 0.1 < targets["layers_0"] < 0.9, targets["*"]
        (True, 1.0)
        >>> loss = lambda y: jnp.mean(y ** 2)
        >>> scales = ei.tune(model, params, x, loss, targets=targets)

    Source: J. Martens et al., arXiv 2110.01765 (DKS), who set the slopes of C maps by
    changing activation functions; A stands for these slopes, measured.
    """
    limit = checked_amplification(amplification)
    selection = unit_selection(include, exclude, 1.0)
    bound = setup(
        model,
        params,
        input_fn,
        sum_of_means,
        key=key,
        batch_size=batch_size,
        method=method,
        rngs=rngs,
        collections=collections,
        axis_name=axis_name,
        like=loss_fn,
    )
    check_not_zero(bound.arrays.batches)
    if not all(map(is_concrete, jax.tree.leaves(bound.arrays))):
        raise ValueError(
            "targets are numbers that are known while nothing runs; call "
            "distinct_targets outside of jit, with concrete params and batch"
        )
    arrays, objective = bound.arrays, bound.objective
    layout = _layout_of(arrays, objective=objective, selection=selection)
    one = partial(_try_sizes, layout=layout, args=arrays.args, objective=objective)
    choice = run_while_more(one, first_choice(limit))
    check_told_apart(choice)
    smaller = layout.curved if choice.size < 1 else ()
    return {**dict.fromkeys(smaller, float(choice.size)), "*": 1.0}


@partial(
    jax.tree_util.register_dataclass,
    data_fields=[],
    meta_fields=["units", "tuned", "curved"],
)
@dataclass(frozen=True)
class _Layout:
    """What the trace of a model tells: a pytree without arrays."""

    units: tuple[Unit, ...]
    tuned: frozenset[Path]
    """Paths of the units that are tuned."""
    curved: tuple[str, ...]
    """The names of those whose outputs reach a curved function."""


@compiled_once("objective", "selection")
def _layout_of(
    arrays: Arrays, *, objective: Objective, selection: UnitSelection
) -> _Layout:
    graph = objective.trace(arrays.args)
    check_measurable(graph.units)
    tuned = {unit.path: unit for unit in selection.among(graph.units)}
    found = find_pairs(graph, ())
    count = Counter(owner_of(path, tuned) for path in found.weights)
    curved = {owner_of(path, tuned) for path in found.curved_alone}
    # of several weights in a unit, its output is not that of the curved ones
    alone = sorted(unit.name for unit in curved if unit and count[unit] == 1)
    return _Layout(graph.units, frozenset(tuned), tuple(alone))


@compiled_once("objective")
def _try_sizes(
    choice: Choice, layout: _Layout, args: ModelArgs, *, objective: Objective
) -> Choice:
    """The choice after its amplification was measured."""
    sizes = {
        path: choice.size if path_str(path) in layout.curved else jnp.float32(1)
        for path in layout.tuned
    }
    found = amplification_with(sizes, args, objective=objective, units=layout.units)
    some = jnp.array(bool(layout.curved))
    return next_choice(choice, found, pairs=False, curved=some, alone=some)
