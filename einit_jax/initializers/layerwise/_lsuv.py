"""`lsuv`: layer-sequential unit variance, for all layers in one pass."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, SupportsIndex

import jax
from jax.typing import ArrayLike
from jaxtyping import Array, PyTree

from ...binding import Model, any_library, setup, sum_of_means
from ...core import (
    ModelArgs,
    Path,
    check_not_zero,
    checked_stopping,
    flatten,
    unboxed,
    usual_rules,
    with_leaves,
)
from ...units import Objective, UnitSelection, check_measurable, unit_selection
from ..classic import parameters_in, place_like
from ._layers import arrays_of, layers_among, sample_orthonormal
from ._passes import run_passes
from ._progress import Progress, start_progress


@any_library("params")
@usual_rules()
def lsuv(
    model: Model,
    params: PyTree,
    input_fn: Any,
    loss_fn: Callable | None = None,
    *,
    key: jax.Array | None = None,
    target: ArrayLike | Mapping[str, ArrayLike | Sequence[float]] = 1.0,
    center: bool = False,
    orthogonal: bool = True,
    include: str | Sequence[str] | None = None,
    exclude: str | Sequence[str] = (),
    batch_size: SupportsIndex | None = None,
    method: str | Callable | None = None,
    rngs: Sequence[str] | Mapping[str, jax.Array] = (),
    collections: Mapping[str, Any] | None = None,
    axis_name: str | None = None,
    max_sweeps: SupportsIndex = 32,
    tolerance: float = 0.01,
) -> PyTree:
    r"""Layer-sequential unit variance: orthonormal weights, then outputs of variance 1.

    Layer by layer, on a batch, the weights W are divided by the standard deviation of
    the output that they give for input that is right already:

        W <- W sqrt(target / Var[f(W, x)])        Var over all elements of the output

    In the paper that is a run of the model for each layer; here one pass solves all
    layers, because each hands on its output as it will be. A second pass checks the
    result with the new weights in the plain model.

    A *layer* is a unit (see `tune`) with weights: arrays that sum over their input or
    that are looked up (Dense, Conv, Embed, attention's projections, ...). Units without
    weights, such as normalization with its gains, are left as they are; so are
    parameters that belong to no unit, and units that the batch does not reach.

    - Where the output does not follow the size of the weights (weights that act twice,
      an activation inside of the unit) further passes search for the factor. An error
      names the units for which there is none.
    - Weights used several times (shared layers, time steps, a table that serves as
      output weights too) have one factor, for the variance over all these calls; it
      takes further passes.
    - A recurrent cell in one piece (`nn.OptimizedLSTMCell`) is drawn, not scaled: its
      gates bound its output, and large weights would only close them. The gates of
      `nn.LSTMCell` are layers like others.
    - Where an output has no variance (a head that starts at zero and is kept, constant
      input; a deviation under 1e-4 of the mean) the factor is 1; likewise for a layer
      that no gradient reaches back to (`stop_gradient`): no pass sees it.

    Args:
        model, params, input_fn, key, batch_size, method, rngs, collections, axis_name:
            as in `tune`: `method`, `rngs` and `collections` go to `model.apply`,
            `axis_name` is the mapped axis it expects, `batch_size` the number of
            examples that `input_fn` is asked for; `input_fn(key)` draws a batch, or is
            a loader or a batch; of a `Batch` the model takes the inputs. The key draws
            the weights too.
        loss_fn: not called; where it names `labels` or `batch`, batches are pairs
            (inputs, labels).
        target: the variance of each layer's output (not its deviation), or patterns
            with their variances (first match; 1 for others); for layers under
            `nn.scan` also an array with one for each.
        center: set biases such that each channel has mean 0 over the batch, before the
            variance is taken: `b = -mean / deviation`. This applies where one bias adds
            to the last axes of the output; other layers are scaled only.
        orthogonal: draw weights anew, with orthonormal rows or columns (those of a
            convolution as a matrix `(window and inputs, features)`), and set biases
            to 0. False keeps what is there and scales it, biases too.
        include, exclude: glob patterns over unit paths; other units keep what they
            have.
        max_sweeps: the largest number of passes; 1 leaves the check out.
        tolerance: how far `Var / target` may be from 1, for each layer by itself, and
            twice the channel means from 0, in deviations.

    Returns:
        A tree like params, of the same dtypes, boxes and shardings, for the unmodified
        model.

    Raises:
        TypeError, ValueError: as in `tune`; a target is not positive; weights cannot be
            orthonormal (one axis); afterwards, the output of some layers cannot be
            brought to its variance. The message says what to type.
        FloatingPointError: an output is not finite. Under an outer `jit` nothing that
            depends on values raises.

    Example:
        >>> import flax.linen as nn, jax, jax.numpy as jnp, einit_jax as ei
        >>> model = nn.Sequential([nn.Dense(32), nn.relu, nn.Dense(16)])
        >>> x = jax.random.normal(jax.random.key(1), (64, 8))
        >>> params = model.init(jax.random.key(0), x)["params"]
        >>> params = ei.lsuv(model, params, x, key=jax.random.key(2))
        >>> print(f"{model.apply({'params': params}, x).var():.4f}")
        1.0000

    Source: D. Mishkin and J. Matas, arXiv 1511.06422, section 3 (algorithm 1; there
    until `|Var - 1| < 0.1`), with orthonormal draws of A. Saxe et al., arXiv 1312.6120;
    `center` is the data-dependent initialization of T. Salimans and D. Kingma, arXiv
    1602.07868, section 3. There it takes one run of the model for each layer, and
    embeddings, shared weights and recurrence are not treated.
    """
    _check_flags(center=center, orthogonal=orthogonal)
    selection = unit_selection(include, exclude, target)
    stopping = checked_stopping(max_sweeps, tolerance)
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
    args = bound.arrays.args
    params = args.params
    sampled, progress = _start_compiled(
        args,
        bound.arrays.key,
        objective=bound.objective,
        selection=selection,
        orthogonal=orthogonal,
        center=center,
    )
    params = with_leaves(params, sampled)
    if progress.layers:
        progress = run_passes(
            progress,
            args._replace(params=params),
            objective=bound.objective,
            stopping=stopping,
        )
        progress.check(stopping)
    leaves, arrays = flatten(unboxed(params)), {**sampled, **progress.best_arrays}
    placed = {path: place_like(x, leaves[path]) for path, x in arrays.items()}
    return with_leaves(params, placed)


def _check_flags(**flags: Any) -> None:
    """Raises where a flag is neither True nor False."""
    for name, flag in flags.items():
        if not isinstance(flag, bool):
            raise TypeError(f"{name} is {flag!r}, expected True or False")


@partial(jax.jit, static_argnames=("objective", "selection", "orthogonal", "center"))
def _start_compiled(
    args: ModelArgs,
    key: jax.Array,
    *,
    objective: Objective,
    selection: UnitSelection,
    orthogonal: bool,
    center: bool,
) -> tuple[dict[Path, Array], Progress]:
    """The arrays of cells, which are not scaled, and the start of the passes."""
    graph = objective.trace(args)
    check_measurable(graph.units)
    parameters = parameters_in(graph)
    units = selection.among(graph.units)
    layers = layers_among(units, parameters)
    if not layers:
        names = ", ".join(unit.name for unit in list(units)[:12])
        raise ValueError(
            f"no unit among {names} has weights to scale; include one that has"
        )
    leaves = flatten(unboxed(args.params))
    if orthogonal:
        by_path = {parameter.path: parameter for parameter in parameters}
        leaves |= sample_orthonormal(layers, by_path, leaves, key)
    cells = tuple(layer for layer in layers if layer.cell)
    scaled = tuple(layer for layer in layers if not layer.cell)
    targets = {layer.path: units[layer.units[0]] for layer in scaled}
    arrays = arrays_of(scaled, leaves)
    progress = start_progress(scaled, arrays, center=center, targets=targets)
    return arrays_of(cells, leaves), progress
