"""What is no Linen model, and what no unit of one can be."""

import sys
from typing import Any

from flax import linen as nn

LinenModule = nn.Module


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
