"""The module transform: any Linen model, with three scale factors in each unit."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import flax
from flax import linen as nn

from ..core import by_value, plain, unboxed
from ..objectives import knowing_data
from ..units import (
    Interception,
    UnitKey,
    check_foreign,
    check_missing,
    from_tree,
    may_lack,
    ones,
    raw_from_tree,
    scale_raw_gradients,
    scaling,
    to_tree,
)
from ._carrying import found_of
from ._checks import check_module
from ._entries import immutable_entries, without_carried
from ._interception import run_intercepted
from ._tracing import trace_call

UNSEEN = flax.core.DenyList("intermediates")


def linen_scaled(model: "nn.Module | Scaled") -> "Scaled":
    """The model, to be run with a `scales` collection; a scaled one as it is.

    Raises:
        TypeError: model is no Linen module.
    """
    if isinstance(model, Scaled):
        return model
    check_module(model)
    return Scaled(model)


@dataclass(frozen=True)
class Scaled:
    """A Linen model that runs with a `scales` collection; see `scaled`.

    Hashable, equal by value and picklable as the model is, and so is its `apply`: a
    train state that is made anew has the same structure. Its methods take what those of
    the model take.
    """

    model: nn.Module

    def __hash__(self) -> int:
        try:
            return hash((Scaled, self.model))
        except TypeError:  # a module with a list among its fields
            return hash((Scaled, type(self.model)))

    @by_value
    def apply(
        self,
        variables: Mapping[str, Any],
        *args: Any,
        rngs: Any = None,
        method: Any = None,
        mutable: Any = False,
        **kwargs: Any,
    ) -> Any:
        """`model.apply` with `variables["scales"]` in force.

        Raises:
            ValueError: `scales` are missing, of another model, or of other units than
                this call has.
        """
        if "scales" not in variables:
            raise ValueError(
                "variables have no 'scales'; pass {'params': params, 'scales': scales} "
                "with scales from ei.tune, or apply the plain model"
            )
        rest = {k: v for k, v in variables.items() if k != "scales"}
        own = without_carried(rest.get("params", {}))
        factors = from_tree(variables["scales"], unboxed(own))
        raw = raw_from_tree(variables["scales"], unboxed(own))
        if raw:
            rest["params"] = scale_raw_gradients(rest["params"], raw)
        how = dict(rngs=rngs, method=method, mutable=mutable, **kwargs)
        traced = lambda: trace_call(self.model, {**rest, "params": own}, args, how)
        if may_lack(unboxed(own), factors):
            check_missing(traced(), factors)
        unseen: set[UnitKey] = set()
        scaled_units = scaling(factors, unseen)
        try:
            out = apply_intercepted(self.model, rest, scaled_units, *args, **how)
        except Exception:  # is it the scales? if not, it is the caller's own error
            check_foreign(traced(), factors)
            raise
        if unseen:
            check_missing(traced(), factors)
        return out

    def init(self, rngs: Any, *args: Any, **kwargs: Any) -> Any:
        """`model.init`, with `scales` of 1."""
        return self.init_with_output(rngs, *args, **kwargs)[1]

    def init_with_output(
        self,
        rngs: Any,
        *args: Any,
        method: Any = None,
        mutable: Any = UNSEEN,
        **kwargs: Any,
    ) -> tuple[Any, Any]:
        """`model.init_with_output`, with `scales` of 1."""
        y, variables = self.model.init_with_output(
            rngs, *args, method=method, mutable=mutable, **kwargs
        )
        kwargs.pop("capture_intermediates", None)
        how = dict(rngs=rngs, method=method, **kwargs)
        graph = trace_call(self.model, variables, args, how)
        return y, {**variables, "scales": to_tree(ones(graph.units))}

    def lazy_init(self, rngs: Any, *args: Any, **kwargs: Any) -> Any:
        """`model.lazy_init` (inputs may be `jax.ShapeDtypeStruct`), with `scales`."""
        variables = self.model.lazy_init(rngs, *args, **kwargs)
        kwargs.pop("mutable", None)
        graph = trace_call(self.model, variables, args, dict(rngs=rngs, **kwargs))
        return {**variables, "scales": to_tree(ones(graph.units))}

    def tabulate(self, rngs: Any, *args: Any, **kwargs: Any) -> str:
        """`model.tabulate` with a column for the scales.

        Keywords of `nn.tabulate` (`depth`, `console_kwargs`, ...) and of `init` alike.
        """
        known = ("depth", "show_repeated", "mutable", "console_kwargs", "table_kwargs",
                 "column_kwargs", "compute_flops", "compute_vjp_flops")  # fmt: skip
        options = {k: kwargs.pop(k) for k in known if k in kwargs}
        table = nn.tabulate(cast(nn.Module, self), rngs, **options)
        return table(*args, **kwargs)


def apply_intercepted(
    model: Any,
    variables: Mapping[str, Any],
    interception: Interception,
    *args: Any,
    mutable: Any = False,
    **kwargs: Any,
) -> Any:
    """`model.apply` with calls of units intercepted.

    What the model returns of its variables has nothing in it of what is carried.
    """
    how = {**kwargs, "mutable": immutable_entries(mutable)}
    apply = lambda carried: model.apply(carried.beside(variables), *args, **how)
    traced = lambda: trace_call(model, variables, args, how)
    found = found_of(model, kwargs.get("method"))
    run = lambda data_of: run_intercepted(apply, (interception,), data_of, found)
    return knowing_data(run, traced)


def scales_to_bytes(scales: Mapping[str, Any]) -> bytes:
    """Nested dicts of arrays in Flax's msgpack format; `from_bytes` reads it, too."""
    return flax.serialization.msgpack_serialize(plain(scales))


def scales_from_bytes(content: bytes) -> Any:
    """What `scales_to_bytes` wrote: nested dicts of numpy arrays, keys as strings.

    Raises:
        Exception: of many types, where the bytes are something else.
    """
    return flax.serialization.msgpack_restore(content)
