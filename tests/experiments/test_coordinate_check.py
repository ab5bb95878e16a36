"""`coordinate_check`: sizes and changes by hand, exponents that are known."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import einit_jax as ei
from tests.support.checks import refuses, synthetic

WIDTHS = (16, 32, 64, 128)
X = jax.random.normal(jax.random.key(1), (32, 8))
Y = jax.random.normal(jax.random.key(2), (32, 4))


def loss(y):
    return jnp.mean(jnp.square(y - Y))


class Net(nn.Module):
    """A hidden layer between two others."""

    width: int

    @nn.compact
    def __call__(self, x):
        x = nn.tanh(nn.Dense(self.width)(x))
        x = nn.tanh(nn.Dense(self.width)(x))
        return nn.Dense(4, name="head")(x)


class Scanned(nn.Module):
    """The same hidden layer three times, under `nn.scan`."""

    width: int

    @nn.compact
    def __call__(self, x):
        def body(layer, x, _):
            return nn.tanh(layer(x)), None

        x = nn.tanh(nn.Dense(self.width, name="first")(x))
        scan = nn.scan(
            body, variable_axes={"params": 0}, split_rngs={"params": True}, length=3
        )
        x, _ = scan(nn.Dense(self.width, name="layers"), x, None)
        return nn.Dense(4, name="head")(x)


check = partial(ei.coordinate_check, input_fn=X, loss_fn=loss)


def test_sizes_and_changes_are_those_of_training_by_hand():
    """Two steps of SGD, outputs captured as intermediates."""
    rate = 0.1
    found = check(Net, (16, 32), optimizer=optax.sgd, learning_rate=rate, steps=2)
    assert found.paths == ("Dense_0", "Dense_1", "head")
    key = jax.random.fold_in(jax.random.key(0), 0)
    for w, width in enumerate(found.widths):
        model = Net(width)
        params = model.init({"params": key}, X)["params"]

        def outputs(params, model=model):
            _, seen = model.apply({"params": params}, X, capture_intermediates=True)
            seen = seen["intermediates"]
            return [seen[path]["__call__"][0] for path in found.paths]

        start = outputs(params)
        for t in range(3):
            now = outputs(params)
            for i, (y, y0) in enumerate(zip(now, start, strict=True)):
                rms = lambda z: float(jnp.sqrt(jnp.mean(jnp.square(z))))
                np.testing.assert_allclose(found.sizes[w, t, i], rms(y), rtol=1e-4)
                np.testing.assert_allclose(
                    found.changes[w, t, i], rms(y - y0), rtol=1e-3, atol=1e-7
                )
            of = lambda p, model=model: loss(model.apply({"params": p}, X))
            step = jax.grad(of)(params)
            params = jax.tree.map(lambda p, g: p - rate * g, params, step)


@pytest.mark.slow
def test_adam_grows_as_theory_says_and_tuned_is_flat():
    """Each weight moves by the rate, so a readout of width n moves by n times it."""
    plain = check(Net, WIDTHS[:3], learning_rate=2.0**-12, steps=2, seeds=2)
    assert plain.verdicts()["head"] == "grows"
    at = plain.paths.index("head")
    assert 0.7 < plain.exponents()[1, at] < 1.2
    tuned = check(Net, WIDTHS[:3], learning_rate=2.0**-6, steps=2, seeds=2, tune=True)
    assert tuned.verdicts()["head"] == "flat"
    small = lambda w: {"targets": {"head": w**-0.5, "*": 1.0}}
    all_flat = check(
        Net, WIDTHS[:3], learning_rate=2.0**-6, steps=2, seeds=2, tune=small
    )
    assert set(all_flat.verdicts().values()) == {"flat"}
    np.testing.assert_allclose(all_flat.exponents("sizes")[0, at], -0.5, atol=1e-4)


def test_sizes_whose_squares_leave_float32():
    """Outputs at the start are as small as inputs, and not zero."""
    small = np.float32(2.0**-90)
    once = {"optimizer": optax.sgd, "steps": 1, "seeds": 1}
    base, found = (check(Net, (8, 16), input_fn=x, **once) for x in (X, small * X))
    ratio = np.float64(found.sizes[:, 0, 0]) / base.sizes[:, 0, 0]
    np.testing.assert_allclose(ratio, small, rtol=1e-5)


def test_scanned_layers_have_a_row_each():
    found = check(Scanned, (16, 32), optimizer=optax.sgd, steps=1)
    assert found.paths == (
        "first", "layers[0]", "layers[1]", "layers[2]", "head"
    )  # fmt: skip
    assert np.all(found.changes[:, 1] > 0)
    assert np.all(found.changes[:, 0] == 0)
    assert "layers/2/change_exponent" in found.scalars()


def test_exponents_and_verdicts():
    found = synthetic(0.0, 0.5, -1.0, 0.19, 0.21)
    np.testing.assert_allclose(
        found.exponents()[2], [0, 0.5, -1, 0.19, 0.21], atol=1e-12
    )
    assert np.isnan(found.exponents()[0]).all()
    assert list(found.verdicts().values()) == [
        "flat", "grows", "shrinks", "flat", "grows"
    ]  # fmt: skip
    found.changes[1, 2, 0], found.changes[1, 2, 1] = 0.0, np.nan
    assert list(found.verdicts().values())[:2] == ["still", "breaks"]
    assert "shrinks" in str(found)
    assert found.rows()[4]["last_change_exponent"] == pytest.approx(0.21)
    with refuses(ValueError, match="'changes' or 'sizes'"):
        found.exponents("weights")


def test_without_steps_sizes_decide():
    found = check(Net, (16, 32, 64), steps=0, seeds=4)
    assert found.verdicts()["Dense_1"] == "flat"
    assert found.sizes.shape == (3, 1, 3)


def test_init_fn_makes_the_variables():
    """Weights of size one, untuned: outputs grow like the root of the width."""

    def init_fn(model, key, inputs):
        variables = model.init(key, *inputs.args)
        return {"params": ei.unit_params(variables["params"], key)}

    found = check(Net, WIDTHS, steps=0, init_fn=init_fn, seeds=2)
    assert found.verdicts()["head"] == "grows"
    head = found.exponents("sizes")[0, found.paths.index("head")]
    np.testing.assert_allclose(head, 0.5, atol=0.1)


@pytest.mark.slow
def test_with_64_bits():
    """Float64 models, sizes in float32 that agree with those of float32 models."""
    init_fn = lambda model, key, inputs: jax.tree.map(
        lambda p: p.astype(jnp.float64), model.init(key, *inputs.args)
    )
    narrow = check(Net, (16, 32), optimizer=optax.sgd, steps=1)
    with jax.enable_x64(True):
        wide = check(Net, (16, 32), optimizer=optax.sgd, steps=1, tune=True)
        again = check(Net, (16, 32), optimizer=optax.sgd, steps=1, init_fn=init_fn)
    assert np.isfinite(wide.changes).all()
    np.testing.assert_allclose(again.changes, narrow.changes, rtol=1e-3, atol=1e-7)


def test_progress_only_when_asked(capsys):
    check(Net, (16, 32), steps=0)
    assert capsys.readouterr().out == ""
    check(Net, (16, 32), steps=0, progress=True)
    assert "coordinate check" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"model_fn": Net(8)}, TypeError, "function of the width"),
        ({"model_fn": lambda w: w}, TypeError, "flax.linen.Module"),
        ({"widths": (16,)}, ValueError, "two or more"),
        ({"widths": (16, -1)}, ValueError, "two or more"),
        ({"optimizer": optax.adam(1e-3)}, TypeError, r"not optax.adam\(1e-3\)"),
        ({"steps": -1}, ValueError, "steps=-1"),
        ({"seeds": 0}, ValueError, "seeds=0"),
        ({"learning_rate": 0}, ValueError, "positive number"),
        ({"flat": -1}, ValueError, "flat=-1"),
        (
            {
                "model_fn": lambda w: nn.Sequential(
                    [nn.Dense(4) for _ in range(w // 16)]
                )
            },
            ValueError,
            "different units",
        ),
        ({"init_fn": lambda m, k, i: {}}, ValueError, "'params'"),
    ],
)
def test_wrong_arguments_are_refused(arguments, error, words):
    given = {"model_fn": Net, "widths": (16, 32), "steps": 0} | arguments
    with refuses(error, match=words):
        check(**given)
