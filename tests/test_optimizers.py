"""The third pillar for any optimizer: what `tune`, `measure` and `scale_updates` do."""

from functools import partial

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as checkpoint
import pytest
from flax.core import freeze
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import einit_jax as ei
from einit_jax.core import flatten, insert, unboxed
from einit_jax.units import from_tree
from tests.models import CASES, Case, Job
from tests.test_exact import gradients, unit_outputs
from tests.test_models import measured, some, tuned

OPTIMIZERS = {
    "sgd": optax.sgd(1.0),
    "momentum": optax.sgd(1.0, 0.9, nesterov=True),
    "adam": optax.adam(1.0),
    "adamw": optax.adamw(1.0, weight_decay=0.1),
    "lion": optax.lion(1.0),
    "muon": optax.contrib.muon(1.0),
    "lamb": optax.lamb(1.0),
    "adafactor": optax.adafactor(1.0),
    "clipped": optax.chain(optax.clip_by_global_norm(1.0), optax.rmsprop(1.0)),
}
ADAM = OPTIMIZERS["adam"]
JOB = CASES["scan_layers"].build()
SCALES = tuned(JOB, optimizer=ADAM)


def holds(job: Job, optimizer, scales) -> tuple[str, ...]:
    """The rules of updates that hold for an optimizer's own steps."""
    return measured(job, scales=scales, optimizer=optimizer).modes()["update"]


@some("scan_axis_1", "nn_jit_cached", "used_twice", "tied_lm", "adaln_zero", "complex",
      "bfloat16", "integer_parameter", "layer_scale")  # fmt: skip
def test_updates_of_adam_are_one(case: Case):
    """All alike, and the largest change 1; not with the factors left out."""
    job = case.build()
    scales = tuned(job, optimizer=ADAM)
    leaves = np.concatenate([np.ravel(s) for s in jax.tree.leaves(scales)])
    assert np.all(np.isfinite(leaves) & (leaves > 0))
    assert "total" in holds(job, ADAM, scales)
    without = set_update(scales, jnp.ones_like)
    assert not holds(job, ADAM, without)


@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if name != "adam"])
def test_updates_of_any_optimizer_are_one(name):
    """Where the optimizer looks at parameters, norms or whole matrices too."""
    optimizer = OPTIMIZERS[name]
    scales = tuned(JOB, optimizer=optimizer)
    assert "total" in holds(JOB, optimizer, scales)
    if name in ("sgd", "momentum"):  # whose first step is the gradient's already
        for own in from_tree(scales, JOB.params).values():
            size = own["update"] / scales["head"]["update"]
            np.testing.assert_allclose(size, 1, rtol=1e-4)


def test_rules_of_updates():
    """Each unit by itself; with gradients as they are; and SGD's own rule as before."""
    assert "local" in holds(JOB, ADAM, tuned(JOB, optimizer=ADAM, update="local"))
    plain = tuned(JOB, optimizer=ADAM, gradients="plain")
    assert "total" in holds(JOB, ADAM, plain)
    for own in from_tree(plain, JOB.params).values():
        np.testing.assert_array_equal(own["input_grad"], 1)
        np.testing.assert_array_equal(own["output_grad"], 1)
    assert holds(JOB, None, SCALES) == ("local",)  # the common factor is in `update`
    assert not holds(JOB, ADAM, tuned(JOB))


def set_update(scales: dict, change) -> dict:
    """The scales with their factors `update` changed."""
    pick = lambda path, s: change(s) if path[-1].key == "update" else s
    return jax.tree.map_with_path(pick, scales)


