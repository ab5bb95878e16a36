"""`fans`: how many inputs and outputs a weight array connects."""

import math
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple, SupportsIndex

from ...core import as_integer, describe

LAYER_TYPES = ("dense", "conv", "conv_transpose", "embed")


class Fans(NamedTuple):
    """Fan-in and fan-out of a weight array."""

    fan_in: float
    """How many numbers each output sums."""
    fan_out: float
    """In how many sums each input is."""


def fans(
    shape: Sequence[SupportsIndex],
    kind: Literal["dense", "conv", "conv_transpose", "embed"] | None = None,
    *,
    contracted: SupportsIndex = 1,
    batched: SupportsIndex = 0,
    groups: SupportsIndex = 1,
    strides: SupportsIndex | Sequence[SupportsIndex] = 1,
) -> Fans:
    r"""Fan-in and fan-out of a weight array, in Flax's order of axes.

    | `kind` | axes of the array | fan-in | fan-out |
    |---|---|---|---|
    | `"dense"` (`Dense`, `DenseGeneral`, `Einsum`) | batched, contracted, features | product of contracted | product of features |
    | `"conv"` (`Conv`, any rank) | window, in / groups, out | window x in / groups | window x out / groups / strides |
    | `"conv_transpose"` (`ConvTranspose`) | window, in, out | window x in / strides | window x out |
    | `"embed"` (`Embed`) | entries, features | 1: a look-up sums nothing | features |

    Away from borders each number is exact: a strided convolution reads each input in
    `window / strides` places, and a strided transposed one writes each output from as
    many. `jax.nn.initializers` differ where there are strides or groups, which they do
    not count in the fan-out; for `Embed`, Flax takes the features as fan-in.

    Args:
        shape: of the array, without lifted axes.
        kind: see above; None: "dense" for two axes or with `contracted` or `batched`
            given, else "conv".
        contracted: for "dense", how many axes are summed over.
        batched: for "dense", how many axes come first that connect nothing.
        groups: for "conv", `feature_group_count`.
        strides: for convolutions, of each window axis, or one for all.

    Returns:
        A named tuple `(fan_in, fan_out)` of floats, which strides can make fractions.

    Raises:
        TypeError: shape is no sequence of integers, or a number none.
        ValueError: unknown kind, too few axes, an axis of size 0, groups that do not
            divide the outputs, or not one stride for each axis of the window.

    Example:
        >>> import einit_jax as ei
        >>> ei.fans((3, 3, 16, 32))
        Fans(fan_in=144.0, fan_out=288.0)
        >>> ei.fans((128, 8, 16), "dense")  # DenseGeneral to 8 heads of 16
        Fans(fan_in=128.0, fan_out=128.0)

    Source: X. Glorot and Y. Bengio, 2010; K. He et al., arXiv 1502.01852, section 2.2,
    for convolutions.
    """  # noqa: E501
    shape = _checked_shape(shape)
    contracted, batched, groups = (
        _checked_count(name, value)
        for name, value in (
            ("contracted", contracted), ("batched", batched), ("groups", groups)
        )
    )  # fmt: skip
    if kind is None:
        general = (contracted, batched) != (1, 0)
        kind = "dense" if len(shape) == 2 or general else "conv"
    if kind not in LAYER_TYPES:
        raise ValueError(
            f"kind={kind!r} is not known; expected {', '.join(LAYER_TYPES)}"
        )
    if not shape or min(shape) < 1:
        raise ValueError(f"shape {shape} has no elements, so nothing is connected")
    if kind == "dense":
        return _dense_fans(shape, contracted, batched)
    if len(shape) < 2:
        raise ValueError(f"shape {shape} has too few axes for kind={kind!r}: 2 or more")
    if kind == "embed":
        return Fans(1.0, float(math.prod(shape[1:])))
    *window, inputs, outputs = shape
    steps = _integers(strides) or (as_integer(strides) or 0,) * len(window)
    if len(steps) != len(window) or any(step < 1 for step in steps):
        raise ValueError(
            f"strides={strides!r}, expected {len(window)} positive integers"
        )
    if groups < 1 or outputs % groups:
        raise ValueError(f"groups={groups!r} do not divide the {outputs} outputs")
    size = math.prod(window)
    strided_size = size / math.prod(steps)
    if kind == "conv":
        return Fans(float(size * inputs), strided_size * outputs / groups)
    return Fans(strided_size * inputs, float(size * outputs))


def _integers(values: object) -> tuple[int, ...] | None:
    """A sequence of integers as a tuple; None for anything else."""
    if not isinstance(values, Iterable):
        return None
    found = [as_integer(value) for value in values]
    return tuple(n for n in found if n is not None) if None not in found else None


def _checked_shape(shape: object) -> tuple[int, ...]:
    integers = _integers(shape)
    if integers is None:
        raise TypeError(
            f"shape is {describe(shape)}, expected the sizes of a weight array's axes, "
            "such as kernel.shape or (3, 3, 16, 32)"
        )
    return integers


def _checked_count(name: str, value: object) -> int:
    integer = as_integer(value)
    if integer is None:
        raise TypeError(f"{name} is {describe(value)}, expected an integer")
    return integer


def _dense_fans(shape: tuple[int, ...], contracted: int, batched: int) -> Fans:
    """The fans of axes in the order batched, contracted, features."""
    if contracted < 1 or batched < 0 or len(shape) <= contracted + batched:
        raise ValueError(
            f"shape {shape} has no axis of features after {batched} batched and "
            f"{contracted} contracted ones; for a bias there are no fans"
        )
    matrix = shape[batched:]
    inputs, features = matrix[:contracted], matrix[contracted:]
    return Fans(float(math.prod(inputs)), float(math.prod(features)))
