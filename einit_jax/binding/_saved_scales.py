"""Scales in files, and whether what a file holds is of a model."""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import PyTree

from ..core import Path as TreePath
from ..core import as_number, describe, path_str, plain, unboxed
from ..linen import scales_from_bytes, scales_to_bytes
from ..reporting import check_writable, write_atomically
from ..units import FACTORS, UPDATE, from_tree, raw_from_tree
from ._any_library import is_nnx
from ._bind import Model, check_model, unscaled
from ._misfits import foreign_entries, misfits_of_params, misfits_of_units
from ._setup import setup, sum_of_means

SCALE_NAMES = (*FACTORS, UPDATE)
MOST_MISFITS = 6
"""So many places are named where a file does not fit a model."""


def save(path: str | os.PathLike, scales: Mapping[str, Any]) -> Path:
    r"""Writes scales to a file, which `load` reads back.

    One msgpack file, as `flax.serialization` writes nested dicts of float32 arrays; no
    pickles. It is replaced in one step, so that a reader finds the old file or the new
    one, and keeps the mode bits of the old one.

    Args:
        path: of the file; its folder is there already.
        scales: what `tune` returned, for a model of Linen or NNX. Arrays may be on any
            devices of this process, split among them or not.

    Returns:
        The path.

    Raises:
        TypeError: scales are no nested dict of real numbers, or are traced; path is no
            path.
        ValueError: an entry is no scale factor; an array is spread over devices of
            other processes, too; the path cannot be written.
        OSError: the file cannot be written after all: the disk is full.

    Example:
        >>> import flax.linen as nn, jax, jax.numpy as jnp, einit_jax as ei, tempfile
        >>> model = nn.Dense(4)
        >>> variables = ei.scaled(model).init(jax.random.key(0), jnp.ones((2, 3)))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = ei.save(folder + "/scales.msgpack", variables["scales"])
        ...     scales = ei.load(path, model, variables["params"])
        >>> scales
        {'input_grad': Array(1., dtype=float32), 'output': Array(1., dtype=float32), 'output_grad': Array(1., dtype=float32)}
    """  # noqa: E501
    if not isinstance(scales, Mapping):
        raise TypeError(
            f"scales are {describe(scales)}, a {type(scales).__name__}, expected the "
            "dict that tune returned"
        )
    path = check_writable(path)
    content = scales_to_bytes(_with_leaves(_nested_scales(scales), (), _on_host))
    return write_atomically(path, content)


def load(
    path: str | os.PathLike,
    model: Model | None = None,
    params: PyTree = None,
    input_fn: Any = None,
    *,
    method: str | Callable | None = None,
    rngs: Sequence[str] | Mapping[str, jax.Array] = (),
    collections: Mapping[str, Any] | None = None,
    axis_name: str | None = None,
) -> dict[str, Any]:
    r"""Reads the scales that `save`, or `--out` of the command line, wrote to a file.

    What they are checked against:

    | given | checked |
    |---|---|
    | the path alone | the file is whole, and holds scale factors |
    | `model` of NNX, or `model` and `params` of Linen | every factor is of a module of the model, or of a raw parameter, and as many as it has layers; no module that holds parameters is without factors |
    | `input_fn` besides | units and layers are exactly those of a call of the model, which is traced and not run |

    Args:
        path: of the file.
        model: the one that is to have the scales.
        params: of a model of Linen: its parameters or their shapes, as
            `jax.eval_shape` returns them; of one of NNX: None for its own.
        input_fn, method, rngs, collections, axis_name: as in `tune`: `method`, `rngs`
            and `collections` go to `model.apply`, `axis_name` is the mapped axis it
            expects. Scales for a method that leaves modules out need `input_fn`, which
            tells them.

    Returns:
        The scales as `tune` returned them: nested dicts of float32 arrays, on the
        default device. The keys of lists of NNX are strings, as there.

    Raises:
        TypeError: a model of Linen without params, or what is no model or path.
        ValueError: the file is cut off or something else, or of another model; names
            the places in the tree, what the file has there, and what the model has.
        OSError: the file cannot be read.

    Example:
        >>> import flax.linen as nn, jax, jax.numpy as jnp, einit_jax as ei, tempfile
        >>> small, x = nn.Sequential([nn.Dense(4)]), jnp.ones((2, 3))
        >>> scales = ei.scaled(small).init(jax.random.key(0), x)["scales"]
        >>> large = nn.Sequential([nn.Dense(4), nn.tanh, nn.Dense(4)])
        >>> params = large.init(jax.random.key(0), x)["params"]
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = ei.save(folder + "/scales.msgpack", scales)
        ...     ei.load(path, large, params)  # doctest: +IGNORE_EXCEPTION_DETAIL
        Traceback (most recent call last):
        ValueError: scales.msgpack is of another model than Sequential: at 'layers_2' the file has nothing, the model has kernel (4, 4), bias (4,)
    """  # noqa: E501
    tree = _read_scales(path)
    scales = jax.tree.map(jnp.asarray, tree)
    if model is None and params is None and input_fn is None:
        return scales
    how = {"method": method, "rngs": rngs, "collections": collections}
    how |= {"axis_name": axis_name}
    try:
        name, misfits = _compared_with(model, params, input_fn, tree=tree, how=how)
    except _NotThese as error:
        raise ValueError(f"{path}: {error}") from error.__cause__
    if misfits:
        places = "; ".join(misfits[:MOST_MISFITS])
        more = len(misfits) - MOST_MISFITS
        raise ValueError(
            f"{path} is of another model than {name}: {places}"
            + (f"; and {more} places more" if more > 0 else "")
        )
    return scales


