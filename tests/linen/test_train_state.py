"""Train states, and scales as a pytree."""

from functools import partial

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as checkpoint
from flax.core import freeze
from flax.training.train_state import TrainState
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import einit_jax as ei
from einit_jax.core import insert
from tests.support.cases import squared_error
from tests.support.checks import KEY, allclose, initialized, tuned, unchecked, uneven
from tests.support.models.dense import CompactMlp
from tests.support.optimizers import (
    ADAM,
    adam_scales,
    by_hand,
    first_update,
    scanned,
    some_gradient,
)


def created(params, scales=None) -> ei.TrainState:
    """A train state as an init pipeline makes it."""
    job = scanned()._replace(params=params)
    scales = tuned(job, optimizer=ADAM) if scales is None else scales
    tx = optax.chain(optax.adam(0.01), ei.scale_updates(scales))
    apply_fn = ei.scaled(scanned().model).apply
    return ei.TrainState.create(apply_fn=apply_fn, params=params, tx=tx, scales=scales)


def stepped(state: ei.TrainState) -> ei.TrainState:
    """One step of training."""
    x = scanned().input_fn(jax.random.key(5))

    def loss(params):
        y = state.apply_fn({"params": params, "scales": state.scales}, x)
        return scanned().loss_fn(y, key=jax.random.key(6))

    return state.apply_gradients(grads=jax.grad(loss)(state.params))


def test_train_state_is_made_and_stepped_inside_jit():
    """Donated too: no two of its leaves share a buffer."""
    once = jax.jit(stepped)(jax.jit(created)(scanned().params))
    eager = stepped(created(scanned().params))
    allclose(once.params, eager.params, rtol=1e-4)
    allclose(once.scales, eager.scales, rtol=1e-4)
    assert int(once.step) == 1
    moved = jax.tree.map(
        lambda a, b: float(jnp.abs(a - b).max()), once.params, scanned().params
    )
    assert min(jax.tree.leaves(moved)) > 0
    copies = lambda: jax.tree.map(jnp.copy, (scanned().params, adam_scales()))
    donating = jax.jit(stepped, donate_argnums=0)
    for make in (created, jax.jit(created)):
        state = donating(donating(make(*copies())))
        assert int(state.step) == 2


def test_train_states_over_seeds():
    """A whole init and a step, under `vmap`."""
    many = jax.tree.map(lambda p: jnp.stack([p, 0.7 * p]), scanned().params)
    both = jax.vmap(lambda params: stepped(created(params)).params)(many)
    alone = stepped(created(scanned().params)).params
    allclose(jax.tree.map(lambda p: p[0], both), alone, rtol=1e-3)


def test_scales_survive_serialization(tmp_path):
    """flax.serialization and orbax, of scales and of a whole train state."""
    blank = jax.tree.map(jnp.zeros_like, adam_scales())
    read = flax.serialization.from_bytes(
        blank, flax.serialization.to_bytes(adam_scales())
    )
    jax.tree.map(np.testing.assert_array_equal, read, adam_scales())
    state = stepped(created(scanned().params, adam_scales()))
    # orbax puts None in the place of arrays
    with unchecked(), checkpoint.StandardCheckpointer() as saver:
        saver.save(tmp_path / "state", state)
        saver.wait_until_finished()
        back = saver.restore(tmp_path / "state", jax.tree.map(jnp.zeros_like, state))
    allclose(back, state, rtol=0)
    allclose(stepped(back).params, stepped(state).params)
    assert jax.tree.structure(freeze(adam_scales())) != jax.tree.structure(
        adam_scales()
    )
    frozen = ei.scale_updates(freeze(adam_scales()))
    allclose(first_update(frozen), by_hand(some_gradient()))


def test_train_state_over_a_mesh():
    """Parameters split over devices: the same step as on one."""
    mesh = Mesh(np.array(jax.devices()), ("model",))
    split = NamedSharding(mesh, PartitionSpec(None, "model"))
    params = {**scanned().params, "layers": jax.device_put(
        scanned().params["layers"], NamedSharding(mesh, PartitionSpec()))}  # fmt: skip
    up = params["layers"]["block"]["up"]
    wide = {**up, "kernel": jax.device_put(up["kernel"], split)}
    params = insert(params, {("layers", "block", "up"): wide})
    allclose(
        stepped(created(params)).params,
        stepped(created(scanned().params)).params,
        rtol=1e-3,
    )


X = jax.random.normal(KEY, (16, 8))


def test_train_state_takes_a_step():
    """`TrainState` steps on the gradients that the factors shape, under jit."""
    tuned, variables = initialized(CompactMlp(), X)
    params, scales = variables["params"], uneven(variables["scales"])
    state = TrainState.create(apply_fn=tuned.apply, params=params, tx=optax.sgd(0.01))

    def loss(params, apply, scales):
        return squared_error(apply({"params": params, "scales": scales}, X), KEY)

    @jax.jit
    def step(state, scales):
        value, slope = jax.value_and_grad(loss)(state.params, state.apply_fn, scales)
        return state.apply_gradients(grads=slope), value

    stepped, before = step(state, scales)
    slope = jax.grad(loss)(params, tuned.apply, scales)
    by_hand = jax.tree.map(lambda p, g: p - 0.01 * g, params, slope)
    close = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
    jax.tree.map(close, stepped.params, by_hand)
    assert step(stepped, scales)[1] < before


def test_a_train_state_made_anew_has_the_same_structure():
    """Its `apply_fn` is equal by value, and so a jitted step is traced once."""
    _, variables = initialized(CompactMlp(), X)
    traced = []

    @jax.jit
    def step(state):
        traced.append(state)
        variables = {"params": state.params, "scales": state.scales}
        return state.apply_fn(variables, X)

    def state(model):
        return ei.TrainState.create(apply_fn=ei.scaled(model).apply, tx=TX, **variables)

    first, again = state(CompactMlp()), state(CompactMlp())
    assert jax.tree.structure(first) == jax.tree.structure(again)
    assert hash(jax.tree.structure(first)) == hash(jax.tree.structure(again))
    np.testing.assert_array_equal(step(first), step(again))
    assert len(traced) == 1
    other = state(CompactMlp(dtype=jnp.bfloat16))
    assert jax.tree.structure(first) != jax.tree.structure(other)
    step(other)
    assert len(traced) == 2


TX = optax.sgd(0.1)
