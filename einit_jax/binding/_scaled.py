"""The module transform: any model, with three scale factors in each unit."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar, overload

from ..core import describe
from ..linen import Scaled, linen_scaled
from ._any_library import is_nnx

if TYPE_CHECKING:
    from ..nnx import NnxModule

    NnxM = TypeVar("NnxM", bound=NnxModule)


@overload
def scaled(model: "NnxM", scales: Mapping[str, Any]) -> "NnxM": ...
@overload
def scaled(model: Any) -> Scaled: ...
def scaled(model: Any, scales: Mapping[str, Any] | None = None) -> Any:
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
    share an input, and where XLA fuses layers otherwise). The model itself and its
    parameters are unchanged: the plain `model.apply` takes variables with `scales`
    among them, and ignores these.

    A model of NNX holds its variables, so it gets the factors at once:
    `scaled(model, scales)` is a copy of it, of the same class and with the same
    attributes, whose units have their factors in variables of a type of their own; no
    optimizer trains them, and no filter of `nnx.Param` returns them.

    Args:
        model: any Linen module (a scaled one is returned as it is), or module of NNX.
        scales: from `tune`, for a model of NNX.

    Raises:
        TypeError: model is no module, scales are given with one of Linen, or not given
            with one of NNX.
        ValueError: scales are of another model of NNX. A model of Linen says so when
            it is applied.

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
    if is_nnx(model):
        if scales is None:
            raise TypeError(
                "scaled got no scales: a model of flax.nnx holds its variables; pass "
                "ei.scaled(model, scales) with scales=ei.tune(model, None, ...)"
            )
        from ..nnx import nnx_scaled

        return nnx_scaled(model, scales)
    if scales is not None:
        raise TypeError(
            f"scaled got scales ({describe(scales)}) with a model of Linen, expected "
            "the model alone; pass the scales to apply: {'params': params, 'scales': "
            "scales}"
        )
    return linen_scaled(model)
