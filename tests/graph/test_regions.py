"""Which values share a potential, on graphs small enough to do by hand."""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from einit_jax.graph import Regions, find_regions
from tests.support.cases import Job, squared_error
from tests.support.checks import traced
from tests.support.models import CASES

WIDTH = 4


def dense(name: str) -> nn.Module:
    return nn.Dense(WIDTH, name=name)


class Written(nn.Module):
    """A model written as one function of itself and its input."""

    body: Callable

    @nn.compact
    def __call__(self, x):
        return self.body(self, x)


def found(
    model: nn.Module, x: jax.Array, loss_fn: Callable
) -> tuple[list[str], Regions]:
    """The names of units and layers, and the regions."""
    params = model.init(jax.random.key(0), x)["params"]
    graph = traced(Job(model, params, x, loss_fn))
    names = [f"{u.name}{i or ''}" for u in graph.units for i in range(u.size)]
    return names, find_regions(graph, list(graph.units))


def parts(model: nn.Module, loss_fn: Callable = squared_error) -> set[frozenset[str]]:
    """The ports that lie together: `in`puts and outputs of units, and the loss."""
    names, where = found(model, jnp.ones((3, WIDTH)), loss_fn)
    groups: dict[int, set[str]] = {where.loss: {"loss"}}
    for name, i, o in zip(names, where.input_region, where.output_region, strict=True):
        groups.setdefault(int(i), set()).add(f">{name}")
        groups.setdefault(int(o), set()).add(f"{name}>")
    return {frozenset(group) for group in groups.values()}


def chain(m, x):
    return dense("b")(jnp.tanh(dense("a")(x)))


def residual(m, x):
    x = dense("a")(x)
    return dense("c")(x + nn.relu(dense("b")(x)))


def gated(m, x):
    x = dense("a")(x)
    return dense("d")(dense("b")(x) * jax.nn.sigmoid(dense("c")(x)))


def u_shaped(m, x):
    first = dense("a")(x)
    middle = dense("c")(jnp.tanh(dense("b")(first)))
    return dense("d")(jnp.concatenate([first, middle], -1))


def stream_is_output(m, x):
    x = dense("a")(x)
    return x + dense("b")(x)


def output_inside(m, x):
    x = dense("a")(x)
    return {"early": x, "late": dense("b")(jnp.tanh(x))}


def no_unit_on_a_path(m, x):
    return x + dense("a")(x)


def raw_input_twice(m, x):
    return dense("b")(x * jnp.tanh(dense("a")(x)))


def constant_everywhere(m, x):
    mask = jnp.where(jnp.arange(WIDTH) < 2, 0.0, -9.0)
    x = nn.softmax(dense("a")(x) + mask)
    return dense("c")(nn.softmax(dense("b")(x) + mask))


def loose_everywhere(m, x):
    gain = m.param("gain", nn.initializers.ones, (WIDTH,))
    return dense("b")(jnp.tanh(dense("a")(x)) * gain) * gain


def stopped(m, x):
    x = dense("a")(x)
    y = dense("b")(x)
    return dense("c")(y + jax.lax.stop_gradient(x))


def shared(m, x):
    layer = dense("a")
    return dense("b")(layer(jnp.tanh(layer(x))))


def two_sources(m, x):
    return Pair(name="c")(dense("a")(x), dense("b")(x))


class Pair(nn.Module):
    @nn.compact
    def __call__(self, x, y):
        kernel = self.param("kernel", nn.initializers.normal(), (WIDTH, WIDTH, WIDTH))
        return jnp.einsum("ni,nj,ijk->nk", x, y, kernel)


class Step(nn.Module):
    residual: bool = True

    @nn.compact
    def __call__(self, x, _):
        y = dense("down")(jnp.tanh(dense("up")(x)))
        return (x + y if self.residual else y), None


def scanned(m, x, residual, **keywords):
    steps = nn.scan(
        Step,
        variable_axes={"params": 0},
        split_rngs={"params": True},
        length=2,
        **keywords,
    )
    return dense("head")(steps(residual, name="s")(dense("stem")(x), None)[0])


EXPECTED = {
    "chain": (chain, ">a | a> >b | b> loss"),
    "residual": (residual, ">a | a> >b b> >c | c> loss"),
    "gated": (gated, ">a | a> >b >c | b> c> >d | d> loss"),
    "u_shaped": (u_shaped, ">a | a> >b c> >d | b> >c | d> loss"),
    "stream_is_output": (stream_is_output, ">a | a> >b b> loss"),
    "output_inside": (output_inside, ">a | a> >b b> loss"),
    "no_unit_on_a_path": (no_unit_on_a_path, ">a | a> loss"),
    "raw_input_twice": (raw_input_twice, ">a | a> >b | b> loss"),
    "constant_everywhere": (constant_everywhere, ">a | a> >b | b> >c | c> loss"),
    "loose_everywhere": (loose_everywhere, ">a | a> >b b> loss"),
    "stopped": (stopped, ">a | a> >b | b> >c | c> loss"),
    "shared": (shared, ">a a> >b | b> loss"),
    "two_sources": (two_sources, ">a | >b | a> b> >c | c> loss"),
    "scan_residual": (
        partial(scanned, residual=True),
        ">stem | stem> >s/up >s/up1 s/down> s/down1> >head | s/up> >s/down"
        " | s/up1> >s/down1 | head> loss",
    ),
    "scan_chain": (
        partial(scanned, residual=False),
        ">stem | stem> >s/up | s/up> >s/down | s/down> >s/up1 | s/up1> >s/down1"
        " | s/down1> >head | head> loss",
    ),
    "scan_reversed": (
        partial(scanned, residual=False, reverse=True),
        ">stem | stem> >s/up1 | s/up1> >s/down1 | s/down1> >s/up | s/up> >s/down"
        " | s/down> >head | head> loss",
    ),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_regions_of_small_graphs(name):
    body, expected = EXPECTED[name]
    wanted = {frozenset(part.split()) for part in expected.split(" | ")}
    assert parts(Written(body)) == wanted


def test_transforms_change_no_region():
    """`nn.remat`, `nn.jit` and `nn.vmap` over the batch leave the parts as they are."""
    step = lambda lifted: Written(lambda m, x: lifted(name="s")(x, None)[0])
    plain = parts(step(Step))
    assert len(plain) == 3
    assert parts(step(nn.remat(Step))) == plain
    assert parts(step(nn.jit(Step))) == plain
    shared = nn.vmap(
        Step,
        in_axes=(0, None),  # pyright: ignore[reportArgumentType]
        variable_axes={"params": None},
        split_rngs={"params": False},
    )
    assert parts(step(shared)) == plain


def test_only_what_is_chosen_is_cut():
    """A unit that keeps factors of 1 couples what it touches, as any other function."""
    model = Written(residual)
    x = jnp.ones((3, WIDTH))
    params = model.init(jax.random.key(0), x)["params"]
    graph = traced(Job(model, params, x, squared_error))
    where = find_regions(graph, [u for u in graph.units if u.name != "c"])
    a, b = 0, 1
    assert (
        where.output_region[a]
        == where.input_region[b]
        == where.output_region[b]
        == where.loss
    )


def test_shared_parameters_share_their_inside():
    """A table entered by lookup and by `attend` has one potential for its gradient."""
    graph = traced(CASES["tied_lm"].build())
    where = find_regions(graph, list(graph.units))
    names = [u.name for u in graph.units]
    assert (
        where.inner_region[names.index("wte")]
        == where.inner_region[names.index("wte/attend")]
    )
    assert where.free[where.inner_region].all()
