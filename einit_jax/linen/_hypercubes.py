"""`HyperCubes`: a linear layer of blocks that are wired like the corners of a cube."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from flax.linen.dtypes import promote_dtype
from jaxtyping import Array, Float

HYPERCUBES_INIT = nn.initializers.variance_scaling(
    1.0, "fan_in", "truncated_normal", in_axis=(1, 2), out_axis=3, batch_axis=(0,)
)
"""Counts the inputs of all `dim + 1` blocks that an output sums."""


class HyperCubes(nn.Module):
    r"""A block-sparse linear layer: `2^dim` blocks, each wired to its neighbours.

    Block v of the output sums over block v of the input and the `dim` blocks whose
    numbers differ from v in one bit, the corners of a hypercube next to v:

        y[v] = x[v] W[v, dim] + sum_b x[v xor 2^b] W[v, b]        (and a bias)

    So `dim` layers mix every block with every other, at a density of
    `(dim + 1) / 2^dim` of the dense layer.

    Input `(..., 2^dim, in)`, output `(..., 2^dim, features)`. Parameters: `kernel`
    `(2^dim, dim + 1, in, features)`, `bias` `(2^dim, features)` if `use_bias`.

    Attributes:
        features: of each block of the output.
        dim: of the cube, 0 or more; 0 is one dense block.
        use_bias: whether a bias is added; the original has none.
        dtype: of the computation; None: of the input and parameters.
        param_dtype: of the parameters.
        kernel_init, bias_init: initializers; by default the variance of weights is one
            over the number of inputs that an output sums.

    Raises:
        ValueError: the input has not `2^dim` blocks, or dim is negative.

    Example:
        >>> import jax, jax.numpy as jnp, einit_jax as ei
        >>> layer = ei.HyperCubes(features=4, dim=3)
        >>> x = jnp.ones((2, 8, 5))
        >>> y, variables = layer.init_with_output(jax.random.key(0), x)
        >>> y.shape, variables["params"]["kernel"].shape, layer.density
        ((2, 8, 4), (8, 4, 5, 4), 0.5)

    Source: P. Bement, empirical_init 0.0.2 (2023), `HyperCubies`, with a backward pass
    written by hand; here it is that of jax. To check one of your own
    (`jax.custom_vjp`), use `jax.test_util.check_grads`.
    """

    features: int
    dim: int
    use_bias: bool = False
    dtype: Any = None
    param_dtype: Any = jnp.float32
    kernel_init: Callable = HYPERCUBES_INIT
    bias_init: Callable = nn.initializers.zeros_init()

    @property
    def density(self) -> float:
        """The share of the dense layer's weights that there are."""
        return (self.dim + 1) / 2**self.dim

    @nn.compact
    def __call__(
        self, x: Float[Array, "*batch blocks inputs"]
    ) -> Float[Array, "*batch blocks features"]:
        blocks = 2**self.dim if self.dim >= 0 else 0
        if x.ndim < 2 or x.shape[-2] != blocks:
            raise ValueError(
                f"HyperCubes(dim={self.dim}) got an input of shape {x.shape}, expected "
                f"(..., {blocks or '2^dim, dim >= 0'}, inputs); reshape the features "
                "into blocks first"
            )
        shape = (blocks, self.dim + 1, x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape, self.param_dtype)
        bias = None
        if self.use_bias:
            shape = (blocks, self.features)
            bias = self.param("bias", self.bias_init, shape, self.param_dtype)
        x, kernel, bias = promote_dtype(x, kernel, bias, dtype=self.dtype)
        y = jnp.einsum("...vbi,vbio->...vo", _wired(x, self.dim), kernel)
        return y if bias is None else y + bias


def _wired(x: Array, dim: int) -> Array:
    """What each block sees, `(..., blocks, dim + 1, inputs)`.

    To flip a bit of all numbers is to flip an axis of the cube: nothing is gathered,
    and the backward pass scatters nothing.
    """
    cube = x.reshape(*x.shape[:-2], *[2] * dim, x.shape[-1])
    flipped = [jnp.flip(cube, -2 - bit).reshape(x.shape) for bit in range(dim)]
    return jnp.stack([*flipped, x], -2)
