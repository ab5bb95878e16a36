"""The module transform: any Linen model, with three scale factors in each unit."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import flax
import jax
import jax.numpy as jnp
from flax import linen as nn

from ..core import (
    Partition,
    flatten,
    has_data,
    is_under,
    multiply,
    path_str,
    scale_gradient,
    unboxed,
)
from ..units import FACTORS, ModelGraph, UnitKey, from_tree, ones, to_tree
from ._carrying import RIDE, carry_entries, without_carried
from ._interception import Call, intercept_units
from ._objective import check_module
from ._tracing import graph_of

SCALE = RIDE + "scale"


UNSEEN = flax.core.DenyList("intermediates")


def scaled(model: "nn.Module | Scaled") -> "Scaled":
    r"""The model with three factors per unit, `y = G_c(a f(theta, G_b(x)))`.

    A unit is a module that owns parameters and turns inputs into outputs with them.
    Its factors are float32, of shape `()`, or `(layers,)` under `nn.scan` and `nn.vmap`
    over layers, in the collection `scales`: `output` (a) multiplies the activation;
    `input_grad` (b) and `output_grad` (c) multiply the cotangents that leave the unit
    toward its inputs and that enter it from its output (`G_k(z)` is z forward, k times
    the cotangent backward). The paths are those of `params`:

        {"params": {"Dense_0": {"kernel": ..., "bias": ...}},
         "scales": {"Dense_0": {"output": 1., "input_grad": 1., "output_grad": 1.}}}

    A unit that is entered through a method other than `__call__` (`Embed.attend`) has
    factors of its own under that method's name. Factors of 1 leave every output and
    gradient bit-identical. The model itself and its parameters are unchanged.

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

    Hashable, equal by value and picklable as the model is. Its methods take what those
    of the model take.
    """

    model: nn.Module

    def __hash__(self) -> int:
        try:
            return hash((Scaled, self.model))
        except TypeError:  # a module with a list among its fields
            return hash((Scaled, type(self.model)))

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
        params = rest.get("params", {})
        own = without_carried(params)
        values = from_tree(variables["scales"], unboxed(own))
        how = dict(rngs=rngs, method=method, mutable=mutable, **kwargs)
        plain_rest = {**rest, "params": own}
        if _doubtful(unboxed(own), values):
            check_missing(graph_of(self.model, plain_rest, args, how), values)
        rest["params"] = carry_entries(params, SCALE, values)
        unseen: set[UnitKey] = set()
        try:
            with nn.intercept_methods(scaling_interceptor(unseen)):
                out = self.model.apply(rest, *args, **how)
        except Exception:  # is it the scales? if not, it is the caller's own error
            check_foreign(graph_of(self.model, plain_rest, args, how), values)
            raise
        if unseen:
            check_missing(graph_of(self.model, plain_rest, args, how), values)
        return deliver(out, mutable)

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
        graph = graph_of(self.model, dict(variables), args, how)
        return y, {**variables, "scales": to_tree(ones(graph.units))}

    def lazy_init(self, rngs: Any, *args: Any, **kwargs: Any) -> Any:
        """`model.lazy_init` (inputs may be `jax.ShapeDtypeStruct`), with `scales`."""
        variables = self.model.lazy_init(rngs, *args, **kwargs)
        kwargs.pop("mutable", None)
        graph = graph_of(self.model, dict(variables), args, dict(rngs=rngs, **kwargs))
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


def deliver(out: Any, mutable: Any) -> Any:
    """What `model.apply` returned, without rides among the parameters it wrote."""
    if mutable is False or mutable is None:
        return out
    y, written = out
    if "params" in written:
        written = {**written, "params": without_carried(written["params"])}
    return y, written


def scaling_interceptor(unseen: set[UnitKey]) -> Any:
    """An interceptor that puts the riding factors into force.

    Calls of a unit through a method that has no factors are noted in `unseen`, for the
    caller to tell whether they should have some.
    """

    def act(call: Call, factors: Mapping[str, jax.Array]) -> Any:
        _check_entries(call)
        return with_factors(call, factors)

    def note(call: Call) -> None:
        _check_entries(call)
        if has_data((call.args, dict(call.kwargs))):
            unseen.add((call.path, call.method))

    return intercept_units(SCALE, act, note)


def _check_entries(call: Call) -> None:
    foreign = [m for m in call.ride if not hasattr(type(call.module), m)]
    if foreign:
        raise ValueError(
            f"scales have an entry {path_str(call.path, foreign[0])!r}: neither a "
            "module of these params nor a method; tune this model"
        )


def with_factors(call: Call, factors: Mapping[str, jax.Array]) -> Any:
    """`G_c(a f(G_b(x)))` on the floating leaves of a call's inputs and outputs."""
    a, b, c = (jnp.reshape(factors[name], ()) for name in FACTORS)
    inputs = Partition((call.args, dict(call.kwargs)))
    args, kwargs = inputs.build([scale_gradient(x, b) for x in inputs.floats])
    y = Partition(call.proceed(*args, **kwargs))
    return y.build([scale_gradient(multiply(t, a), c) for t in y.floats])


def _doubtful(params: Mapping, values: Mapping[UnitKey, Any]) -> bool:
    """Whether some module owns parameters and no factor is near it."""
    tuned = {path for path, _ in values}
    around = tuned | {path[:i] for path in tuned for i in range(len(path))}
    owners = {path[:-1] for path in flatten(params)}
    return any(
        owner not in around and not any(is_under(owner, path) for path in tuned)
        for owner in owners
    )


def check_missing(graph: ModelGraph, values: Mapping[UnitKey, Any]) -> None:
    """Raises where a unit of this call has no factors."""
    lacking = [u.name for u in graph.units if u.key not in values]
    if lacking:
        raise ValueError(
            f"scales are missing for {', '.join(lacking[:8])}: they were tuned for "
            "another model or another method; tune with the method that is applied"
        )


def check_foreign(graph: ModelGraph, values: Mapping[UnitKey, Any]) -> None:
    """Raises where factors are of no unit of this call, or of other layers."""
    shapes = {u.key: u.ride_shape for u in graph.units}
    foreign = [path_str(*kind) for kind in values if kind not in shapes]
    if foreign:
        raise ValueError(
            f"scales have entries of no unit of this model: {', '.join(foreign[:8])}; "
            "they were tuned for another model or method; tune this one"
        )
    for kind, factors in values.items():
        for name, factor in factors.items():
            if jnp.shape(factor) != shapes[kind]:
                raise ValueError(
                    f"scales at {path_str(*kind)!r}: {name} has the shape "
                    f"{jnp.shape(factor)}, expected {shapes[kind]}; tune this model"
                )
