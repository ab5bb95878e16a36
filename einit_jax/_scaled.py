"""The module transform: any Linen model, with three scale factors in each unit."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import flax
import jax
import jax.numpy as jnp
from flax import linen as nn

from ._graph import Graph, discover
from ._hook import Call, Leaves, has_data, unit_hook
from ._inputs import Inputs
from ._math import multiply, scale_gradient
from ._paths import RIDE, below, flatten, show, unboxed, without_rides
from ._problem import refuse_other
from ._units import FACTORS, Kind, from_tree, kind_of, ones, riding, to_tree

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
    refuse_other(model)
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
        own = without_rides(params)
        values = from_tree(variables["scales"], unboxed(own))
        how = dict(rngs=rngs, method=method, mutable=mutable, **kwargs)
        plain_rest = {**rest, "params": own}
        if _doubtful(unboxed(own), values):
            refuse_missing(graph_of(self.model, plain_rest, args, how), values)
        rest["params"] = riding(params, SCALE, values)
        unseen: set[Kind] = set()
        try:
            with nn.intercept_methods(scaling(unseen)):
                out = self.model.apply(rest, *args, **how)
        except Exception:  # is it the scales? if not, it is the caller's own error
            refuse_foreign(graph_of(self.model, plain_rest, args, how), values)
            raise
        if unseen:
            refuse_missing(graph_of(self.model, plain_rest, args, how), values)
        return delivered(out, mutable)

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


def delivered(out: Any, mutable: Any) -> Any:
    """What `model.apply` returned, without rides among the parameters it wrote."""
    if mutable is False or mutable is None:
        return out
    y, written = out
    if "params" in written:
        written = {**written, "params": without_rides(written["params"])}
    return y, written


def scaling(unseen: set[Kind]) -> Any:
    """An interceptor that puts the riding factors into force.

    Calls of a unit through a method that has no factors are noted in `unseen`, for the
    caller to tell whether they should have some.
    """

    def act(call: Call, factors: Mapping[str, jax.Array]) -> Any:
        _refuse_entries(call)
        return with_factors(call, factors)

    def note(call: Call) -> None:
        _refuse_entries(call)
        if has_data((call.args, dict(call.kwargs))):
            unseen.add((call.path, call.method))

    return unit_hook(SCALE, act, note)


def _refuse_entries(call: Call) -> None:
    foreign = [m for m in call.ride if not hasattr(type(call.module), m)]
    if foreign:
        raise ValueError(
            f"scales have an entry {show(call.path, foreign[0])!r}: neither a module "
            "of these params nor a method; tune this model"
        )


def with_factors(call: Call, factors: Mapping[str, jax.Array]) -> Any:
    """`G_c(a f(G_b(x)))` on the floating leaves of a call's inputs and outputs."""
    a, b, c = (jnp.reshape(factors[name], ()) for name in FACTORS)
    inputs = Leaves((call.args, dict(call.kwargs)))
    args, kwargs = inputs.build([scale_gradient(x, b) for x in inputs.floats])
    y = Leaves(call.proceed(*args, **kwargs))
    return y.build([scale_gradient(multiply(t, a), c) for t in y.floats])


def _doubtful(params: Mapping, values: Mapping[Kind, Any]) -> bool:
    """Whether some module owns parameters and no factor is near it."""
    tuned = {path for path, _ in values}
    around = tuned | {path[:i] for path in tuned for i in range(len(path))}
    owners = {path[:-1] for path in flatten(params)}
    return any(
        owner not in around and not any(below(owner, path) for path in tuned)
        for owner in owners
    )


def refuse_missing(graph: Graph, values: Mapping[Kind, Any]) -> None:
    """Raises where a unit of this call has no factors."""
    lacking = [u.name for u in graph.units if kind_of(u) not in values]
    if lacking:
        raise ValueError(
            f"scales are missing for {', '.join(lacking[:8])}: they were tuned for "
            "another model or another method; tune with the method that is applied"
        )


def graph_of(model: nn.Module, variables: dict, args: tuple, how: dict) -> Graph:
    """The units of one call of the model."""
    how = {k: v for k, v in how.items() if k != "mutable"}
    method, rngs = how.pop("method", None), how.pop("rngs", None)
    how.pop("capture_intermediates", None)

    def run(params, hook, mark, rest, inputs, rngs):
        with nn.intercept_methods(hook):
            out, _ = model.apply(
                {**rest, "params": params}, *inputs.args, rngs=rngs, method=method,
                mutable=flax.core.DenyList(("params", "intermediates")),
                **inputs.kwargs,
            )  # fmt: skip
        return mark(out)

    rest = {k: v for k, v in variables.items() if k not in ("params", "scales")}
    params = variables.get("params", {})
    return discover(run, params, rest, Inputs(*args, **how), rngs)


def refuse_foreign(graph: Graph, values: Mapping[Kind, Any]) -> None:
    """Raises where factors are of no unit of this call, or of other layers."""
    shapes = {kind_of(u): u.ride_shape for u in graph.units}
    foreign = [show(*kind) for kind in values if kind not in shapes]
    if foreign:
        raise ValueError(
            f"scales have entries of no unit of this model: {', '.join(foreign[:8])}; "
            "they were tuned for another model or method; tune this one"
        )
    for kind, factors in values.items():
        for name, factor in factors.items():
            if jnp.shape(factor) != shapes[kind]:
                raise ValueError(
                    f"scales at {show(*kind)!r}: {name} has the shape "
                    f"{jnp.shape(factor)}, expected {shapes[kind]}; tune this model"
                )
