"""The scaled model: each unit's factors in force, `y = G_c(a f(theta, G_b(x)))`."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from ..core import (
    Params,
    Path,
    broadcast_per_layer,
    flatten,
    lifted_axes_of,
    multiply,
    path_str,
    scale_gradient,
    unboxed,
    with_leaves,
)
from ._protocols import Interception, UnitCall
from ._scales import FACTORS
from ._unit import UnitKey


def scaling(
    factors: Mapping[UnitKey, Mapping[str, Any]], unseen: set[UnitKey] | None = None
) -> Interception:
    """The interception that puts factors into force.

    Calls of a unit through a method that has no factors are added to `unseen`, for the
    caller to tell whether they should have some.
    """

    def otherwise(call: UnitCall) -> None:
        check_methods(call)
        if unseen is not None and call.has_data():
            unseen.add((call.path, call.method))

    return Interception("scale", factors, _scaled_call, otherwise)


def _scaled_call(call: UnitCall, factors: Mapping[str, jax.Array]) -> Any:
    """`G_c(a f(G_b(x)))` on the floating inputs and outputs of a call."""
    check_methods(call)
    a, b, c = (jnp.reshape(factors[name], ()) for name in FACTORS)
    outputs = call.proceed([scale_gradient(x, b) for x in call.inputs])
    return call.finish([scale_gradient(multiply(t, a), c) for t in outputs])


def scale_raw_gradients(
    params: Params, raw: Mapping[Path, Mapping[str, Any]]
) -> Params:
    """The parameters, their gradients times the factors `output_grad` of raw ones."""
    factors = {p: own["output_grad"] for p, own in raw.items() if "output_grad" in own}
    if not factors:
        return params
    leaves, found = flatten(unboxed(params)), {}
    for path, factor in factors.items():
        found[path] = scale_raw_gradient(leaves[path], jnp.asarray(factor))
    return with_leaves(params, found)


def scale_raw_gradient(leaf: jax.Array, factor: jax.Array) -> jax.Array:
    """A raw parameter's array, its gradient times the factor of each layer."""
    axes = lifted_axes_of(factor.shape)
    return scale_gradient(leaf, broadcast_per_layer(factor, leaf.shape, axes))


def check_methods(
    call: UnitCall, *, carried: str = "scales", remedy: str = "tune this model"
) -> None:
    """Raises where an entry is of something that is no method of the module.

    `carried` names what the entries are of, and `remedy` tells what to do instead.
    """
    foreign = [name for name in call.entries if not call.has_method(name)]
    if foreign:
        raise ValueError(
            f"{carried} have an entry {path_str(call.path, foreign[0])!r}: neither a "
            f"module of these params nor a method; {remedy}"
        )
