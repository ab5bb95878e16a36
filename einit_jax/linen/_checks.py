"""What is no Linen model, and what is no loss."""

import inspect
import sys
from collections.abc import Callable, Mapping
from typing import Any

from flax import linen as nn

from ..core import describe


def check_module(model: Any) -> None:
    """Raises where model is no instance of a Linen module."""
    if isinstance(model, nn.Module):
        return
    hint = ""
    if is_module_type(model):
        hint = f"; make an instance: {model.__name__}(...)"
    raise TypeError(
        f"model is a {type(model).__name__}, expected a flax.linen.Module{hint}"
    )


def is_module_type(value: Any) -> bool:
    """Whether a value is a class of Linen modules."""
    return isinstance(value, type) and issubclass(value, nn.Module)


def check_unit(module: nn.Module) -> None:
    """Raises where a unit is a module of nnx in a wrapper of Linen.

    Raises:
        ValueError: it is; it looks at its variables and knows its own alone.
    """
    bridge = sys.modules.get("flax.nnx.bridge.wrappers")  # there, if such a module is
    if bridge is not None and isinstance(module, bridge.ToLinen):
        raise ValueError(
            f"{'/'.join(module.path) or '.'} is a module of flax.nnx, wrapped by "
            "nnx.bridge.to_linen, expected one of flax.linen: a wrapper takes no "
            "variables but those of its own, so that no factor gets to it; write that "
            "layer in flax.linen"
        )


def loss_arguments(loss_fn: Callable) -> tuple[str, ...]:
    """Which of "key" and "inputs" a loss names.

    Raises:
        TypeError: it is no function, or demands other arguments.
    """
    if not callable(loss_fn):
        raise TypeError(
            f"loss_fn is {describe(loss_fn)}, expected a function of the outputs"
        )
    try:
        parameters = list(inspect.signature(loss_fn).parameters.values())
    except ValueError:
        return ()
    variadic = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    named = [p for p in parameters[1:] if p.kind not in variadic]
    bound = getattr(loss_fn, "keywords", {})  # by functools.partial
    named = [p for p in named if p.name not in bound]
    wanted = tuple(p.name for p in named if p.name in ("key", "inputs"))
    extra = [p.name for p in named if p.name not in wanted and p.default is p.empty]
    if extra or not parameters:
        raise TypeError(
            f"loss_fn takes ({', '.join(p.name for p in parameters)}), expected "
            "(outputs) and, if it needs them, arguments named key and inputs; bind "
            "others with functools.partial"
        )
    return wanted


def check_loss_keywords(loss_fn: Callable, keywords: Mapping[str, Any]) -> None:
    """Raises a TypeError where a loss does not take some keywords."""
    try:
        parameters = inspect.signature(loss_fn).parameters
    except ValueError:
        return
    variadic = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    foreign = [name for name in keywords if name not in parameters]
    if foreign and not variadic:
        raise TypeError(
            f"loss_fn takes ({', '.join(parameters)}) and no {', '.join(foreign)}, an "
            "unexpected keyword; train is to return inputs and keywords of loss_fn"
        )
