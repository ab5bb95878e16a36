"""`fold`: the forward factors multiplied into the parameters, for the plain model."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, SupportsIndex

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from ..binding import Model, any_library, setup, sum_of_means
from ..core import (
    ModelArgs,
    Path,
    check_not_zero,
    flatten,
    is_concrete,
    is_float,
    path_str,
    unboxed,
    usual_rules,
    with_leaves,
)
from ..units import (
    Objective,
    UnitKey,
    check_foreign,
    check_measurable,
    check_missing,
    from_tree,
    owners,
    scale_by_owner,
)
from ._homogeneity import Homogeneity, fold_tolerance, judge_units, relative_gap

DEEPER, NO_ROUNDING = 100, 0.25
"""By how much rounding may grow from a unit to the outputs of a deep model, and what is
no rounding any more, in whatever dtype."""


@any_library("model")
@usual_rules()
def fold(
    model: Model,
    params: PyTree,
    scales: Mapping,
    input_fn: Any,
    *,
    key: jax.Array | None = None,
    batch_size: SupportsIndex | None = None,
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
            as in `tune`: `method`, `rngs` and `collections` go to `model.apply`,
            `axis_name` is the mapped axis it expects, `batch_size` the number of
            examples that `input_fn` is asked for; `input_fn(key)` draws inputs, or is a
            loader or a batch. A tuple is several arguments; of a `Batch` the inputs
            count.

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
    )
    check_not_zero(bound.arrays.batches)
    factors = from_tree(scales, unboxed(params))
    _check_one_factor(factors)
    args = bound.arrays.args
    folded, homogeneity = _fold_compiled(args, factors, objective=bound.objective)
    if all(map(is_concrete, jax.tree.leaves(homogeneity))):
        homogeneity.check()
    return with_leaves(params, folded)


def _check_one_factor(factors: Mapping[UnitKey, Mapping[str, Array]]) -> None:
    """Raises where methods of one module, with factors of their own, share parameters.

    Equal ones would do.
    """
    methods: dict[Path, list[UnitKey]] = {}
    for key in factors:
        methods.setdefault(key[0], []).append(key)
    for path, keys in methods.items():
        first, *others = (jnp.asarray(factors[key]["output"]) for key in keys)
        if not all(map(is_concrete, (first, *others))):
            continue
        if any(a.shape != first.shape or jnp.any(a != first) for a in others):
            names = ", ".join(path_str(*key) for key in keys)
            raise ValueError(
                f"{names} share the parameters of {path_str(path)!r} with different "
                "factors, which one set of parameters cannot hold; leave them out of "
                "tuning: tune(..., exclude=...)"
            )


@partial(jax.jit, static_argnames="objective")
def _fold_compiled(
    args: ModelArgs,
    factors: Mapping[UnitKey, Mapping[str, Array]],
    *,
    objective: Objective,
) -> tuple[dict[Path, Array], Homogeneity]:
    """The folded arrays by path, and how well each unit bears it."""
    graph = objective.trace(args)
    check_measurable(graph.units)
    check_missing(graph, factors)
    check_foreign(graph, factors)
    outputs = {unit.key: factors[unit.key]["output"] for unit in graph.units}

    with jax.default_matmul_precision("highest"):
        judged = partial(judge_units, objective, graph.units, args, outputs)
        tuned = judged()
        flat = flatten(unboxed(args.params)).items()
        leaves = {path: leaf for path, leaf in flat if is_float(leaf)}
        by_path = {path: factor for (path, _), factor in outputs.items()}
        owned = owners(args.params, graph.units)
        scaled = scale_by_owner(leaves.values(), owned, by_path)
        folded = dict(zip(leaves, scaled, strict=True))
        plainly = judged(folded=folded)
    rounding = DEEPER * fold_tolerance([*plainly.outputs, *leaves.values()])
    allowed = min(rounding, NO_ROUNDING)
    found = {k: [run.statistics[k] for run in (tuned, plainly)] for k in outputs}
    unseen = lambda key: (found[key][0]["calls"] == 0) & (outputs[key] != 1)
    far = lambda key: jnp.max(jnp.stack([jnp.max(own["far"]) for own in found[key]]))
    return folded, Homogeneity(
        names=tuple(unit.name for unit in graph.units),
        far=[far(unit.key) for unit in graph.units],
        blind=[jnp.any(unseen(unit.key)) for unit in graph.units],
        apart=relative_gap(plainly.outputs, tuned.outputs) / allowed,
    )
