"""The module transform: any Linen model, with three scale factors in each unit."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import flax
from flax import linen as nn

from ..core import by_value, flatten, is_under, unboxed
from ..units import (
    Interception,
    UnitKey,
    check_foreign,
    check_missing,
    from_tree,
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
from ._mere_data import knowing_data
from ._tracing import trace_call

UNSEEN = flax.core.DenyList("intermediates")


def scaled(model: "nn.Module | Scaled") -> "Scaled":
    r"""The model with three factors per unit, `y = G_c(a f(theta, G_b(x)))`.

    A unit is a module that owns parameters and turns inputs into outputs with them.
    Its factors are float32, of shape `()`, or `(layers,)` under `nn.scan` and `nn.vmap`
    over layers, in the collection `scales`: `output` (a) multiplies the activation;
    `input_grad` (b) and `output_grad` (c) multiply the cotangents that leave the unit
    toward its inputs and that enter it from its output (`G_k(z)` is z forward, k times
    the cotangent backward). A raw parameter, which belongs to no unit, may have
    `output_grad` alone, which multiplies its gradient. The paths are those of `params`:

        {"params": {"Dense_0": {"kernel": ..., "bias": ...}},
         "scales": {"Dense_0": {"output": 1., "input_grad": 1., "output_grad": 1.}}}

    A unit that is entered through a method other than `__call__` (`Embed.attend`) has
    factors of its own under that method's name. Floats among a unit's outputs that
    depend on no parameter at all (masks, paddings) pass as they are. Factors of 1 leave
    every output and gradient bit-identical (to rounding under `nn.vmap`, where members
    share an input). The model itself and its parameters are unchanged:
    the plain `model.apply` takes variables with `scales` among them, and ignores these.

    Args:
        model: any Linen module; a scaled one is returned as it is.

    Raises:
        TypeError: model is no Linen module.

    Example:
        >>> import flax.linen as nn, jax, jax.numpy as jnp, einit_jax as ei
        >>> tuned = ei.scaled(nn.Dense(4))
        >>> variables = tuned.init(jax.random.key(0), jnp.ones((2, 3)))
        >>> jax.tree.map(jnp.shape, variables["scales"])
        {'input_grad': (), 'output': (), 'output_grad': ()}
        >>> tuned.apply(variables, jnp.ones((2, 3))).shape
        (2, 4)

    Source: P. Bement, empirical_init 0.0.2 (2023), whose modules carry `scale_actv_y`,
    `scale_grad_x` and `scale_grad_y`; here they are variables beside the model.
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
        if _may_lack(unboxed(own), factors):
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


Model = nn.Module | Scaled
"""What verbs take for a model."""


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


def _may_lack(params: Mapping, factors: Mapping[UnitKey, Any]) -> bool:
    """Whether some module owns parameters and no unit with factors is near it."""
    tuned = {path for path, _ in factors}
    around = tuned | {path[:i] for path in tuned for i in range(len(path))}
    owners = {path[:-1] for path in flatten(params)}
    return any(
        owner not in around and not any(is_under(owner, path) for path in tuned)
        for owner in owners
    )


def scales_to_bytes(scales: Mapping[str, Any]) -> bytes:
    """Scales as `flax.serialization.from_bytes` reads them."""
    return flax.serialization.to_bytes(scales)