@some("compact_mlp", "swiglu", "masked_attention", "tensors")
def test_a_step_of_adam_moves_outputs_as_much_as_its_rate(case: Case):
    """At 1e-3 the largest change of a unit's output is 1e-3 within 5%, for real.

    By bare Adam, whose step is 1 in each parameter, it is several times as much.
    """
    job, moved = case.build(), {}
    scales = tuned(job, optimizer=ADAM)
    (gradient,) = gradients(job, scales)
    params = flatten(unboxed(job.params))
    before = unit_outputs(job, job.params, scales, case.units)
    for name, last in {
        "ours": ei.scale_updates(scales),
        "bare": optax.identity(),
    }.items():
        tx = optax.chain(optax.adam(1e-3), last)
        step, _ = tx.update(insert({}, gradient), tx.init(job.params), job.params)
        stepped = insert({}, {p: v + flatten(step)[p] for p, v in params.items()})
        after = unit_outputs(job, stepped, scales, case.units)
        sizes = [jnp.sqrt(jnp.mean((after[k] - before[k]) ** 2)) for k in before]
        moved[name] = float(max(sizes))
    np.testing.assert_allclose(moved["ours"], 1e-3, rtol=0.05)
    assert moved["bare"] > 2e-3


@pytest.mark.parametrize("gradients", ["exact", "plain"])
def test_tune_with_an_optimizer_under_transformations(gradients):
    """`jit`, `vmap`, draws and a choice of units."""
    job, run = JOB, partial(tuned, optimizer=ADAM, gradients=gradients)
    close = partial(np.testing.assert_allclose, rtol=1e-4)
    eager = run(job)
    with_params = lambda params: run(job._replace(params=params))
    jax.tree.map(close, jax.jit(with_params)(job.params), eager)
    many = jax.tree.map(lambda p: jnp.stack([p, 0.7 * p]), job.params)
    both = jax.vmap(with_params)(many)
    jax.tree.map(lambda s, one: close(s[0], one), both, eager)
    assert jax.tree.structure(run(job, draws=2)) == jax.tree.structure(eager)
    left = run(job, exclude="head")["head"]
    assert set(map(float, left.values())) == {1.0}


# `scale_updates` itself.

GRADIENT = jax.tree.map(lambda p: jnp.cos(jnp.arange(1.0, p.size + 1).reshape(p.shape)),
                        JOB.params)  # fmt: skip


def by_hand(updates: dict, scales: dict = SCALES) -> dict:
    """What the transformation ought to do: in this model all lifted axes come first."""
    out = {"head": {}, "layers": {"block": {"up": {}, "down": {}}}}
    for name, value in updates["head"].items():
        out["head"][name] = value * scales["head"]["update"]
    for unit, own in updates["layers"]["block"].items():
        factor = scales["layers"]["block"][unit]["update"]
        for name, value in own.items():
            wide = factor.reshape(-1, *(1,) * (value.ndim - 1))
            out["layers"]["block"][unit][name] = value * wide
    return out


def first_update(tx, gradient=GRADIENT, params=JOB.params):
    return tx.update(gradient, tx.init(params), params)[0]


def same(a, b, rtol=1e-6):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=rtol), a, b)


def labels(params):
    return {"head": "left", "layers": "scaled"} if "head" in params else params


def test_scale_updates_multiplies_each_layer():
    same(first_update(ei.scale_updates(SCALES)), by_hand(GRADIENT))
    with pytest.raises(AssertionError):
        same(first_update(optax.identity()), by_hand(GRADIENT))


def test_scale_updates_wherever_optax_takes_it():
    """In each of its wrappers, and compiled."""
    ours, adam = ei.scale_updates(SCALES), optax.adam(0.1)
    steps = first_update(adam)
    wanted = by_hand(steps)
    same(first_update(optax.chain(adam, ours)), wanted)
    same(jax.jit(partial(first_update, optax.chain(adam, ours)))(), wanted)
    injected = optax.inject_hyperparams(
        lambda rate: optax.chain(optax.adam(rate), ei.scale_updates(SCALES))
    )
    same(first_update(injected(rate=0.1)), wanted)
    schedule = optax.chain(optax.adam(optax.constant_schedule(0.1)), ours)
    same(first_update(schedule), wanted)
    half = {"head": steps["head"], "layers": wanted["layers"]}
    for mask in (
        {"head": False, "layers": True},
        jax.tree.map_with_path(lambda path, _: path[0].key != "head", JOB.params),
    ):
        same(first_update(optax.chain(adam, optax.masked(ours, mask))), half)
    parts = {"left": adam, "scaled": optax.chain(adam, ours)}
    same(first_update(optax.multi_transform(parts, labels)), half)
    every = optax.MultiSteps(optax.chain(adam, ours), 2)
    state = every.init(JOB.params)
    still, state = every.update(GRADIENT, state, JOB.params)
    assert max(float(jnp.abs(x).max()) for x in jax.tree.leaves(still)) == 0
    same(every.update(GRADIENT, state, JOB.params)[0], wanted, rtol=1e-5)


