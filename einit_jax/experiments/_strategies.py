"""What a strategy is: a way for a model to start, as it is, by name or by function."""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import optax
from flax import linen as nn
from jaxtyping import PyTree

from ..core import flatten, path_str, unboxed
from ..initializers.classic import PRESETS, initialize, unit_params
from ..initializers.layerwise import lsuv
from ..initializers.signal_propagation import autoinit
from ..reporting import difference
from ..tuning import tune
from ..units import from_tree

AS_IT_IS = "as it is"


DEFAULT_PRESETS = ("pytorch", "keras", "he_normal")
"""Presets that are compared where nobody says which."""


Strategy = Callable | str | None


class StartPoint(NamedTuple):
    """Where training starts: parameters, and the scales of a tuned model."""

    params: PyTree
    scales: Mapping | None = None


def default_strategies(unit: optax.GradientTransformation) -> dict[str, Strategy]:
    """What `compare` compares where it is not told; `unit` is at learning rate 1.

    Not `metainit` and `gradinit`, which take longer than the training.
    """
    redrawn = functools.partial(_unit_tuned, optimizer=unit)
    found: dict[str, Strategy] = {
        AS_IT_IS: None,
        **{name: name for name in DEFAULT_PRESETS},
    }
    found |= {"lsuv": lsuv, "autoinit": autoinit, "tune": tune}
    return found | {"unit_params, tune": redrawn}


def preset_strategy(name: str) -> Callable:
    """The strategy of a preset of `initialize`.

    Raises:
        ValueError: there is none.
    """
    if name not in PRESETS:
        raise ValueError(
            f"{name!r} is no preset; the presets are: {', '.join(PRESETS)}; or pass a "
            "function (model, params, input_fn, loss_fn, *, key) that returns "
            "parameters"
        )
    return functools.partial(_preset_params, name=name)


def _preset_params(
    model: nn.Module,
    params: PyTree,
    input_fn: Any,
    loss_fn: Callable,
    *,
    key: jax.Array,
    name: str,
    **options: Any,
) -> PyTree:
    given = {"model": model, "input_fn": input_fn, **options}
    return initialize(params, name, key, **given)


def resolve_strategies(
    strategies: Any,
    options: Mapping[str, Any],
    unit: optax.GradientTransformation,
) -> dict[str, Callable | None]:
    """Each strategy as a function of model, params, input_fn, loss_fn and key.

    `tune` measures the steps of the optimizer in use, unless it is told another one.

    Raises:
        TypeError: one is no strategy, or does not take what is given.
        ValueError: there are none, or no preset of a name.
    """
    if not isinstance(strategies, Mapping):
        raise TypeError(
            f"strategies is a {type(strategies).__name__}, expected a mapping of names "
            "to strategies: {'tuned': ei.tune, 'mine': my_function}"
        )
    if not strategies:
        raise ValueError("strategies are empty, expected one or more")
    return {
        name: _bind_strategy(name, s, options, unit) for name, s in strategies.items()
    }


def _bind_strategy(
    name: str,
    strategy: Any,
    options: Mapping[str, Any],
    unit: optax.GradientTransformation,
) -> Callable | None:
    if strategy is None:
        return None
    call = preset_strategy(strategy) if isinstance(strategy, str) else strategy
    if not callable(call) or isinstance(call, nn.Module):
        raise TypeError(
            f"strategy {name!r} is a {type(call).__name__}, expected a function, a "
            "preset's name, or None for the parameters as they are"
        )
    if getattr(call, "func", call) is tune and "optimizer" not in _keywords(call):
        call = functools.partial(call, optimizer=unit)
    return functools.partial(call, **_accepted_options(name, call, options))


def _keywords(call: Any) -> Mapping[str, Any]:
    return getattr(call, "keywords", {})


def _accepted_options(
    name: str, call: Callable, options: Mapping[str, Any]
) -> dict[str, Any]:
    """The options that are not bound already.

    Raises:
        TypeError: the function takes other arguments.
    """
    given = {k: v for k, v in options.items() if k not in _keywords(call)}
    try:
        signature = inspect.signature(call)
    except ValueError:  # nothing is known of it
        return given
    try:
        signature.bind(*range(4), key=None, **given)
    except TypeError as error:
        raise TypeError(
            f"strategy {name!r} takes {signature}, expected (model, params, input_fn, "
            f"loss_fn, *, {', '.join(('key', *given))}): {error}"
        ) from None
    return given


def start_point(name: str, made: Any, params: Mapping) -> StartPoint:
    """Where a strategy that returned `made` has the model start.

    Raises:
        TypeError: it is neither parameters like `params`, nor scales, nor both.
    """
    if isinstance(made, Mapping) and set(made) == {"params", "scales"}:
        start = StartPoint(made["params"], made["scales"])
    elif isinstance(made, Mapping) and _is_scales(made, params):
        start = StartPoint(params, made)
    else:
        start = StartPoint(made)
    expected, found = _shapes(params), _shapes(start.params)
    if expected == found:
        return start
    differ = difference(expected, found) or _first_other(expected, found)
    raise TypeError(
        f"strategy {name!r} returned other parameters: {differ}; expected parameters "
        "like params, scales from ei.tune, or {'params': ..., 'scales': ...}"
    )


def _is_scales(made: Mapping, params: Mapping) -> bool:
    try:
        return bool(from_tree(made, unboxed(params)))
    except ValueError:
        return False


def _shapes(tree: Any) -> dict[str, str]:
    if not isinstance(tree, Mapping):
        return {f"a {type(tree).__name__}": ""}
    leaves = flatten(unboxed(tree)).items()
    return {path_str(path): str(jax.typeof(leaf)) for path, leaf in leaves}


def _first_other(expected: Mapping[str, str], found: Mapping[str, str]) -> str:
    path = next(p for p in expected if expected[p] != found[p])
    return f"{path} is {found[path]}, not {expected[path]}"


def _unit_tuned(
    model: nn.Module,
    params: PyTree,
    input_fn: Any,
    loss_fn: Callable,
    *,
    key: jax.Array,
    **options: Any,
) -> dict[str, Any]:
    """Weights of rms 1, tuned."""
    params = unit_params(params, key)
    scales = tune(model, params, input_fn, loss_fn, key=key, **options)
    return {"params": params, "scales": scales}
