"""`fold`: the forward factors multiplied into the parameters, for the plain model."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, PyTree

from ..core import (
    Batch,
    Path,
    anchor,
    draw_batches,
    emit,
    flatten,
    float_leaves,
    is_concrete,
    is_float,
    multiply,
    path_str,
    per_call,
    plain,
    rms,
    unboxed,
    widen,
    with_leaves,
)
from ..linen import (
    RIDE,
    Call,
    Objective,
    PureCall,
    Scaled,
    any_output,
    carry_entries,
    check_foreign,
    check_missing,
    intercept_units,
    is_carried,
    make_objective,
    outputs_of,
    over_mapped_axis,
    own_gradients,
    trace_model,
)
from ..units import (
    Unit,
    UnitKey,
    flat_floats,
    from_tree,
    owners,
    scale_by_owner,
)

FOLD = RIDE + "fold"


FOLD_FACTS = ("calls", "far")


DEEPER = 100
"""By how much rounding may grow from a unit to the outputs of a deep model."""


def fold(
    model: nn.Module | Scaled,
    params: PyTree,
    scales: Mapping,
    input_fn: Any,
    *,
    key: jax.Array | None = None,
    batch_size: int | None = None,
    method: str | Callable | None = None,
    rngs: Sequence[str] | Mapping[str, jax.Array] = (),
    collections: Mapping[str, Any] | None = None,
    axis_name: str | None = None,
) -> PyTree:
    r"""Parameters with which the plain model computes the tuned forward function.

    Each unit's parameters are multiplied by its factor a (`output`). That is exact
    where `f(a theta, x) = a f(theta, x)`: for Dense, Conv, Embed, normalization layers,
    with their biases. It is not assumed but checked on a batch, unit by unit, each on
    the inputs that it has in the tuned model; to 4 eps^(3/4) of the coarsest dtype
    involved (3e-5 in float32).

    What a user of the plain model keeps, and what not:

    - the forward function: the same, to rounding;
    - the first update: the same, with `scale_updates` of factors that are measured on
      the folded parameters, `tune(model, folded, ..., gradients="plain",
      optimizer=...)`, for optimizers that follow a unit's gradient whatever its size
      (SGD, momentum, Adam, Lion, Muon; not weight decay, which pulls at parameters that
      are now of another size);
    - later updates: much the same, as long as gradients keep their sizes;
    - gradients: the true ones, O(1) no longer. Without `tune`'s factors b and c the
      parameters of a residual network get what its branches give them.

    Args:
        scales: from `tune`; its factors b, c and `update` are not used.
        model, params, input_fn, key, batch_size, method, rngs, collections, axis_name:
            as in `tune`.

    Returns:
        A tree like params; parameters of no unit are as they were.

    Raises:
        TypeError, ValueError: as in `tune`; of scales of another model; of units that
            are not homogeneous in their parameters (a gain written `1 + scale`, a
            learned slope), whose parameters something transforms (`nn.WeightNorm`),
            that the batch does not reach, or that are called through several methods
            with factors of their own. The message names them. Under an outer `jit`
            what depends on values cannot be refused.

    Example:
        >>> import flax.linen as nn, jax, jax.numpy as jnp, einit_jax as ei
        >>> model = nn.Sequential([nn.Dense(32), jnp.tanh, nn.Dense(4)])
        >>> x = jax.random.normal(jax.random.key(1), (64, 8))
        >>> params = model.init(jax.random.key(0), x)["params"]
        >>> scales = ei.tune(model, params, x, lambda y: jnp.mean(jnp.square(y - 1)))
        >>> folded = ei.fold(model, params, scales, x)
        >>> tuned = ei.scaled(model).apply({"params": params, "scales": scales}, x)
        >>> bool(jnp.allclose(model.apply({"params": folded}, x), tuned, atol=1e-5))
        True

    Source: ours; a change of parametrization like the abc-parametrizations of mup
    (Yang and Hu, arXiv 2011.14522), with constants that are measured.
    """
    model = model.model if isinstance(model, Scaled) else model
    task = make_objective(model, any_output, method, axis_name)
    key = jax.random.key(0) if key is None else key
    (batch,) = draw_batches(input_fn, key, rngs, batch_size, 1)
    values = from_tree(scales, unboxed(params))
    factors = {kind: jnp.asarray(own["output"]) for kind, own in values.items()}
    _check_one_factor(factors)
    folded, found = _fold_compiled(task, params, dict(collections or {}), batch, values)
    if all(map(is_concrete, jax.tree.leaves(found))):
        _check_homogeneous(found)
    return with_leaves(params, folded)


def _check_one_factor(factors: Mapping[UnitKey, Array]) -> None:
    """Raises where methods of one module, with factors of their own, share parameters.

    Equal ones would do.
    """
    methods: dict[Path, list[UnitKey]] = {}
    for kind in factors:
        methods.setdefault(kind[0], []).append(kind)
    for path, kinds in methods.items():
        each = [factors[kind] for kind in kinds]
        if len(each) > 1 and all(map(is_concrete, each)):
            first = each[0]
            if any(f.shape != first.shape or jnp.any(f != first) for f in each):
                names = ", ".join(path_str(*kind) for kind in kinds)
                raise ValueError(
                    f"{names} share the parameters of {path_str(path)!r} with "
                    "different factors, which one set of parameters cannot hold; leave "
                    "them out of tuning: tune(..., exclude=...)"
                )


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["far", "blind", "apart"],
    meta_fields=["names"],
)
@dataclass(frozen=True)
class Homogeneity:
    """How far each unit is from homogeneous, in tolerances, and if nobody saw."""

    names: tuple[str, ...]
    far: list[Array]
    blind: list[Array]
    apart: Array
    """How far the outputs of the folded model are from those of the tuned one."""


@partial(jax.jit, static_argnums=(0,))
def _fold_compiled(
    task: Objective,
    params: Any,
    collections: Mapping,
    batch: Batch,
    values: Mapping[UnitKey, Mapping[str, Array]],
) -> tuple[dict[Path, Array], Homogeneity]:
    """The folded arrays by path, and how well each unit bears it."""
    graph = trace_model(task, params, collections, batch)
    check_missing(graph, values)
    check_foreign(graph, values)
    units = {u.key: u for u in graph.units}
    factors = {kind: values[kind]["output"] for kind in units}
    run = lambda params: float_leaves(outputs_of(task, params, collections, batch)[0])
    with jax.default_matmul_precision("highest"):
        sums, tuned = over_mapped_axis(
            task.axis_name, lambda: _run_tuned(run, units, params, factors)
        )
        leaves = {p: v for p, v in flatten(unboxed(params)).items() if is_float(v)}
        by = {path: factor for (path, _), factor in factors.items()}
        folded = scale_by_owner(leaves.values(), owners(params, graph.units), by)
        entries = dict(zip(leaves, folded, strict=True))
        made = over_mapped_axis(
            task.axis_name, lambda: run(with_leaves(params, entries))
        )
    allowed = DEEPER * _tolerance([*made, *leaves.values()])
    unseen = lambda kind: jnp.any((sums[kind]["calls"] == 0) & (factors[kind] != 1))
    return entries, Homogeneity(
        tuple(u.name for u in units.values()),
        [jnp.max(sums[kind]["far"]) for kind in units],
        [unseen(kind) for kind in units],
        _relative_gap(made, tuned) / allowed,
    )


def _run_tuned(
    run: Callable,
    units: Mapping[UnitKey, Unit],
    params: Any,
    factors: Mapping[UnitKey, Any],
) -> tuple[dict[UnitKey, dict[str, Array]], list[Array]]:
    """The facts about each unit as the tuned model runs, and the outputs of that."""
    own = {kind: flat_floats(params, unit) for kind, unit in units.items()}

    def loss(slots: dict) -> tuple[Array, list[Array]]:
        entries = {
            kind: {"output": factors[kind], "slot": slots[kind], "own": own[kind]}
            for kind in units
        }
        with nn.intercept_methods(intercept_units(FOLD, _fold_call)):
            outputs = run(carry_entries(plain(params), FOLD, entries))
        return anchor(outputs), outputs

    zeros = {
        k: dict.fromkeys(FOLD_FACTS, jnp.zeros(u.ride_shape)) for k, u in units.items()
    }
    return jax.grad(loss, has_aux=True)(zeros)


def _check_homogeneous(found: Homogeneity) -> None:
    """Raises where some unit cannot be folded, or nobody could tell."""
    names = np.array(found.names)
    rough = names[~(np.array(jax.device_get(found.far)) <= 1)]
    if rough.size:
        raise ValueError(
            f"f(a theta, x) = a f(theta, x) does not hold for {', '.join(rough[:8])}, "
            "or something transforms their parameters on the way (nn.WeightNorm): "
            "their factors cannot be folded; leave them out of tuning: "
            "tune(..., exclude=...)"
        )
    blind = names[np.array(jax.device_get(found.blind))]
    if blind.size:
        raise ValueError(
            f"the batch does not reach {', '.join(blind[:8])}, so that nothing shows "
            "whether their factors can be folded; pass one that does, or leave them "
            "out of tuning: tune(..., exclude=...)"
        )
    if not float(found.apart) <= 1:
        raise ValueError(
            "the model computes something else with folded parameters, though each "
            "unit by itself bears them: something transforms them on their way to the "
            "units; train the scaled model"
        )


def _fold_call(call: Call, entry: Mapping[str, Any]) -> Any:
    """The call's outputs times a; its slot gets how far f(a theta) is from a f(theta).

    Both run from the same counts of random keys, which dropout inside a unit would
    otherwise draw anew.
    """
    body, a = PureCall(call), entry["output"].reshape(())
    counters = [scope.rng_counters for scope in _scopes(call.module)]
    before = [dict(counts) for counts in counters]

    def run(factor: Array) -> Any:
        for counts, old in zip(counters, before, strict=True):
            counts.update(old)
        times = partial(_scale_own, factor)
        lifted = nn.map_variables(body.run, "params", times, mutable=True)
        return lifted(call.module, *body.floats)

    moved, _ = run(a)
    floats, arrays = run(jnp.ones_like(a))
    outputs = [multiply(t, a) for t in floats]
    own = own_gradients(call.module.variables["params"])
    far = _relative_gap(moved, outputs) / _tolerance((*outputs, *own))
    raw = zip(own, entry["own"].values(), strict=True)
    changed = [jnp.any(seen.ravel() != given.ravel()) for seen, given in raw]
    far = jnp.where(jnp.any(jnp.array(changed)), jnp.inf, far)
    far = jnp.where(a == 1, 0, far)  # nothing to fold
    facts = {
        "calls": per_call(1, outputs),
        "far": jnp.where(jnp.isfinite(far), far, jnp.inf),
    }
    return body.build(emit(outputs, facts, entry["slot"]), arrays)


def _scopes(module: nn.Module) -> list[Any]:
    """The scopes of a module and of what it has set up, where keys are counted."""
    inner = [value for name, value in vars(module).items() if name != "parent"]
    is_module = lambda x: isinstance(x, nn.Module) and x.scope is not None
    found = [x for x in jax.tree.leaves(inner, is_leaf=is_module) if is_module(x)]
    under = [x for x in found if len(x.path) > len(module.path)]
    return [module.scope] + [scope for x in under for scope in _scopes(x)]


def _scale_own(factor: Array, variables: Any) -> Any:
    """The unit's own floating parameters times a factor."""
    return jax.tree.map_with_path(
        lambda path, v: (
            v if is_carried(path) or not is_float(v) else multiply(v, factor)
        ),
        variables,
    )


def _relative_gap(these: list[Array], those: list[Array]) -> Array:
    """The rms of the difference of some arrays over that of the latter."""
    both = [[jax.lax.stop_gradient(widen(t)) for t in x] for x in (these, those)]
    size = rms(both[1])
    gap = rms([a - b for a, b in zip(*both, strict=True)])
    return gap / jnp.where(size > 0, size, 1)


def _tolerance(arrays: Sequence[Array]) -> float:
    """For the coarsest dtype: between eps, which sums exceed, and its square root."""
    return 4 * float(max(jnp.finfo(t.dtype).eps for t in arrays)) ** 0.75