@some("tied_lm", "boxed", "frozen_dict", "layer_scale", "scan_axis_1", "bfloat16",
      "method_encode")  # fmt: skip
def test_scale_updates_of_every_kind_of_tree(case: Case):
    """Each array gets the factor of its unit, in its own dtype; loose ones get 1."""
    job = case.build()
    scales = tuned(job, optimizer=ADAM)
    ones = jax.tree.map(jnp.ones_like, job.params)
    found = first_update(ei.scale_updates(scales), ones, job.params)
    dtype = lambda x: x.dtype
    assert jax.tree.structure(found) == jax.tree.structure(job.params)
    assert jax.tree.map(dtype, found) == jax.tree.map(dtype, ones)
    factors = {
        p: own["update"] for (p, _), own in from_tree(scales, unboxed(ones)).items()
    }
    for path, value in flatten(unboxed(found)).items():
        owner = next((p for p in factors if path[: len(p)] == p), None)
        wanted = jnp.ones(()) if owner is None else factors[owner]
        below = any("/".join(path).startswith(p) for p in case.loose | case.unreached)
        assert (owner is None) == below
        rtol = 1e-2 if value.dtype == jnp.bfloat16 else 1e-6
        seen, wanted = np.unique(np.float32(value)), np.unique(wanted)
        np.testing.assert_allclose(seen, wanted, rtol=rtol)


def test_loose_parameters_have_a_factor_of_their_own():
    """With 1 over what they move, they move no output by more than 1."""
    job = CASES["layer_scale"].build()
    scales = tuned(job, optimizer=ADAM)
    table = measured(job, scales=scales, optimizer=ADAM)
    by = 1 / table.loose_update_rms
    assert by < 0.9
    ones = jax.tree.map(jnp.ones_like, job.params)
    found = first_update(ei.scale_updates(scales, loose=by), ones, job.params)
    np.testing.assert_allclose(found["layers_0"]["gain"], by, rtol=1e-6)
    others = first_update(ei.scale_updates(scales), ones, job.params)
    same(found["layers_0"]["block"], others["layers_0"]["block"])


def untuned():
    return ei.scale_updates(tuned(JOB))


def other():
    return first_update(ei.scale_updates({**SCALES, "body": SCALES["head"]}))


def variables():
    return first_update(ei.scale_updates(SCALES), GRADIENT, {"params": JOB.params})


def flat():
    return first_update(optax.flatten(ei.scale_updates(SCALES)))


def mixed():
    return measured(JOB, scales={**SCALES, "head": tuned(JOB)["head"]})


WARM_UP = optax.adam(optax.linear_schedule(0, 1, 9))
BAD = {
    untuned: (ValueError, ["'head'", "optimizer="]),
    partial(ei.scale_updates, None): (TypeError, ["NoneType"]),
    partial(ei.scale_updates, SCALES, loose=jnp.ones(2)): (TypeError, ["loose"]),
    partial(ei.scale_updates, {}): (ValueError, ["update", "optimizer="]),
    other: (ValueError, ["'body'", "no module"]),
    variables: (ValueError, ["no module", "nested as params"]),
    flat: (ValueError, ["no module", "nested as params"]),
    mixed: (ValueError, ["'head'", "update"]),
    partial(tuned, JOB, optimizer=optax.adam): (TypeError, ["call it"]),
    partial(tuned, JOB, optimizer=1.0): (TypeError, ["1.0", "optax.adam(1.0)"]),
    partial(tuned, JOB, optimizer=WARM_UP): (ValueError, ["moves no parameter"]),
    partial(tuned, JOB, optimizer=optax.lbfgs(1.0)): (ValueError, ["first step"]),
    partial(tuned, JOB, optimizer=optax.scale(float("nan"))): (
        FloatingPointError,
        ["first step", "not finite"],
    ),
    partial(tuned, JOB, gradients="plain"): (ValueError, ["optimizer=optax"]),
    partial(measured, JOB, optimizer="adam"): (TypeError, ["'adam'"]),
}


