"""`unit_params`: arrays of unit size, so that one learning rate suits every weight."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.nn import initializers
from jaxtyping import Array, PyTree

from ...binding import any_library
from ...core import (
    Path,
    as_patterns,
    broadcast_per_layer,
    check_arrays,
    checked_key,
    fits_layers,
    flatten,
    inverse,
    is_boxed,
    is_float,
    layer_axes,
    layers_first,
    lifted_axes_of,
    match_patterns,
    multiply,
    owner_of,
    path_key,
    path_str,
    rms,
    unboxed,
    usual_rules,
    with_leaves,
)
from ...units import from_tree
from ._parameters import role_of

UNIT_DRAWS = ("normal", "truncated_normal", "uniform", "orthogonal")


@any_library("params")
@usual_rules()
def unit_params(
    params: PyTree,
    key: jax.Array | None = None,
    *,
    draw: Literal["normal", "truncated_normal", "uniform", "orthogonal"] = "normal",
    keep: bool = False,
    gains: bool = False,
    exclude: str | Sequence[str] = (),
    scales: Mapping | None = None,
) -> PyTree:
    r"""Parameters of unit size: weights of rms 1, biases 0.

    `W_ij ~ N(0, 1)`, whatever the fans: with `tune`, which finds the forward factors
    `a ~ 1 / sqrt(fan_in)`, all weights are of one size, and so one step size suits them
    all. Tune after, not before.

    The name of an array, the last of its path, tells what it is: a bias (`bias`,
    `*_bias`, `bias_*`, `b`, `beta`), a gain (`scale`, `*_scale`, `gain`, `g`, `gamma`),
    else a weight. Arrays with fewer than two axes that are none of these, and integers,
    are left as they are.

    Args:
        params: a pytree of arrays, boxed or not; not changed.
        key: a random key; every array draws by a key of its own path.
        draw: "normal", "truncated_normal" (at two standard deviations), "uniform" on
            +-sqrt(3), or "orthogonal" (times the square root of its longer side; all
            axes but the last count as one).
        keep: rescale the weights that are there to rms 1 instead of drawing new ones;
            zeros, biases and gains stay.
        gains: set gains to 1; by default they stay.
        exclude: glob patterns of array paths that stay (`"*/pos_embedding"`).
        scales: from `tune`, or `scaled(model).init`: tells which axes count the layers
            of `nn.scan` and `nn.vmap`, so that each layer is drawn or rescaled by
            itself. Needed there for "orthogonal" and for `keep`.

    Returns:
        The same tree with other values, in the same dtypes.

    Raises:
        TypeError, ValueError: unknown `draw`, no key to draw with, a pattern without a
            match, params that are no arrays, or scales of another model.

    Example:
        >>> import flax.linen as nn, jax, jax.numpy as jnp, einit_jax as ei
        >>> params = nn.Dense(256).init(jax.random.key(0), jnp.ones((1, 64)))["params"]
        >>> unit = ei.unit_params(params, jax.random.key(1))
        >>> print(f"{unit['kernel'].std():.2f}", unit["bias"].max())
        1.00 0.0

    Source: P. Bement, empirical_init 0.0.2 (2023), draws weights from N(0, 1) and sets
    biases to 0; "orthogonal" is from Saxe et al., arXiv 1312.6120.
    """
    if draw not in UNIT_DRAWS:
        raise ValueError(
            f"draw={draw!r} is not known; expected {', '.join(UNIT_DRAWS)}"
        )
    if key is None and not keep:
        raise ValueError("unit_params needs a key to draw with, or keep=True")
    if key is not None:
        checked_key(key)
    check_arrays(params)
    leaves = flatten(params)
    paths_by_name = {path_str(path): path for path in leaves}
    patterns = dict.fromkeys(as_patterns(exclude, "exclude"))
    excluded = match_patterns(patterns, paths_by_name, what="array")
    lifted_axes = _lifted_axes_by_path(scales, params)
    entries = {}
    for path, leaf in leaves.items():
        value = leaf.unbox() if is_boxed(leaf) else leaf
        if path_str(path) in excluded or not is_float(value) or not value.size:
            continue
        own_axes = owner_of(path, lifted_axes, ())
        if not fits_layers(value.shape, own_axes):
            raise ValueError(
                f"scales have layers {tuple(n for n in own_axes if n)} that "
                f"{path_str(path)!r}, of shape {value.shape}, has not; pass scales of "
                "this model"
            )
        role = role_of(path, value.ndim - sum(n > 0 for n in own_axes))
        if role == "weight" and keep:
            entries[path] = _rescale_weight(value, own_axes)
        elif role == "weight":
            assert key is not None
            entries[path] = _draw_weight(path_key(key, path), draw, value, own_axes)
        elif role == "bias" and not keep:
            entries[path] = jnp.zeros_like(value)
        elif role == "gain" and gains and not keep:
            entries[path] = jnp.ones_like(value)
    return with_leaves(params, entries)


def _rescale_weight(weight: Array, lifted_axes: tuple[int, ...]) -> Array:
    """The weight at rms 1 in each layer; zeros stay."""
    layers = len(layer_axes(weight.shape, lifted_axes))
    factor = inverse(rms([layers_first(weight, lifted_axes)], keep=layers))
    return multiply(weight, broadcast_per_layer(factor, weight.shape, lifted_axes))


def _draw_weight(
    key: jax.Array, draw: str, old: Array, lifted_axes: tuple[int, ...]
) -> Array:
    """A weight of rms 1, in the shape and dtype of an old one."""
    if draw == "orthogonal":
        return _draw_orthogonal(key, old, lifted_axes)
    # with a fan-in of 1 the variance is 1
    distribution: Any = draw
    init = initializers.variance_scaling(1.0, "fan_in", distribution)
    return init(key, (1, old.size), old.dtype).reshape(old.shape)


def _draw_orthogonal(key: jax.Array, old: Array, lifted_axes: tuple[int, ...]) -> Array:
    """An orthogonal matrix for each layer, all axes but the last one taken as one."""
    layers = layer_axes(old.shape, lifted_axes)
    sizes = layers_first(old, lifted_axes).shape
    outer, shape = sizes[: len(layers)], sizes[len(layers) :]
    longer = max(shape[-1], math.prod(shape[:-1]))
    init = initializers.orthogonal(longer**0.5)
    keys = jax.random.split(key, math.prod(outer))
    each = jax.vmap(lambda k: init(k, shape, old.dtype))(keys)
    return jnp.moveaxis(each.reshape(*outer, *shape), range(len(layers)), layers)


def _lifted_axes_by_path(
    scales: Mapping | None, params: PyTree
) -> dict[Path, tuple[int, ...]]:
    """The lifted axes of each unit, by path, as far as scales tell."""
    if scales is None:
        return {}
    return {
        path: lifted_axes_of(jnp.shape(own["output"]))
        for (path, _), own in from_tree(scales, unboxed(params)).items()
    }
