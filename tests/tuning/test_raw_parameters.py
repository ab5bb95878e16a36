"""Parameters that belong to no unit have factors for their updates."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import einit_jax as ei
from tests.support.cases import Job
from tests.support.checks import allclose, measured, refuses, some, tuned
from tests.support.optimizers import ADAM, first_update

TOKENS, WIDTH = 5, 8
MOMENTUM = optax.sgd(1.0, 0.9)
RAW = ("token", "positions", "gain", "mix", "temperature")


def with_token(token: jax.Array, x: jax.Array) -> jax.Array:
    return jnp.concatenate([jnp.tile(token, (len(x), 1, 1)), x], 1)


def between(params: Mapping, x: Any) -> jax.Array:
    """What raw parameters make of one layer's outputs, before the next one."""
    x = with_token(params["token"], x) + params["positions"]
    return jnp.tanh(x * params["gain"]) @ params["mix"]


class Raw(nn.Module):
    """A token, positions, a gain, a matrix and a temperature, all of them raw."""

    @nn.compact
    def __call__(self, x):
        draw, size = nn.initializers.normal(0.3), (TOKENS + 1, WIDTH)
        params = {
            "token": self.param("token", draw, (1, 1, WIDTH)),
            "positions": self.param("positions", draw, size),
            "gain": self.param("gain", nn.initializers.ones, (WIDTH,)),
            "mix": self.param("mix", draw, (WIDTH, WIDTH)),
        }
        x = between(params, nn.Dense(WIDTH, name="first")(x))
        y = nn.Dense(4, name="last")(x).mean(1)
        return y * self.param("temperature", nn.initializers.constant(3.0), ())


class Layer(nn.Module):
    """A gain and a shift around a dense layer, both raw."""

    @nn.compact
    def __call__(self, x, _=None):
        x = x + self.param("shift", nn.initializers.normal(0.5), (WIDTH,))
        y = nn.Dense(WIDTH, name="dense")(x)
        return x + y * self.param("gain", nn.initializers.normal(1.0), (WIDTH,)), None


class Written(nn.Module):
    """Several layers of them."""

    scanned: bool
    depth: int

    @nn.compact
    def __call__(self, x):
        if self.scanned:
            layers = nn.scan(
                Layer,
                variable_axes={"params": 0},
                split_rngs={"params": True},
                length=self.depth,
            )
            x, _ = layers(name="layers")(x, None)
        else:
            for i in range(self.depth):
                x, _ = Layer(name=f"layer{i}")(x)
        return nn.Dense(4, name="head")(x)


def loss(y: jax.Array) -> jax.Array:
    return jnp.mean(jnp.square(y - jnp.arange(4.0)))


def job_of(model: nn.Module, shape: tuple = (6, TOKENS, 3)) -> Job:
    x = jax.random.normal(jax.random.key(1), shape)
    params = jax.jit(model.init)(jax.random.key(0), x)["params"]
    return Job(model, params, lambda key: x, loss)


def scaled_gradient(job: Job, scales: Any) -> Any:
    """The gradients that the scaled model carries."""
    apply, x = ei.scaled(job.model).apply, job.input_fn(None)

    def value(params: Any) -> jax.Array:
        return job.loss_fn(apply({"params": params, "scales": scales}, x))

    return jax.grad(value)(job.params)


def first_steps(job: Job, scales: Any, optimizer: Any) -> Any:
    """The updates by which training begins, at learning rate 1."""
    if optimizer is None:
        return jax.tree.map(jnp.negative, scaled_gradient(job, scales))
    tx = optax.chain(optimizer, ei.scale_updates(scales))
    return first_update(tx, scaled_gradient(job, scales), job.params)


