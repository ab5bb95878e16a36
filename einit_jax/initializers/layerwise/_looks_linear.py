"""`looks_linear`: orthonormal weights, mirrored where that keeps inputs distinct."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, SupportsIndex

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from ...binding import Model, Setup, any_library, setup, sum_of_means
from ...core import (
    Stopping,
    check_not_zero,
    flatten,
    run_while_more,
    unboxed,
    usual_rules,
    with_leaves,
)
from ...distinctness import (
    amplification_with,
    check_told_apart,
    checked_amplification,
    first_choice,
)
from ...units import UnitSelection, unit_selection
from ..classic import place_like
from ._draws import draw_both, try_out
from ._layers import arrays_of
from ._passes import run_passes
from ._progress import start_progress

STOPPING = Stopping(32, 0.01)
"""Of the passes that bring outputs to their sizes."""


@any_library("params")
@usual_rules()
def looks_linear(
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
    with_report: bool = False,
) -> PyTree:
    r"""Weights with which a deep network is as good as linear, so that it learns.

    What makes deep plain networks hard to train is not the size of their signals alone:
    inputs collapse into one (ReLU), or are torn apart (tanh). Both show as

        A = [rms(t_y) / rms(s(y))] / [rms(t_x) / rms(s(x))]

    the *amplification*: t are tangents of the network along `x' - x`, where x' is the
    batch rolled by one example, and `s(v) = v - mean over the batch`. It is 1 in a
    linear network. (Where a constant drowns all differences, as behind sigmoids, they
    still grow alike: 1/8 of the factor by which the share `rms(s) / rms` of differences
    falls counts as A, where that is more.) Weights are drawn as orthonormal ones, as in
    `lsuv`; where A of the model's outputs is larger than `amplification` then, two
    things are changed:

    1. *Mirrored weights.* Where the features of a layer reach the next one through a
       function f with an even part, they are drawn as pairs `v, -v`, and read as
       `w, -w`, with orthonormal V and W of half the size: the next layer sees
       `f(z) - f(-z)`. For ReLU, leaky ReLU, GELU, SiLU and softplus that is z times a
       number: the network starts as a linear one, exactly, and bends as it learns.
    2. *Smaller outputs.* Where that is not enough, outputs before functions that are
       straighter near 0 (tanh, sin, sigmoid, ELU) get an rms q < 1, the same for all,
       found by bisecting the measured A, until it is 1.2, which is what DKS sets
       (slopes of 1.5); the next layer makes up for it. Functions whose `f(z) - f(-z)`
       is curved (ELU) get that alone, if it is enough.

    Outputs of all other layers have variance 1, as by `lsuv`; inside of a recurrent
    cell in one piece (`nn.OptimizedLSTMCell`) wide weights are larger by
    `sqrt(outputs / inputs)`, so that gates hear inputs at their size. Which features
    reach which weights is read off the model's jaxpr: through elementwise functions,
    dropout (its mean), pooling, norms, reshapes, concatenation, padding, `scan`,
    `remat`, `vmap`, grouped and depthwise convolutions. Nothing is mirrored where
    features are gates or meet other data, where a weight reads them with no such
    function before it (a residual stream), or where the model returns them. Max pooling
    is not odd, but treats both of a pair alike: inputs of opposite sign still give
    opposite outputs.
    `with_report` tells what was done, and what was left and why. Neighbouring features
    are the pairs, so that groups of channels and shards hold both; the last one of an
    odd number stays by itself. The first step of training ends the symmetry.

    Args:
        model, params, input_fn, key, batch_size, method, rngs, collections, axis_name:
            as in `tune`: `method`, `rngs` and `collections` go to `model.apply`,
            `axis_name` is the mapped axis it expects, `batch_size` the number of
            examples that `input_fn` is asked for; `input_fn(key)` draws a batch, or is
            a loader or a batch; of a `Batch` the model takes the inputs. The key draws
            the weights too.
        loss_fn: not called; where it names `labels` or `batch`, batches are pairs
            (inputs, labels).
        amplification: the largest A of the outputs that is left alone, a number from
            1. Where that, or the 1.2 of smaller outputs, cannot be reached, A is 1.1
            times the least that can.
        include, exclude: glob patterns over unit paths; other units keep what they
            have.
        with_report: whether to return `(params, LinearStart)`.

    Returns:
        A tree like params, of the same dtypes, boxes and shardings, for the unmodified
        model; biases of layers are 0.

    Raises:
        TypeError, ValueError: as in `lsuv`; a batch with nothing to tell apart (of one
            example, or of equal ones).

    Example:
        >>> import flax.linen as nn, jax, jax.numpy as jnp, einit_jax as ei
        >>> layers = [layer for _ in range(30) for layer in (nn.Dense(32), nn.relu)]
        >>> model = nn.Sequential([*layers, nn.Dense(10)])
        >>> x = jax.random.normal(jax.random.key(1), (64, 16))
        >>> params = model.init(jax.random.key(0), x)["params"]
        >>> params = ei.looks_linear(model, params, x, key=jax.random.key(2))
        >>> f = lambda x: model.apply({"params": params}, x)
        >>> bool(jnp.allclose(f(x[:32] + x[32:]), f(x[:32]) + f(x[32:]), atol=1e-4))
        True

    Source: D. Balduzzi et al., arXiv 1702.08591 (looks-linear weights); R. Burkholz and
    A. Dubatovka, arXiv 1806.06362 (initial parameter sharing); J. Martens et al., arXiv
    2110.01765 (DKS), and G. Zhang et al., arXiv 2203.08120 (TAT), whose slopes of C
    maps A stands for: they change activation functions and follow maps by hand.
    """
    limit = checked_amplification(amplification)
    if not isinstance(with_report, bool):
        raise TypeError(f"with_report is {with_report!r}, expected True or False")
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
    return _start(bound, selection, limit, with_report)


def _start(
    bound: Setup, selection: UnitSelection, limit: float, with_report: bool
) -> Any:
    """The parameters, and the report where it is asked for."""
    args, objective = bound.arrays.args, bound.objective
    drawn = draw_both(args, bound.arrays.key, objective=objective, selection=selection)
    one = partial(try_out, drawn=drawn, args=args, objective=objective)
    choice = run_while_more(one, first_choice(limit))
    check_told_apart(choice)
    params = with_leaves(args.params, drawn.arrays(choice))
    scaled = tuple(layer for layer in drawn.layers if not layer.cell)
    arrays = flatten(unboxed(params))
    if scaled:
        progress = start_progress(
            scaled,
            arrays_of(scaled, arrays),
            center=False,
            targets={p: jnp.square(size) for p, size in drawn.sizes(choice).items()},
        )
        filled = args._replace(params=params)
        progress = run_passes(progress, filled, objective=objective, stopping=STOPPING)
        progress.check(STOPPING)
        arrays |= progress.best_arrays
    leaves = flatten(unboxed(args.params))
    changed = arrays_of(drawn.layers, arrays)
    placed = {path: place_like(x, leaves[path]) for path, x in changed.items()}
    params = with_leaves(args.params, placed)
    if not with_report:
        return params
    filled = args._replace(params=params)
    after = amplification_with({}, filled, objective=objective, units=drawn.units)
    return params, drawn.report(choice, after, limit)