@pytest.mark.parametrize("call", BAD, ids=lambda c: getattr(c, "__name__", None))
def test_bad_optimizers_are_refused(call):
    kind, words = BAD[call]
    with pytest.raises(kind) as error:
        call()
    for word in words:
        assert word in str(error.value)


# The train state, and scales as a pytree.


def created(params, scales=None) -> ei.TrainState:
    """A train state as an init pipeline makes it."""
    job = JOB._replace(params=params)
    scales = tuned(job, optimizer=ADAM) if scales is None else scales
    tx = optax.chain(optax.adam(0.01), ei.scale_updates(scales))
    apply_fn = ei.scaled(JOB.model).apply
    return ei.TrainState.create(apply_fn=apply_fn, params=params, tx=tx, scales=scales)


def stepped(state: ei.TrainState) -> ei.TrainState:
    """One step of training."""
    x = JOB.input_fn(jax.random.key(5))

    def loss(params):
        y = state.apply_fn({"params": params, "scales": state.scales}, x)
        return JOB.loss_fn(y, key=jax.random.key(6))

    return state.apply_gradients(grads=jax.grad(loss)(state.params))


def test_train_state_is_made_and_stepped_inside_jit():
    """Donated too: no two of its leaves share a buffer."""
    once = jax.jit(stepped)(jax.jit(created)(JOB.params))
    eager = stepped(created(JOB.params))
    same(once.params, eager.params, rtol=1e-4)
    same(once.scales, eager.scales, rtol=1e-4)
    assert int(once.step) == 1
    moved = jax.tree.map(
        lambda a, b: float(jnp.abs(a - b).max()), once.params, JOB.params
    )
    assert min(jax.tree.leaves(moved)) > 0
    copies = lambda: jax.tree.map(jnp.copy, (JOB.params, SCALES))
    donating = jax.jit(stepped, donate_argnums=0)
    for make in (created, jax.jit(created)):
        state = donating(donating(make(*copies())))
        assert int(state.step) == 2


def test_train_states_over_seeds():
    """A whole init and a step, under `vmap`."""
    many = jax.tree.map(lambda p: jnp.stack([p, 0.7 * p]), JOB.params)
    both = jax.vmap(lambda params: stepped(created(params)).params)(many)
    alone = stepped(created(JOB.params)).params
    same(jax.tree.map(lambda p: p[0], both), alone, rtol=1e-3)


def test_scales_survive_serialization(tmp_path):
    """flax.serialization and orbax, of scales and of a whole train state."""
    blank = jax.tree.map(jnp.zeros_like, SCALES)
    read = flax.serialization.from_bytes(blank, flax.serialization.to_bytes(SCALES))
    jax.tree.map(np.testing.assert_array_equal, read, SCALES)
    state = stepped(created(JOB.params, SCALES))
    with checkpoint.StandardCheckpointer() as saver:
        saver.save(tmp_path / "state", state)
        saver.wait_until_finished()
        back = saver.restore(tmp_path / "state", jax.tree.map(jnp.zeros_like, state))
    jax.tree.map(np.testing.assert_array_equal, back, state)
    same(stepped(back).params, stepped(state).params)
    assert jax.tree.structure(freeze(SCALES)) != jax.tree.structure(SCALES)
    frozen = ei.scale_updates(freeze(SCALES))
    same(first_update(frozen), by_hand(GRADIENT))


def test_train_state_over_a_mesh():
    """Parameters split over devices: the same step as on one."""
    mesh = Mesh(np.array(jax.devices()), ("model",))
    split = NamedSharding(mesh, PartitionSpec(None, "model"))
    params = {**JOB.params, "layers": jax.device_put(
        JOB.params["layers"], NamedSharding(mesh, PartitionSpec()))}  # fmt: skip
    up = params["layers"]["block"]["up"]
    wide = {**up, "kernel": jax.device_put(up["kernel"], split)}
    params = insert(params, {("layers", "block", "up"): wide})
    same(
        stepped(created(params)).params, stepped(created(JOB.params)).params, rtol=1e-3
    )
