"""Where lifted transforms put their axes, told from shapes inside and outside of them.

The *lifted axes* of a unit are one number per axis: the size of the axis where a lifted
transform (`nn.scan`, `nn.vmap` over layers) put it there, else 0. They belong to the
first or to the last axes of each array of the unit. What is carried to a unit, a number
per layer, has the same axes, of size 1 where the number is 0.
"""

import itertools

import jax.numpy as jnp
from jaxtyping import Array

Shape = tuple[int, ...]


def find_lifted_axes(pairs: list[tuple[Shape, Shape]]) -> list[Shape]:
    """The lifted axes that turn shapes outside of transforms into those inside.

    `()` for no lifted axis, `(L,)` for axis 0, `(0, L)` for axis 1. Where several fit,
    since other axes are as long, lower ones come first.
    """
    found = []
    depth = max((len(outer) - len(inner) for outer, inner in pairs), default=0)
    signed = [*range(4), -1, -2, -3]
    for axes in itertools.product(signed, repeat=depth):
        removed = [_remove_axes(outer, axes) for outer, _ in pairs]
        fits = [
            r and r[0] == inner for r, (_, inner) in zip(removed, pairs, strict=True)
        ]
        if all(fits) and len({r[1] for r in removed if r}) <= 1:
            sizes = removed[0][1] if removed and removed[0] else ()
            found.append(_carried_axes(axes, sizes))
    if not found:
        raise ValueError(f"no lifted axes turn the shapes {pairs} into each other")
    return list(dict.fromkeys(found))


def _remove_axes(shape: Shape, axes: Shape) -> tuple[Shape, Shape] | None:
    """The shape without `axes`, taken one after the other, and their sizes."""
    taken = []
    for axis in axes:
        if not -len(shape) <= axis < len(shape):
            return None
        taken.append(shape[axis])
        at = axis % len(shape)
        shape = shape[:at] + shape[at + 1 :]
    return shape, tuple(taken)


def _carried_axes(axes: Shape, sizes: Shape) -> Shape:
    """The lifted axes, by putting the axes back, innermost first."""
    lifted: list[int] = []
    for axis, size in zip(reversed(axes), reversed(sizes), strict=True):
        at = axis if axis >= 0 else len(lifted) + 1 + axis
        lifted += [0] * max(-at, at - len(lifted))
        lifted.insert(max(at, 0), size)
    return tuple(lifted)


def first_axis(shape: Shape, lifted_axes: Shape) -> int:
    """The axis of an array to which the first of the lifted axes belongs."""
    front = all(n in (0, m) for n, m in zip(lifted_axes, shape, strict=False))
    return 0 if front else len(shape) - len(lifted_axes)


def fits_layers(shape: Shape, lifted_axes: Shape) -> bool:
    """Whether an array of this shape can have these lifted axes."""
    if len(shape) < len(lifted_axes):
        return False
    own = shape[first_axis(shape, lifted_axes) :]
    return all(n in (0, m) for n, m in zip(lifted_axes, own, strict=False))


def lifted_axes_of(carried_shape: Shape) -> Shape:
    """The lifted axes that the shape of something carried tells.

    A single layer counts as none.
    """
    return tuple(n if n > 1 else 0 for n in carried_shape)


def layer_axes(shape: Shape, lifted_axes: Shape) -> Shape:
    """The axes of an array that are lifted."""
    start = first_axis(shape, lifted_axes)
    return tuple(start + i for i, n in enumerate(lifted_axes) if n)


def inner_axes(shape: Shape, lifted_axes: Shape) -> Shape:
    """The axes of an array that are not lifted."""
    lifted = layer_axes(shape, lifted_axes)
    return tuple(i for i in range(len(shape)) if i not in lifted)


def layers_first(leaf: Array, lifted_axes: Shape) -> Array:
    """An array with its lifted axes first."""
    lifted = layer_axes(leaf.shape, lifted_axes)
    return jnp.moveaxis(leaf, lifted, range(len(lifted)))


def broadcast_per_layer(values: Array, shape: Shape, lifted_axes: Shape) -> Array:
    """A value per layer, shaped to multiply an array of all layers."""
    if not lifted_axes:
        return values
    inner = inner_axes(shape, lifted_axes)
    return values.reshape([1 if i in inner else n for i, n in enumerate(shape)])
