"""Strategies: ways for a model to start, as it is, by a name or by a function."""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
from jaxtyping import PyTree

from ..binding import Model, is_model_type, setup, sum_of_means
from ..core import Params, flatten, path_str, unboxed
from ..initializers.classic import PRESETS, initialize, unit_params
from ..initializers.layerwise import looks_linear, lsuv
from ..initializers.signal_propagation import autoinit
from ..reporting import difference
from ..tuning import tune
from ..units import from_tree

AS_IT_IS = "as it is"


DEFAULT_PRESETS = ("pytorch", "keras", "he_normal")
"""The presets among the strategies that are compared by default."""


Strategy = Callable | str | None
"""A function, the name of a preset, or None for the parameters as they are."""


class StartPoint(NamedTuple):
    """Where training starts: parameters, and the scales of a tuned model."""

    params: PyTree
    scales: Mapping[str, Any] | None = None


def default_strategies(optimizer: Callable) -> dict[str, Strategy]:
    """What `compare` compares by default; `optimizer` is for `tune`.

    Not `metainit` and `gradinit`, which take longer than the training.
    """
    return {
        AS_IT_IS: None,
        **{name: name for name in DEFAULT_PRESETS},
        "lsuv": lsuv,
        "autoinit": autoinit,
        "tune": tune,
        "looks_linear, tune": functools.partial(_linear_tuned, optimizer=optimizer),
        "unit_params, tune": functools.partial(_unit_tuned, optimizer=optimizer),
    }


def preset_strategy(name: str) -> Callable:
    """The strategy that draws the parameters by a preset of `initialize`.

    Raises:
        ValueError: there is no such preset.
    """
    if name not in PRESETS:
        raise ValueError(
            f"{name!r} is no preset; the presets are: {', '.join(PRESETS)}; or pass a "
            "function (model, params, input_fn, loss_fn, *, key) that returns "
            "parameters"
        )
    return functools.partial(_preset_params, name=name)


def _preset_params(
    model: Model,
    params: PyTree,
    input_fn: Any,
    loss_fn: Callable,
    *,
    key: jax.Array,
    name: str,
    **options: Any,
) -> PyTree:
    """Parameters by a preset, which needs no loss, and of inputs only the shapes."""
    bound = setup(model, params, input_fn, sum_of_means, like=loss_fn, **options)
    options = {n: v for n, v in options.items() if n != "batch_size"}
    inside = {"model": model, "input_fn": bound.arrays.args.batch.inputs}
    return initialize(params, name, key, **inside, **options)


def resolve_strategies(
    strategies: Any,
    options: Mapping[str, Any],
    optimizer: Callable,
) -> dict[str, Callable | None]:
    """Each strategy as a function of model, params, input_fn, loss_fn and key.

    Functions get the options that they have no value for; `tune` gets the optimizer, a
    function of the learning rate, besides.

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
        name: _bind_strategy(name, strategy, options, optimizer)
        for name, strategy in strategies.items()
    }


def _bind_strategy(
    name: str,
    strategy: Any,
    options: Mapping[str, Any],
    optimizer: Callable,
) -> Callable | None:
    """A strategy with its options bound; None for the parameters as they are."""
    if strategy is None:
        return None
    call = preset_strategy(strategy) if isinstance(strategy, str) else strategy
    if not callable(call) or is_model_type(type(call)):
        raise TypeError(
            f"strategy {name!r} is a {type(call).__name__}, expected a function, a "
            "preset's name, or None for the parameters as they are"
        )
    if getattr(call, "func", call) is tune and "optimizer" not in _keywords(call):
        call = functools.partial(call, optimizer=optimizer)
    return functools.partial(call, **_accepted_options(name, call, options))


def _keywords(call: Any) -> Mapping[str, Any]:
    """The keywords that a `functools.partial` has bound."""
    return getattr(call, "keywords", {})


def _accepted_options(
    name: str, call: Callable, options: Mapping[str, Any]
) -> dict[str, Any]:
    """The options that are not bound already.

    Raises:
        TypeError: the function takes other arguments.
    """
    accepted = {k: v for k, v in options.items() if k not in _keywords(call)}
    try:
        signature = inspect.signature(call)
    except ValueError:  # it is written in C, and nothing is known of it
        return accepted
    try:
        signature.bind(*range(4), key=None, **accepted)
    except TypeError as error:
        raise TypeError(
            f"strategy {name!r} takes {signature}, expected (model, params, input_fn, "
            f"loss_fn, *, {', '.join(('key', *accepted))}): {error}"
        ) from None
    return accepted


def start_point(name: str, returned: Any, params: Params) -> StartPoint:
    """Where the model starts, by what a strategy returned.

    Raises:
        TypeError: that is neither parameters like `params`, nor scales, nor both.
    """
    if isinstance(returned, Mapping) and set(returned) == {"params", "scales"}:
        start = StartPoint(returned["params"], returned["scales"])
    elif isinstance(returned, Mapping) and _is_scales(returned, params):
        start = StartPoint(params, returned)
    else:
        start = StartPoint(returned)
    expected, found = _types_by_path(params), _types_by_path(start.params)
    if expected == found:
        return start
    differ = difference(expected, found) or _first_other_type(expected, found)
    raise TypeError(
        f"strategy {name!r} returned other parameters: {differ}; expected parameters "
        "like params, scales from ei.tune, or {'params': ..., 'scales': ...}"
    )


def _is_scales(tree: Mapping[str, Any], params: Params) -> bool:
    """Whether a tree holds scales of the units of some parameters."""
    try:
        return bool(from_tree(tree, unboxed(params)))
    except (TypeError, ValueError):
        return False


def _types_by_path(tree: Any) -> dict[str, str]:
    """Shape and dtype of each array, as text; the type of what is no mapping."""
    if not isinstance(tree, Mapping):
        return {f"a {type(tree).__name__}": ""}
    leaves = flatten(unboxed(tree)).items()
    return {path_str(path): str(jax.typeof(leaf)) for path, leaf in leaves}


def _first_other_type(expected: Mapping[str, str], found: Mapping[str, str]) -> str:
    path = next(p for p in expected if expected[p] != found[p])
    return f"{path} is {found[path]}, not {expected[path]}"


def _unit_tuned(
    model: Model,
    params: PyTree,
    input_fn: Any,
    loss_fn: Callable,
    *,
    key: jax.Array,
    **options: Any,
) -> dict[str, Any]:
    """Weights of rms 1, and scales tuned for them."""
    params = unit_params(params, key)
    scales = tune(model, params, input_fn, loss_fn, key=key, **options)
    return {"params": params, "scales": scales}


def _linear_tuned(
    model: Model,
    params: PyTree,
    input_fn: Any,
    loss_fn: Callable,
    *,
    key: jax.Array,
    optimizer: Callable,
    **options: Any,
) -> dict[str, Any]:
    """Weights that are as good as linear, and scales that keep their sizes."""
    params, report = looks_linear(
        model, params, input_fn, key=key, with_report=True, **options
    )
    options |= {"optimizer": optimizer, "targets": report.targets()}
    scales = tune(model, params, input_fn, loss_fn, key=key, **options)
    return {"params": params, "scales": scales}
