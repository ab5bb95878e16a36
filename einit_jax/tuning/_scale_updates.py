"""`scale_updates`: any optimizer's updates times the factors `update` of the units."""

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

from ..core import (
    Path,
    as_number,
    broadcast_per_layer,
    describe,
    fits_layers,
    is_concrete,
    is_float,
    key_path,
    lifted_axes_of,
    multiply,
    owner_of,
    path_str,
)
from ..units import UPDATE, may_be_method


class ScaleUpdatesState(NamedTuple):
    """The factors that updates are multiplied by, as float32."""

    factors: PyTree
    """The factor `update` of each unit, nested as in `scales`."""
    loose: Any
    """The factor of all parameters that belong to no unit, in the place of theirs."""


def scale_updates(
    scales: Mapping[str, Any], *, loose: Any = None
) -> optax.GradientTransformation:
    r"""Multiplies each unit's updates by its factor `update`: an optax transformation.

    `delta theta = -lr * update * u(theta_bar)`, for an optimizer u at learning rate 1:
    with the factors that `tune(..., optimizer=u)` measures, no unit's output moves by
    more than 1 per unit of learning rate at the first step, whatever u makes of the
    size of its gradients. Under `nn.scan` and `nn.vmap` over layers each layer has its
    own factor, and so has each raw parameter, which belongs to no unit. What has none
    (a unit or a parameter that was left out of tuning) has updates as they are.

    It comes last, after the optimizer, and works wherever optax takes a transformation:
    in `chain`, `multi_transform`, `masked` (arrays masked out are left alone),
    `inject_hyperparams`, `MultiSteps`, under schedules. The factors are part of its
    state, as float32, so that they are saved, sharded and donated with it, and so that
    a train state made inside of `jit` can leave it.

    Weight decay comes behind it: `optax.chain(optax.scale_by_adam(),
    scale_updates(scales), optax.add_decayed_weights(decay),
    optax.scale_by_learning_rate(rate))`. Inside of `optax.adamw`, before it, decay is
    multiplied by `update` as well, which falls with the width, and so the best decay
    rises with it; behind, one decay serves all widths.

    Args:
        scales: what `tune` returned with `optimizer=...`.
        loose: a number, the factor of all parameters that no unit owns (a raw class
            token), in the place of those that `tune` has measured for them.

    Raises:
        TypeError, ValueError: scales have no factors `update`, or (from `init` and
            `update`) belong to no module of the parameters, or to other layers; loose
            is no number that is finite and not negative.

    Example:
        >>> import flax.linen as nn, jax, jax.numpy as jnp, optax, einit_jax as ei
        >>> model = nn.Sequential([nn.Dense(32), jnp.tanh, nn.Dense(4)])
        >>> x = jax.random.normal(jax.random.key(1), (64, 8))
        >>> params = model.init(jax.random.key(0), x)["params"]
        >>> loss = lambda y: jnp.mean(jnp.square(y - 1))
        >>> scales = ei.tune(model, params, x, loss, optimizer=optax.adam(1.0))
        >>> optimizer = optax.chain(optax.adam(3e-3), ei.scale_updates(scales))
        >>> state = optimizer.init(params)

    Source: ours; the aim, updates that move every layer at every width alike, is that
    of mup (Yang et al., arXiv 2203.03466), reached by measuring.
    """
    factors = _only_updates(scales)
    if loose is not None:
        _check_number(loose)

    def init(params: PyTree) -> ScaleUpdatesState:
        _check_layers(_factors_by_module(factors, params), params)
        # copies: a state that is donated must not share buffers with the scales
        copied = jax.tree.map(partial(jnp.array, copy=True), factors)
        given = None if loose is None else jnp.array(loose, jnp.float32)
        return ScaleUpdatesState(copied, given)

    def update(updates: PyTree, state: Any, params: Any = None) -> Any:
        del params
        by_module = _factors_by_module(state.factors, updates)
        _check_layers(by_module, updates)

        def scale(path: tuple[Any, ...], leaf: Any) -> Any:
            own = key_path(path)
            factor = owner_of(own, by_module)
            if state.loose is not None and (factor is None or own in by_module):
                factor = state.loose
            if factor is None or not is_float(leaf):
                return leaf
            return _scale_update(leaf, factor)

        return jax.tree.map_with_path(scale, updates), state

    return optax.GradientTransformation(init, update)


