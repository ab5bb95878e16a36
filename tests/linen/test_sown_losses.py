"""Losses of what the model sows: tuned as if it were returned, or refused."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import einit_jax as ei
from tests.support.checks import KEY, allclose, refuses

X = jax.random.normal(jax.random.key(1), (32, 6))
Y = jax.random.normal(jax.random.key(2), (32, 4))


def balance(probabilities):
    return jnp.sum(jnp.square(jnp.mean(probabilities, 0)))


class Mixture(nn.Module):
    """Experts weighed by a router, whose balance is sown."""

    @nn.compact
    def __call__(self, x):
        weights = nn.softmax(nn.Dense(3, name="router")(x))
        self.sow("losses", "balance", balance(weights))
        experts = jnp.stack([nn.tanh(nn.Dense(8)(x)) for _ in range(3)], -1)
        return x + jnp.sum(experts * weights[:, None], -1)


class Stack(nn.Module):
    """Mixtures one after the other, or as layers of a scan."""

    scanned: bool = False

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(8)(x)
        if not self.scanned:
            x = Mixture()(Mixture()(x))
        else:
            step = lambda mixture, x, _: (mixture(x), None)
            layers = {"params": 0, "losses": 0}
            x, _ = nn.scan(
                step, variable_axes=layers, split_rngs={"params": True}, length=2
            )(Mixture(), x, None)
        return nn.Dense(4)(x)


class Returned(nn.Module):
    """The same model, which returns what it has sown."""

    scanned: bool = False

    @nn.compact
    def __call__(self, x):
        inner = Stack(self.scanned)
        nn.share_scope(self, inner)
        outputs = inner(x)
        return outputs, self.variables["losses"]


class SowingUnit(nn.Module):
    """A unit that sows what it has not returned yet."""

    @nn.compact
    def __call__(self, x):
        kernel = self.param("kernel", nn.initializers.normal(1.0), (6, 3))
        weights = nn.softmax(x @ kernel)
        self.sow("losses", "balance", balance(weights))
        return weights


class Around(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(4)(SowingUnit()(x))


def loss_fn(outputs, labels, collections):
    sown = sum(jnp.sum(x) for x in jax.tree.leaves(collections["losses"]))
    return jnp.mean(jnp.square(outputs - labels)) + 0.3 * sown


@pytest.mark.parametrize("scanned", [False, True])
def test_carried_gradients_of_sown_losses_are_true(scanned):
    """Each parameter's is the true one times a positive number; without b, the size."""
    model = Stack(scanned)
    params = model.init(KEY, X)["params"]
    scales = ei.tune(model, params, (X, Y), loss_fn)

    def loss(params, scales):
        variables = {"params": params, "scales": scales}
        outputs, written = ei.scaled(model).apply(variables, X, mutable=["losses"])
        return loss_fn(outputs, Y, written)

    alone = {"output": lambda x: x, "input_grad": jnp.ones_like}
    plain = jax.tree_util.tree_map_with_path(
        lambda path, x: alone.get(path[-1].key, jnp.ones_like)(x), scales
    )
    gradient = jax.jit(jax.grad(loss))
    carried, true = gradient(params, scales), gradient(params, plain)
    for a, b in zip(*map(jax.tree.leaves, (carried, true)), strict=True):
        rows = (2, -1) if scanned and a.shape[0] == 2 else (1, -1)
        a, b = (np.asarray(x, np.float64).reshape(rows) for x in (a, b))
        cosine = (a * b).sum(1) / np.sqrt((a * a).sum(1) * (b * b).sum(1))
        np.testing.assert_allclose(cosine, 1, atol=1e-4)
    assert not np.allclose(scales["Dense_1"]["input_grad"], 1)


def test_what_is_sown_counts_as_what_is_returned():
    sown = Stack().init(KEY, X)["params"]
    loss_of_both = lambda both, labels: loss_fn(both[0], labels, {"losses": both[1]})
    returned = Returned()
    found = ei.tune(returned, sown, (X, Y), loss_of_both)
    allclose(ei.tune(Stack(), sown, (X, Y), loss_fn), found, rtol=1e-4)
    alone = lambda outputs, labels: jnp.mean(jnp.square(outputs - labels))
    other = ei.tune(Stack(), sown, (X, Y), alone)
    router = found["Mixture_0"]["router"]["output_grad"]
    assert abs(np.log(other["Mixture_0"]["router"]["output_grad"] / router)) > 0.1


def test_verbs_with_a_loss_take_collections():
    params = Stack().init(KEY, X)["params"]
    case = (Stack(), params, (X, Y), loss_fn)
    outputs, written = Stack().apply({"params": params}, X, mutable=["losses"])
    expected = float(loss_fn(outputs, Y, written))
    assert float(ei.measure(*case).loss) == pytest.approx(expected, rel=1e-5)
    short = {"steps": 1, "learning_rates": (2.0**-6,)}
    found = ei.find_learning_rate(*case, **short)
    assert found.losses[0, 0, 0] == pytest.approx(expected, rel=1e-5)


def test_what_leaves_a_unit_past_its_output_is_refused():
    params = Around().init(KEY, X)["params"]
    with refuses(ValueError, match="collections that SowingUnit_0 wrote, a unit"):
        ei.tune(Around(), params, (X, Y), loss_fn)
    fine = lambda outputs, labels: jnp.mean(jnp.square(outputs - labels))
    assert "SowingUnit_0" in ei.tune(Around(), params, (X, Y), fine)


def test_collections_are_those_of_linen():
    """A collection that is not there is the loss's own KeyError; NNX has none."""
    params = Stack().init(KEY, X)["params"]
    missing = lambda outputs, collections: sum(collections["intermediates"]["a"])
    with pytest.raises(KeyError, match="intermediates"):
        ei.tune(Stack(), params, X, missing)
    with refuses(TypeError, match=r"of flax.nnx pass a loss_fn\(model, batch\)"):
        ei.tune(nnx.Linear(6, 4, rngs=nnx.Rngs(0)), None, (X, Y), loss_fn)
