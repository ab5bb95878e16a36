"""How signatures are checked: as pyright does, an int is a float.

Where no array's shape is annotated, beartype checks alone: what jaxtyping keeps in mind
of a call's shapes takes ten times longer, a sixth of all tests. Functions inside of
functions are not checked: they would be prepared anew each time.
"""

import re
import warnings
from collections.abc import Callable
from functools import wraps
from typing import Any

import jaxtyping
from beartype import BeartypeConf, beartype
from jaxtyping import config

typechecker = beartype(conf=BeartypeConf(is_pep484_tower=True))
SHAPED = re.compile(r"\b(Bool|Complex|Float|Inexact|Int|Num|Shaped|UInt)\[")
_jaxtyped: Any = jaxtyping.jaxtyped


def jaxtyped(*, typechecker: Callable) -> Callable:
    """A decorator like `jaxtyping.jaxtyped`, which it takes the place of."""

    def decorate(function: Any) -> Any:
        if isinstance(function, type) or not callable(function):
            return _jaxtyped(typechecker=typechecker)(function)
        if "<locals>" in function.__qualname__:
            return function
        annotations = list(function.__annotations__.values())
        # by name: of what is not imported at run time, which jaxtyping lets pass
        by_name = any(isinstance(a, str) or "ForwardRef" in str(a) for a in annotations)
        if by_name or SHAPED.search(str(annotations)):
            return _jaxtyped(typechecker=typechecker)(function)
        with warnings.catch_warnings():  # optax annotates as in older versions
            warnings.simplefilter("ignore")
            checked = typechecker(function)

        @wraps(function)
        def called(*args: Any, **kwargs: Any) -> Any:
            unchecked = config.jaxtyping_disable
            return (function if unchecked else checked)(*args, **kwargs)

        # so that its frames are a library's, and not the user's, where errors are told
        called.__code__ = called.__code__.replace(co_filename=jaxtyping.__file__)
        return called

    return decorate


def install() -> None:
    """Checks the signatures of the package, which is not to be imported before."""
    jaxtyping.jaxtyped = jaxtyped
    jaxtyping.install_import_hook("einit_jax", f"{__name__}.typechecker")