def changes_at_once(job: Job, scales: Any, steps: Any) -> dict[str, float]:
    """By differences: the rms by which each raw step moves what reads it."""
    x, params = job.input_fn(None), dict(job.params)
    inner = nn.Dense(WIDTH).apply({"params": params["first"]}, x)
    inner = scales["first"]["output"] * inner
    last = nn.Dense(4).apply({"params": params["last"]}, between(params, inner))
    outputs = scales["last"]["output"] * last.mean(1)

    def read(params: Mapping) -> tuple[jax.Array, jax.Array]:
        return between(params, inner), outputs * params["temperature"]

    moved = {}
    for name in RAW:
        ends = [read(params | {name: params[name] + way * steps[name]}) for way in WAYS]
        sizes = [
            jnp.sqrt(jnp.mean(jnp.square(a - b))) for a, b in zip(*ends, strict=True)
        ]
        moved[name] = float(max(sizes) / (WAYS[0] - WAYS[1]))
    return moved


WAYS = (1e-3, -1e-3)


@pytest.mark.parametrize("optimizer", [ADAM, MOMENTUM, optax.lion(1.0)])
@pytest.mark.parametrize("gradients", ["exact", "unit", "plain"])
def test_each_moves_its_readers_by_one(optimizer, gradients):
    """As each unit its output, by the step of training; not without its factor."""
    job = job_of(Raw())
    how = {"optimizer": optimizer, "gradients": gradients, "update": "local"}
    scales = tuned(job, **how)
    moved = changes_at_once(job, scales, first_steps(job, scales, optimizer))
    assert moved == pytest.approx(dict.fromkeys(RAW, 1.0), rel=5e-3)
    bare = {name: own for name, own in scales.items() if name not in RAW}
    without = changes_at_once(job, scales, first_steps(job, bare, optimizer))
    assert max(abs(np.log(list(without.values())))) > 0.5


@pytest.mark.parametrize("optimizer", [ADAM, MOMENTUM, None])
def test_the_total_update_counts_them(optimizer):
    """Those that multiply, by another way than `tune`'s; all are as fast as units, and
    listed."""
    job = job_of(Raw())
    scales = tuned(job, optimizer=optimizer)
    table = measured(job, scales=scales, optimizer=optimizer)
    assert float(jnp.max(table.total_update_rms)) == pytest.approx(1, rel=5e-3)
    assert set(table.raw) == set(RAW)
    assert not table.loose
    assert set(table.added) == {"token", "positions"}
    assert float(table.loose_update_rms) > 0
    notes = "\n".join(table.notes())
    assert "raw parameters with factors of their own: " in notes
    assert "token (only added)" in notes
    moved = changes_at_once(job, scales, first_steps(job, scales, optimizer))
    own = {row["path"]: row["update_rms"] for row in table.rows()}
    assert moved == pytest.approx(dict.fromkeys(RAW, own["first"]), rel=5e-3)
    left = tuned(job, optimizer=optimizer, exclude=["token", "mix"])
    assert not {"token", "mix"} & left.keys()
    table = measured(job, scales=left, optimizer=optimizer)
    assert set(table.loose) == {"token", "mix"}
    assert float(table.loose_update_rms) > 0
    assert "mix (raw parameter without a factor)" in "\n".join(table.notes())


def test_sgd_has_factors_for_their_gradients():
    """True ones up to a positive number, by `update="total"` alone."""
    job = job_of(Raw())
    scales = tuned(job)
    assert {tuple(scales[name]) for name in RAW} == {("output_grad",)}
    true = jax.grad(
        lambda p: loss(
            ei.scaled(job.model).apply(
                {"params": p, "scales": forward_alone(scales)}, job.input_fn(None)
            )
        )
    )(job.params)
    carried = scaled_gradient(job, scales)
    for name in RAW:
        ratio = np.asarray(carried[name] / true[name])
        np.testing.assert_allclose(ratio, ratio.mean(), rtol=1e-4)
        assert ratio.mean() > 0
    assert not set(RAW) & tuned(job, update="local").keys()


def forward_alone(scales: Mapping) -> dict:
    """The factors a, and no others."""
    own = lambda factors: {n: f if n == "output" else 1.0 for n, f in factors.items()}
    return {unit: own(scales[unit]) for unit in ("first", "last")}