def _only_updates(scales: Any, path: Path = ()) -> dict[str, Any]:
    """The factors `update` alone, nested as `scales` are.

    Raises:
        TypeError: scales are no nested mapping.
        ValueError: a unit has no factor `update`.
    """
    if not isinstance(scales, Mapping):
        raise TypeError(
            f"scales are a {type(scales).__name__}, expected the dict that tune "
            "returned"
        )
    leaves = {
        name: child for name, child in scales.items() if not isinstance(child, Mapping)
    }
    if (leaves or not scales) and UPDATE not in leaves:
        raise ValueError(
            f"scales at {path_str(path)!r} have no factor {UPDATE!r}; tune with the "
            "optimizer: ei.tune(..., optimizer=optax.adam(1.0))"
        )
    own = {UPDATE: jnp.asarray(leaves[UPDATE])} if UPDATE in leaves else {}
    children = {
        name: _only_updates(child, (*path, name))
        for name, child in scales.items()
        if name not in leaves
    }
    return own | children


def _check_number(loose: object) -> None:
    """Raises where `loose` is no finite number, as far as it is known."""
    if isinstance(loose, jax.Array) and not loose.shape and not is_concrete(loose):
        return
    number = as_number(loose)
    if number is None:
        raise TypeError(f"loose is {describe(loose)}, expected a number")
    if not 0 <= number < float("inf"):
        raise ValueError(
            f"loose is {number}, expected a finite number, 0 or more: 1 leaves the "
            "updates of raw parameters as they are"
        )


def _factors_by_module(
    factors: Mapping[str, Any], updates: PyTree, path: Path = ()
) -> dict[Path, Array]:
    """The factor of each module; the methods of a module have one factor in common.

    Modules that a mask has taken out of the updates are left out.

    Args:
        factors: the factors `update`, nested as in `scales`.
        updates: updates or parameters, nested as parameters are.
        path: where in the model both are.

    Raises:
        ValueError: a factor belongs to no module.
    """
    by_module = {path: factors[UPDATE]} if UPDATE in factors else {}
    methods, foreign = [], []
    # modules in a list of NNX are numbered
    inside = (
        {str(name): child for name, child in updates.items()}
        if isinstance(updates, Mapping)
        else {}
    )
    for name, child in factors.items():
        inner = inside.get(name)
        if isinstance(inner, optax.MaskedNode) or name == UPDATE:
            continue
        if inner is not None and not isinstance(inner, Mapping):
            by_module |= _of_raw(child, (*path, name))
        elif isinstance(inner, Mapping):
            by_module |= _factors_by_module(child, inner, (*path, name))
        elif set(child) == {UPDATE} and may_be_method(name, updates, UPDATE in factors):
            # no module of the updates, so a method of the module at `path`
            by_module.setdefault(path, child[UPDATE])
            methods.append(name)
        else:
            foreign.append(name)
    if methods and set(by_module) != {path}:  # a unit has no units below it
        foreign += methods
    if foreign:
        raise ValueError(
            f"scales have an entry {path_str((*path, foreign[0]))!r}, which is no "
            "module of these updates: pass updates nested as params are, and scales "
            "that were tuned for this model"
        )
    return by_module


def _of_raw(node: Mapping[str, Any], path: Path) -> dict[Path, Array]:
    """The factor of a raw parameter, or those of a pytree of them, by path."""
    found = {path: node[UPDATE]} if UPDATE in node else {}
    for name, child in node.items():
        found |= _of_raw(child, (*path, name)) if isinstance(child, Mapping) else {}
    return found


def _check_layers(by_module: Mapping[Path, Array], updates: PyTree) -> None:
    """Raises where a factor is of other layers than an array of its module."""
    for path, leaf in jax.tree.flatten_with_path(updates)[0]:
        factor = owner_of(key_path(path), by_module)
        if factor is None or not is_float(leaf):
            continue
        if not fits_layers(leaf.shape, lifted_axes_of(factor.shape)):
            raise ValueError(
                f"scales have the factors {describe(factor)} for layers that "
                f"{path_str(key_path(path))!r}, of shape {leaf.shape}, has not; pass "
                "scales that were tuned for this model"
            )


def _scale_update(leaf: Array, factor: Array) -> Array:
    """A parameter's update times the factor of its unit, layer by layer."""
    lifted_axes = lifted_axes_of(factor.shape)
    return multiply(leaf, broadcast_per_layer(factor, leaf.shape, lifted_axes))
