"""Where lifted transforms put their axes, told from shapes inside and outside."""

import itertools

import jax.numpy as jnp
from jaxtyping import Array


def find_lifted_axes(pairs: list[tuple[tuple[int, ...], tuple[int, ...]]]) -> tuple:
    """Where lifted transforms put their axes, from shapes outside and inside of them.

    Returns a size per axis of the ride, 0 (kept as an axis of size one) where the axis
    is not lifted: `()` for no lift, `(L,)` for axis 0, `(0, L)` for axis 1. Where two
    axes would fit, the lower one is taken.
    """
    depth = max((len(o) - len(i) for o, i in pairs), default=0)
    signed = [*range(4), -1, -2, -3]
    for axes in itertools.product(signed, repeat=depth):
        sizes = [_remove_axes(outer, axes) for outer, _ in pairs]
        fits = [s and s[0] == i for s, (_, i) in zip(sizes, pairs, strict=True)]
        if all(fits) and len({s[1] for s in sizes if s}) <= 1:
            return _carried_axes(axes, sizes[0][1] if sizes and sizes[0] else ())
    raise ValueError(f"no lifted axes turn the shapes {pairs} into each other")


def _remove_axes(shape: tuple[int, ...], axes: tuple[int, ...]):
    """The shape without `axes`, taken one after the other, and their sizes."""
    taken = []
    for axis in axes:
        if not -len(shape) <= axis < len(shape):
            return None
        taken.append(shape[axis])
        at = axis % len(shape)
        shape = shape[:at] + shape[at + 1 :]
    return shape, tuple(taken)


def _carried_axes(axes: tuple[int, ...], sizes: tuple[int, ...]) -> tuple[int, ...]:
    """Builds the ride's shape by putting the axes back, innermost first."""
    ride: list[int] = []
    for axis, size in zip(reversed(axes), reversed(sizes), strict=True):
        at = axis if axis >= 0 else len(ride) + 1 + axis
        ride += [0] * max(-at, at - len(ride))
        ride.insert(max(at, 0), size)
    return tuple(ride)


def first_axis(shape: tuple[int, ...], lift: tuple[int, ...]) -> int:
    """The axis of an array that the ride's first one belongs to."""
    front = all(n in (0, m) for n, m in zip(lift, shape, strict=False))
    return 0 if front else len(shape) - len(lift)


def lifted_axes_of(ride_shape: tuple[int, ...]) -> tuple[int, ...]:
    """The lifted axes that the shape of a ride tells; a single layer counts as none."""
    return tuple(n if n > 1 else 0 for n in ride_shape)


def layer_axes(shape: tuple[int, ...], lift: tuple[int, ...]) -> tuple[int, ...]:
    """The axes of an array that are lifted, the ride aligned at either end."""
    start = first_axis(shape, lift)
    return tuple(start + i for i, n in enumerate(lift) if n)


def inner_axes(shape: tuple[int, ...], lift: tuple[int, ...]) -> tuple[int, ...]:
    """The axes of an array that are not lifted."""
    lifted = layer_axes(shape, lift)
    return tuple(i for i in range(len(shape)) if i not in lifted)


def layers_first(leaf: Array, lift: tuple[int, ...]) -> Array:
    """An array with its lifted axes first."""
    lifted = layer_axes(leaf.shape, lift)
    return jnp.moveaxis(leaf, lifted, range(len(lifted)))


def broadcast_per_layer(
    values: Array, shape: tuple[int, ...], lift: tuple[int, ...]
) -> Array:
    """A value per layer, shaped to multiply an array of all layers."""
    if not lift:
        return values
    inner = inner_axes(shape, lift)
    return values.reshape([1 if i in inner else n for i, n in enumerate(shape)])