@pytest.mark.parametrize(
    ("optimizer", "depth"), [(ADAM, 3), (MOMENTUM, 3), (None, 3), (ADAM, 5)]
)
def test_each_layer_of_a_scan_has_its_own(optimizer, depth):
    """That of the layers written out; five are more than are looked at in one round."""
    job = job_of(Written(True, depth), (6, WIDTH))
    layers = job.params["layers"]
    at = lambda i: jax.tree.map(lambda x: x[i], layers)
    params = {"head": job.params["head"], **{f"layer{i}": at(i) for i in range(depth)}}
    scales = tuned(job, optimizer=optimizer)
    written = tuned(Job(Written(False, depth), params, *job[2:4]), optimizer=optimizer)
    for i in range(depth):
        one = jax.tree.map(lambda x, i=i: x[i], scales["layers"])
        allclose(one, written[f"layer{i}"], rtol=1e-4)
    assert jax.tree.leaves(scales["layers"]["gain"])[0].shape == (depth,)
    if optimizer is not None:
        ones = jax.tree.map(jnp.ones_like, job.params)
        found = first_update(ei.scale_updates(scales), ones, job.params)
        wanted = jnp.tile(scales["layers"]["gain"]["update"][:, None], (1, WIDTH))
        allclose(found["layers"]["gain"], wanted, rtol=1e-6)


class Positions(nn.Module):
    """Adds a table to its input; a unit."""

    @nn.compact
    def __call__(self, x):
        return x + self.param("table", nn.initializers.normal(1.0), x.shape[1:])


class Placed(nn.Module):
    """Positions between two layers, raw or of a module of their own."""

    wrapped: bool

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(WIDTH, name="first")(x)
        if self.wrapped:
            x = Positions(name="positions")(x)
        else:
            x = x + self.param("positions", nn.initializers.normal(1.0), x.shape[1:])
        return nn.Dense(4, name="last")(x).mean(1)


def test_raw_is_as_wrapped():
    """The steps of a raw table are those of one that is a unit, at equal outputs."""
    job = job_of(Placed(wrapped=True))
    targets = {"positions": 2.0, "*": 1.0}
    scales = tuned(job, optimizer=ADAM, targets=targets)
    a = float(scales["positions"]["output"])
    # the unit's factor a times both summands: the same network, written raw
    first = jax.tree.map(lambda x: a * x, job.params["first"])
    table = a * job.params["positions"]["table"]
    params = {"first": first, "positions": table, "last": job.params["last"]}
    aimed = {"first": a, "last": 1.0}
    raw = tuned(Job(Placed(False), params, *job[2:4]), optimizer=ADAM, targets=aimed)
    own = lambda scales: scales["positions"]["update"] / scales["last"]["update"]
    assert float(own(raw)) == pytest.approx(a * float(own(scales)), rel=1e-3)
    assert abs(a - 1) > 0.1


def test_loose_overrides_their_factors():
    job = job_of(Raw())
    scales = tuned(job, optimizer=ADAM)
    ones = jax.tree.map(jnp.ones_like, job.params)
    found = first_update(ei.scale_updates(scales, loose=0.25), ones, job.params)
    own = first_update(ei.scale_updates(scales), ones, job.params)
    for name in RAW:
        allclose(found[name], jnp.full_like(ones[name], 0.25))
        wanted = jnp.full_like(ones[name], scales[name]["update"])
        allclose(own[name], wanted, rtol=1e-6)
    allclose(found["first"], own["first"])


@pytest.mark.parametrize("optimizer", [ADAM, None])
def test_under_transformations(optimizer):
    job, run = job_of(Raw()), partial(tuned, optimizer=optimizer)
    with_params = lambda params: run(job._replace(params=params))
    eager = run(job)
    allclose(jax.jit(with_params)(job.params), eager, rtol=1e-4)
    many = jax.tree.map(lambda p: jnp.stack([p, 0.7 * p]), job.params)
    both = jax.vmap(with_params)(many)
    allclose(jax.tree.map(lambda s: s[0], both), eager, rtol=1e-4)
    assert jax.tree.structure(run(job, draws=2)) == jax.tree.structure(eager)


