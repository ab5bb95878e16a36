"""Which modules of a model are units, read off the model's own jaxpr.

One trace of the model with every module's inputs and outputs marked (the equation of
`jax.ad_checkpoint.checkpoint_name`) shows, through `pjit`, `scan`, `remat`, `cond` and
`custom_vjp` alike, which calls turn activations into activations with parameters of
their own. Nothing runs and nothing is compiled.
"""

import itertools
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name
from jax.extend.core import Jaxpr

from ._hook import Call, Leaves, is_key
from ._hook import interceptor as hook
from ._lift import lifted_axes
from ._paths import RIDE, Path, below, flatten, insert, show, unboxed, without_rides
from ._walk import Record, Walk


@dataclass(frozen=True)
class Unit:
    """A module that owns parameters and turns inputs into outputs with them."""

    path: Path
    method: str
    kind: str
    shape: tuple[tuple[int, ...], ...]
    calls: int
    lift: tuple[int, ...]
    floats: bool
    opaque: bool
    narrow: bool

    @property
    def name(self) -> str:
        """The unit as users write it: "blocks/Dense_0", "wte/attend"."""
        return show(self.path, self.method)

    @property
    def layers(self) -> tuple[int, ...]:
        """The sizes of the lifted axes, in order of position."""
        return tuple(n for n in self.lift if n)

    @property
    def size(self) -> int:
        """The number of layers, 1 where no axis is lifted."""
        return int(np.prod(self.layers, dtype=int))

    @property
    def ride_shape(self) -> tuple[int, ...]:
        """The shape in which a scalar per layer rides beside the parameters."""
        return tuple(n or 1 for n in self.lift)


@dataclass(frozen=True)
class Graph:
    """The units of a model in call order, and what belongs to none of them.

    `jaxpr` is the trace they were read off, the parameters' leaves its first inputs, of
    the given `shapes`; `consts` are the arrays that it closes over.
    """

    units: tuple[Unit, ...]
    loose: tuple[Path, ...]
    factors: Mapping[Path, bool]
    uses_outputs: bool
    jaxpr: Jaxpr
    shapes: Mapping[Path, tuple[int, ...]]
    consts: tuple[Any, ...] = ()


def discover(apply: Callable, params: Any, *args: Any) -> Graph:
    """The units of a model.

    Args:
        apply: `apply(params, interceptor, mark, *args)` runs model and loss, passing
            the model's outputs through `mark`.
        params: the model's parameters; arrays or shapes.
        args: further arguments of `apply`, pytrees of arrays or shapes.
    """
    shapes = {path: leaf.shape for path, leaf in flatten(unboxed(params)).items()}
    paths = list(shapes)
    owners = {(): None} | {p[:i]: None for p in paths for i in range(len(p))}
    rides = {(*o, f"{RIDE}{show(o)}"): {} for o in owners}

    def traced(params, *args):
        def mark(outputs):
            return _mark(outputs, ["outputs"])

        return apply(insert(params, rides), hook(_has_params, _mark_call), mark, *args)

    jaxpr = jax.make_jaxpr(traced)(params, *args)
    walk = Walk()
    seeds = [frozenset({("own", p), ("leaf", p)}) for p in paths]
    rest = len(jaxpr.jaxpr.invars) - len(seeds)
    results = walk.run(jaxpr.jaxpr, [*seeds, *[frozenset()] * rest], 1, True)
    units = _units(walk.calls, shapes)
    loose = [p for p in paths if not any(below(p, u.path) for u in units)]
    used = any(("outputs",) in tokens for tokens in results)
    about = (walk.factors, used, jaxpr.jaxpr, shapes, tuple(jaxpr.consts))
    return Graph(tuple(units), tuple(loose), *about)


def _has_params(module: nn.Module) -> Mapping[str, Any] | None:
    return module.variables.get("params") or None


_ids = itertools.count()
"""Never starts over: the trace of a call may come from a cache of an earlier one."""


def _mark_call(call: Call) -> Any:
    """Runs a call with its inputs and outputs marked by what must be known of it."""
    own = flatten(unboxed(without_rides(call.ride)))
    shapes = {"/".join(path): list(np.shape(v)) for path, v in own.items()}
    ident = next(_ids)
    where = ["in", ident, list(call.path), call.method]
    args, kwargs = _mark((call.args, dict(call.kwargs)), where)
    y = call.proceed(*args, **kwargs)
    leaves = Leaves(y)
    sizes = [list(leaf.shape) for leaf in leaves.floats]
    kind = type(call.module).__name__
    about = ["out", ident, list(call.path), call.method, kind, sizes, shapes]
    return _mark(y, about)


def _mark(tree: Any, about: list) -> Any:
    """The tree with every array named in the jaxpr; typed random keys excepted."""
    leaves = Leaves(tree)
    names = [json.dumps([i, *about]) for i in range(len(leaves.floats))]
    other = json.dumps([-1, *about])
    return leaves.build(
        [
            checkpoint_name(x, name)
            for x, name in zip(leaves.floats, names, strict=True)
        ],
        [x if is_key(x) else checkpoint_name(x, other) for x in leaves.arrays],
    )


def _units(calls: Mapping, outer: Mapping[Path, tuple[int, ...]]) -> list[Unit]:
    """The calls with no other such call strictly below them."""
    paths = {path for path, _ in calls}
    inside = {p[:i] for p in paths for i in range(len(p))}
    return [
        _unit(path, method, seen, outer)
        for (path, method), seen in calls.items()
        if path not in inside
    ]


def _unit(path: Path, method: str, seen: Record, outer: Mapping) -> Unit:
    pairs = [
        (outer[(*path, *name.split("/"))], tuple(shape))
        for name, shape in seen.shapes.items()
        if (*path, *name.split("/")) in outer
    ]
    lift = lifted_axes(pairs)
    copies = int(np.prod([n for n in lift if n], dtype=int))
    calls = [
        elements / max(int(np.prod(seen.shape[i])), 1)
        for i, elements in seen.elements.items()
    ]
    several = max(1, round(max(calls) / copies))
    return Unit(
        path, method, seen.kind, seen.shape, several, lift, seen.floats, seen.opaque,
        seen.narrow,
    )  # fmt: skip
