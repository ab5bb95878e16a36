"""Errors of a call of a Linen model: params that do not fit, by name."""

import contextlib
from collections.abc import Iterator
from functools import partial
from typing import Any

from flax import errors

from ..core import Inputs, describe
from ..objectives import explained

PARAMS_ERRORS = (errors.ScopeParamNotFoundError, errors.ScopeParamShapeError)


@contextlib.contextmanager
def explained_call(model: Any, method: Any, inputs: Inputs) -> Iterator[None]:
    """Meanwhile the model is called: says which argument does not fit.

    Raises:
        ValueError: params, inputs or the mapped axis are not what the model asks for.
    """
    name = type(model).__name__
    if method is None or isinstance(method, str):
        function = getattr(model, method or "__call__", None)
    else:
        function = partial(method, model)
    try:
        with explained(name, function, inputs):
            yield
    except PARAMS_ERRORS as error:
        raise ValueError(
            f"params do not fit {name} called with {describe(inputs)}: {error}; pass "
            "model.init(key, inputs)['params'] of such inputs"
        ) from error