@some("vit", "layer_scale")
def test_published_patterns(case):
    """Each raw parameter that the model reads has a positive factor."""
    job = case.build()
    scales = tuned(job, optimizer=ADAM)
    for name in case.loose:
        own: Any = scales
        for part in name.split("/"):
            own = own[part]
        assert float(jnp.min(own["update"])) > 0


def test_scales_of_other_parameters_are_refused():
    """Before anything runs, with the path."""
    job = job_of(Raw())
    scales = tuned(job, optimizer=ADAM)
    wide = {**scales, "gain": {"update": jnp.ones((3,))}}
    with refuses(ValueError, match="'gain' have the factor"):
        ei.measure(*job[:4], scales=wide, optimizer=ADAM)
    with refuses(ValueError, match=r"for layers that .*gain.* has not"):
        ei.scale_updates(wide).init(job.params)
    foreign = {**scales, "other": {"update": jnp.ones(())}}
    with refuses(ValueError, match="other"):
        ei.measure(*job[:4], scales=foreign, optimizer=ADAM)


def drawn_token(module: Any) -> jax.Array:
    init = nn.initializers.normal(module.size)
    return module.param("token", init, (1, 1, WIDTH))


class Token(nn.Module):
    """A token before all others; a unit."""

    size: float

    @nn.compact
    def __call__(self, x):
        return with_token(drawn_token(self), x)


class Normed(nn.Module):
    """A token of some size before a normalization, raw or of a module of its own."""

    size: float
    wrapped: bool = False

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(WIDTH, name="first")(x)
        if self.wrapped:
            x = Token(self.size, name="token")(x)
        else:
            x = with_token(drawn_token(self), x)
        return nn.Dense(4, name="last")(nn.LayerNorm(name="norm")(x)[:, 0])


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("optimizer", [ADAM, None])
def test_a_token_near_zero_slows_nothing_down(optimizer, wrapped):
    """Its derivative is 1000, its step is not: it does not count, and is named."""
    unit_factor = "output_grad" if optimizer is None else "update"
    found = []
    for size in (1.0, 1e-3):
        job = job_of(Normed(size, wrapped))
        scales = tuned(job, optimizer=optimizer)
        table = measured(job, scales=scales, optimizer=optimizer)
        assert table.added == ("token",)
        assert "token (only added)" in "\n".join(table.notes())
        assert float(jnp.max(table.total_update_rms)) == pytest.approx(1, rel=5e-3)
        found.append((scales["last"][unit_factor], table.loose_update_rms))
    (factor, moves), (same, far) = found
    assert float(same / factor) == pytest.approx(1, rel=0.5)
    assert float(far) > 100 * float(moves)


class Tied(nn.Module):
    """A raw gain, and an embedding whose table is read outside of its unit."""

    @nn.compact
    def __call__(self, tokens):
        embed = nn.Embed(16, 8, name="embed")
        h = jnp.tanh(nn.Dense(8, name="dense")(embed(tokens)))
        h = h * self.param("gain", nn.initializers.constant(0.5), (8,))
        return h @ embed.embedding.T


@pytest.mark.parametrize("optimizer", [None, optax.adam])
def test_beside_a_table_that_is_tied_by_hand(optimizer):
    """The check of gradients that such a table asks for knows units alone."""
    tokens = jnp.arange(12).reshape(3, 4)
    to_one = lambda y: jnp.mean(jnp.square(y - 1))
    model = Tied()
    params = model.init(jax.random.key(0), tokens)["params"]
    scales = ei.tune(model, params, tokens, to_one, optimizer=optimizer)
    assert set(scales["gain"]) == {"output_grad" if optimizer is None else "update"}
    table = ei.measure(
        model, params, tokens, to_one, scales=scales, optimizer=optimizer
    )
    assert jnp.allclose(table.output_rms, 1, rtol=1e-2)
    assert jnp.allclose(table.cosine, 1, atol=1e-3)
