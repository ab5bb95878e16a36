"""The arrays that are to be drawn: what each is for, and which axes do what."""

import itertools
import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from ._geometry import Geometry, geometry
from ._graph import Graph
from ._hook import interceptor
from ._math import is_float
from ._paths import RIDE, Path, flatten, insert, show, unboxed
from ._plan import outputs_of, plan
from ._problem import Batch, Problem, over_axis
from ._roles import Gate, gates_of, role_of

NO_TYPES: Mapping[Path, type] = MappingProxyType({})


class Site(NamedTuple):
    """A floating array of the parameters."""

    path: Path
    shape: tuple[int, ...]
    axes: Geometry | None
    """Which axes do what; None where only the model could tell."""
    role: str
    """"weight", "bias" (beside a weight or a gain), "gain" or "other"."""
    beside: Any = None
    """Of a bias the site of the weight in the same module, if there is one."""
    gate: Gate | None = None
    branches: int = 0
    """Of a weight that ends a residual branch: how many there are in the model."""
    transposed: bool = False
    """Whether it is of a transposed convolution, of stride 1 too."""
    traced: bool = False

    @property
    def name(self) -> str:
        return show(self.path)

    @property
    def rank(self) -> int:
        """The number of axes of one layer."""
        return len(self.shape) - (len(self.axes.layers) if self.axes else 0)

    @property
    def looked_up(self) -> bool:
        return bool(self.axes and self.axes.looked_up)

    @property
    def inputs(self) -> int:
        """The product of the axes summed over, strides aside."""
        assert self.axes is not None
        return math.prod(self.shape[i] for i in self.axes.contracted)

    @property
    def outputs(self) -> int:
        """The product of the window and of the outputs, groups and strides aside."""
        assert self.axes is not None
        window = self.axes.contracted[:-1] if "conv" in self.axes.kind else ()
        return math.prod(self.shape[i] for i in (*window, *self.axes.features))


def sites_by_name(params: Any) -> list[Site]:
    """The floating arrays, as far as names and shapes tell."""
    leaves = flatten(unboxed(params))
    shapes = {p: jnp.shape(v) for p, v in leaves.items() if is_float(v)}
    stacked = {p[:-1] for p, s in shapes.items() if p[-1] == "bias" and len(s) > 1}
    sites = []
    for path, shape in shapes.items():
        role = role_of(path, len(shape))
        axes = _by_shape(path, shape, role)
        unsure = role == "weight" and len(shape) > 2 and path[:-1] in stacked
        sites.append(Site(path, shape, None if unsure else axes, role))
    return _related(sites)


def _by_shape(path: Path, shape: tuple[int, ...], role: str) -> Geometry | None:
    """Matrices and kernels of windows with two axes or more; the others are unclear."""
    every = tuple(range(len(shape)))
    known = Geometry(shape, (), (), (), every, 1.0, 1.0, role, "", False, False)
    if role != "weight":
        return known
    known = known._replace(contracted=every[:-1], features=every[-1:])
    if len(shape) == 3:
        return None
    inputs, window = math.prod(shape[:-1]), math.prod(shape[:-2])
    if path[-1] == "embedding":
        fans = (1.0, float(shape[-1]))
        return known._replace(fan_out=fans[1], kind="embed", looked_up=True)
    kind = "dense" if len(shape) == 2 else "conv"
    return known._replace(
        fan_in=float(inputs), fan_out=float(window * shape[-1]), kind=kind
    )


def sites_of(
    task: Problem, params: Any, collections: Mapping, batch: Batch
) -> tuple[list[Site], dict[Path, type]]:
    """The floating arrays as the model uses them, and the class of each module."""
    graph = plan(task, params, collections, batch)
    types = _types(task, params, collections, batch)
    return sites_in(graph, types), types


def sites_in(graph: Graph, types: Mapping[Path, type] = NO_TYPES) -> list[Site]:
    """The floating arrays as a traced model uses them."""
    found = geometry(graph)
    ends = sum(g.copies for g in found.values() if g.residual)
    sites = []
    for path, g in found.items():
        module = types.get(path[:-1])
        transposed = module is not None and issubclass(module, nn.ConvTranspose)
        sites.append(
            Site(
                path, g.shape, g, g.role, branches=ends if g.residual else 0,
                transposed=transposed or g.kind == "conv_transpose", traced=True,
            )
        )  # fmt: skip
    return _related(sites)


def _related(sites: list[Site]) -> list[Site]:
    """With what lies in the same module, and in the same recurrent cell."""
    gates = gates_of(site.path for site in sites)
    sites = [site._replace(gate=gates.get(site.path)) for site in sites]
    beside: dict[Path, dict[str, Site]] = {}
    for site in sites:
        beside.setdefault(site.path[:-1], {}).setdefault(site.role, site)
    return [_relation(site, beside[site.path[:-1]]) for site in sites]


def _relation(site: Site, beside: Mapping[str, Site]) -> Site:
    """A summand of two axes or more with nothing beside it is no bias (positions)."""
    if site.role != "bias":
        return site
    alone = site.traced and site.rank > 1 and not {"weight", "gain"} & set(beside)
    if alone and role_of(site.path, 2) != "bias":
        return site._replace(role="other")
    return site._replace(beside=beside.get("weight"))


_ids = itertools.count()
"""A trace with another name in its parameters is taken from no cache."""


def _types(
    task: Problem, params: Any, collections: Mapping, batch: Batch
) -> dict[Path, type]:
    """The class of each module that is called and has parameters at or below it."""
    types: dict[Path, type] = {}
    owners = {path[:i] for path in flatten(params) for i in range(len(path))}
    number = next(_ids)
    rides = {(*owner, f"{RIDE}{number} {show(owner)}"): {} for owner in owners}

    def act(call):
        types.setdefault(call.path, type(call.module))
        return call.proceed(*call.args, **call.kwargs)

    def run(params, collections, batch):
        hook = interceptor(lambda m: m.variables.get("params") or None, act)
        with nn.intercept_methods(hook):
            return over_axis(
                task.axis_name,
                lambda: outputs_of(task, params, collections, batch)[0],
            )

    jax.eval_shape(run, insert(params, rides), collections, batch)
    return types