class _NotThese(ValueError):
    """Scales that no model has: they lack a factor of three, say."""


def _compared_with(
    model: Any, params: Any, input_fn: Any, *, tree: Any, how: Mapping[str, Any]
) -> tuple[str, list[str]]:
    """The model's name, and the places where scales do not fit it."""
    bare: Any = unscaled(model)
    name = "these params"
    if model is not None:
        check_model(model)
        name = type(bare).__name__
    elif input_fn is not None:
        raise TypeError("load got input_fn and no model; pass the model, too")
    if is_nnx(model):
        from ..nnx import functional

        bare, params, collections = functional(bare, params)
        how = {**how, "collections": collections}
    elif params is None:
        raise TypeError(
            f"load got no params: a model of Linen, {name}, holds none; pass "
            "ei.load(path, model, params)"
        )
    params = unboxed(_nested_scales(params))
    misfits = foreign_entries(tree, params)
    if misfits:
        return name, misfits
    try:
        from_tree(tree, params)
        raw_from_tree(tree, params)
    except (TypeError, ValueError) as error:
        raise _NotThese(str(error)) from error
    if input_fn is None:
        return name, misfits_of_params(tree, params)
    bound = setup(bare, params, input_fn, sum_of_means, shapes=True, **how)
    graph = bound.objective.trace(bound.arrays.args)
    return name, misfits_of_units(tree, params, graph)


def _read_scales(path: str | os.PathLike) -> dict[str, Any]:
    """The nested dict of numpy arrays in a file."""
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"path is a {type(path).__name__}, expected a str or a Path")
    content = Path(path).read_bytes()
    try:
        tree = scales_from_bytes(content)
    except Exception as error:  # of msgpack, numpy or Flax, by what the bytes are
        raise ValueError(
            f"{path} is cut off, or no file of scales ({type(error).__name__}: "
            f"{error}); write it anew: ei.save(path, scales)"
        ) from error
    if not isinstance(tree, Mapping):
        raise ValueError(
            f"{path} holds a {type(tree).__name__} and no scales; write them by "
            "ei.save(path, scales)"
        )

    def check(at: TreePath, leaf: Any) -> Any:
        if at[-1] in SCALE_NAMES and getattr(leaf, "dtype", None) == np.float32:
            return leaf
        raise ValueError(
            f"{path} has {describe(leaf)} at {path_str(at)!r}, expected float32 "
            f"arrays called {', '.join(SCALE_NAMES)}; it was not written by ei.save"
        )

    return _with_leaves(tree, (), check)


def _nested_scales(scales: Any) -> dict[str, Any]:
    """Nested dicts, of a state of NNX too."""
    if is_nnx(scales):
        from ..nnx import as_nested

        return as_nested(scales)
    return plain(scales)


def _with_leaves(node: Mapping, path: TreePath, change: Callable) -> dict[str, Any]:
    """Nested dicts with every leaf changed: `change(path, leaf)`; keys as strings."""
    return {
        str(key): _with_leaves(child, (*path, str(key)), change)
        if isinstance(child, Mapping)
        else change((*path, str(key)), child)
        for key, child in node.items()
    }


def _on_host(path: TreePath, factor: Any) -> np.ndarray:
    """One factor as a float32 array of numpy, from whatever devices it is on."""
    where = path_str(path)
    if path[-1] not in SCALE_NAMES:
        raise ValueError(
            f"scales have an entry {where!r}, expected only {', '.join(SCALE_NAMES)}; "
            "pass what tune returned"
        )
    if isinstance(factor, Tracer):
        raise TypeError(
            f"scales at {where!r} are traced; call save outside of jit, grad and vmap"
        )
    is_real = jnp.issubdtype(getattr(factor, "dtype", bool), jnp.floating)
    if as_number(factor) is None and not is_real:
        raise TypeError(
            f"scales at {where!r} are {describe(factor)}, expected real numbers"
        )
    if isinstance(factor, jax.Array) and not (
        factor.is_fully_addressable or factor.is_fully_replicated
    ):
        raise ValueError(
            f"scales at {where!r} are spread over devices of other processes, "
            f"{factor.sharding}; gather them first: "
            "jax.experimental.multihost_utils.process_allgather(scales, tiled=True)"
        )
    return np.asarray(factor, np.float32)
