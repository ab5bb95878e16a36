"""`lsuv`: layer-sequential unit variance, for all layers in one sweep."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
from flax import linen as nn
from jaxtyping import Array, PyTree

from ...core import (
    Batch,
    Path,
    Stopping,
    checked_stopping,
    draw_batches,
    flatten,
    is_concrete,
    unboxed,
    with_leaves,
)
from ...linen import Objective, Scaled, any_output, make_objective, trace_model
from ...units import UnitSelection, unit_selection
from ..classic import parameters_in, place_like
from ._layers import layers_among, sample_orthonormal
from ._passes import layer_pass
from ._progress import Progress, start_progress


def lsuv(
    model: nn.Module | Scaled,
    params: PyTree,
    input_fn: Any,
    loss_fn: Callable | None = None,
    *,
    key: jax.Array | None = None,
    target: float | Mapping[str, float] = 1.0,
    center: bool = False,
    orthogonal: bool = True,
    include: str | Sequence[str] | None = None,
    exclude: str | Sequence[str] = (),
    batch_size: int | None = None,
    method: str | Callable | None = None,
    rngs: Sequence[str] | Mapping[str, jax.Array] = (),
    collections: Mapping[str, Any] | None = None,
    axis_name: str | None = None,
    max_sweeps: int = 32,
    tolerance: float = 0.01,
) -> PyTree:
    r"""Layer-sequential unit variance: orthonormal weights, then outputs of variance 1.

    Layer by layer, on a batch, the weights W are divided by the standard deviation of
    what they make of input that is right already:

        W <- W sqrt(target / Var[f(W, x)])        Var over all elements of the output

    In the paper that is a run of the model for each layer; here one pass solves all:
    each layer hands on its output right, as it will be. A second pass checks that on
    the weights found, for the plain model.

    A *layer* is a unit (see `tune`) with weights: arrays that sum over their input or
    that are looked up (Dense, Conv, Embed, attention's projections, ...). What has
    none, such as normalization with its gains, is left as it is, and so are parameters
    that belong to no unit and units that the batch does not reach.

    - Where the output does not follow the size of the weights (weights that act twice,
      an activation inside of the unit) further passes search for the factor. An error
      tells where there is none.
    - Weights used several times (shared layers, steps of time, a table that is
      output weights too) have one factor, for the variance over all these calls; it
      takes further passes.
    - A recurrent cell in one piece (`nn.OptimizedLSTMCell`) is drawn, not scaled: its
      gates bound its output, and large weights would but close them. The gates of
      `nn.LSTMCell` are layers like others.
    - Of no variance (a head that starts at zero and is kept, constant input; a
      deviation under 1e-4 of the mean) the factor is 1; likewise of a layer that no
      gradient reaches back to (`stop_gradient`): no pass sees it.

    Args:
        model, params, input_fn, key, batch_size, method, rngs, collections, axis_name:
            as in `tune`. The key draws the weights too.
        loss_fn: not used; here for the signature that all strategies share.
        target: the variance of each layer's output (not its deviation), or patterns
            with their variances (first match; 1 for others).
        center: set biases such that each channel has mean 0 over the batch, before the
            variance is taken: `b = -mean / deviation`. That is where one bias adds to
            the last axes of the output; layers without bias are scaled only.
        orthogonal: draw weights anew, with orthonormal rows or columns (those of a
            convolution as a matrix `(window and inputs, features)`), and set biases
            to 0. False keeps what is there and scales it, biases too.
        include, exclude: glob patterns over unit paths; other units keep what they
            have.
        max_sweeps: most passes; 1 leaves the check out.
        tolerance: how far `Var / target` may be from 1, each layer by itself, and
            twice the channel means from 0, in deviations.

    Returns:
        A tree like params, of the same dtypes, boxes and shardings, for the model as it
        is.

    Raises:
        TypeError, ValueError: as in `tune`; of a target that is not positive; of
            weights that cannot be orthonormal (one axis); afterwards, of layers whose
            output cannot be brought to its variance. The message says what to type.
        FloatingPointError: an output is not finite. Under an outer `jit` nothing that
            depends on values is refused.

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
    `center` is the initialization by data of T. Salimans and D. Kingma, arXiv
    1602.07868, section 3. There it is one run of the model a layer, and embeddings,
    shared weights and recurrence are not spoken of.
    """
    del loss_fn
    _check_flags(center=center, orthogonal=orthogonal)
    meant = unit_selection(include, exclude, target)
    effort = checked_stopping(max_sweeps, tolerance)
    model = model.model if isinstance(model, Scaled) else model
    task = make_objective(model, any_output, method, axis_name)
    key = jax.random.key(0) if key is None else key
    (batch,) = draw_batches(input_fn, key, rngs, batch_size, 1)
    given = (dict(collections or {}), batch)
    drawings, progress = _start_compiled(
        task, meant, orthogonal, center, params, *given, key
    )
    params = with_leaves(params, drawings)
    if progress.layers:
        progress = _run_passes(task, effort, params, progress, *given)
        progress.refuse(effort)
    leaves = flatten(unboxed(params))
    found = {**drawings, **progress.found}
    return with_leaves(params, {p: place_like(x, leaves[p]) for p, x in found.items()})


def _check_flags(**flags: Any) -> None:
    """Raises of what is no plain yes or no."""
    for name, flag in flags.items():
        if not isinstance(flag, bool):
            raise TypeError(f"{name} is {flag!r}, expected True or False")


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _start_compiled(
    task: Objective,
    meant: UnitSelection,
    orthogonal: bool,
    center: bool,
    params: Any,
    collections: Mapping,
    batch: Batch,
    key: jax.Array,
) -> tuple[dict[Path, Array], Progress]:
    """The draws of all layers, and those that passes are to scale."""
    graph = trace_model(task, params, collections, batch)
    sites = parameters_in(graph)
    units = meant.among(graph.units)
    layers = layers_among(units, sites)
    if not layers:
        names = ", ".join(unit.name for unit in list(units)[:12])
        raise ValueError(
            f"no unit among {names} has weights to scale; include one that has"
        )
    leaves = flatten(unboxed(params))
    if orthogonal:
        leaves |= sample_orthonormal(
            layers, {site.path: site for site in sites}, leaves, key
        )
    of = lambda some: {
        path: leaves[path] for la in some for path in (*la.weights, *la.biases)
    }
    cells = tuple(layer for layer in layers if layer.cell)
    scaled = tuple(layer for layer in layers if not layer.cell)
    return of(cells), start_progress(scaled, of(scaled), center)


_layer_pass_compiled = jax.jit(layer_pass, static_argnums=(0, 1))


def _run_passes(
    task: Objective,
    effort: Stopping,
    params: Any,
    progress: Progress,
    *given: Any,
) -> Progress:
    """Passes until the variances are right.

    One after the other, from here, where that can be told; under an outer trace in a
    loop of the compiler's, in which convolutions run many times slower on a CPU.
    """
    step = lambda progress: _layer_pass_compiled(task, effort, params, progress, *given)
    if not is_concrete((progress := step(progress)).more):
        return jax.lax.while_loop(lambda progress: progress.more, step, progress)
    while progress.more:
        progress = step(progress)
    return progress
