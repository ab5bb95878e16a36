"""The learning rate that is found, against the edge that theory knows."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import einit_jax as ei
from einit_jax.__main__ import main
from tests.support.checks import KEY, allclose, refuses

x = jax.random.normal(KEY, (32, 8))
RATES = tuple(2.0**e for e in range(-8, 4))


class Linear(nn.Module):
    """One weight on one input: its loss has one curvature."""

    @nn.compact
    def __call__(self, x):
        return self.param("w", nn.initializers.ones, ()) * x


def quadratic(y):
    """Of curvature 1 in the weight, for inputs of rms 1."""
    return jnp.mean(jnp.square(y)) / 2


LINE = (Linear(), {"w": jnp.float32(1)}, jnp.array([1.0, -1.0]), quadratic)
SGD = {"optimizer": optax.sgd, "learning_rates": RATES}


def net_job():
    model = nn.Sequential([nn.Dense(16), jnp.tanh, nn.Dense(4)])
    params = jax.jit(model.init)(KEY, x)["params"]
    loss = lambda y: jnp.mean(jnp.square(y - jnp.sin(x[:, :4])))
    return model, params, x, loss


def test_losses_are_those_of_gradient_descent():
    """On a parabola each step multiplies the weight by 1 - rate: the losses of all
    rates and steps, and the edge at 2, are known."""
    found = ei.find_learning_rate(*LINE, steps=20, **SGD)
    assert found.rates == RATES
    expected = [[(1 - rate) ** (2 * t) / 2 for t in range(20)] for rate in RATES]
    allclose(found.losses[0], np.array(expected), rtol=1e-4, atol=1e-30)
    assert found.stable == 1.0  # at 2 it stays, at 4 and 8 it grows
    assert found.best == 1.0  # its loss is 0, and no other one is near that
    assert found.gradient_steps == 20 * len(RATES)


def test_the_best_rate_is_an_octave_below_the_edge_where_the_curve_is_flat():
    """Losses that are given: the rule, by itself."""
    made = lambda *ends: ei.LearningRates(
        (1.0, 2.0, 4.0, 8.0, 16.0),
        np.array([[[3.0, end] for end in ends]]),
        tuned=False,
    )
    flat = made(1.0, 0.9, 0.9, 1.0, 3.1)
    assert (flat.best, flat.stable) == (4.0, 8.0)
    steep = made(2.5, 2.0, 1.5, 0.5, 3.1)
    assert (steep.best, steep.stable) == (8.0, 8.0)
    late = made(1.0, 2.9, 0.95, np.inf, np.inf)  # a hole between two good rates
    assert (late.best, late.stable) == (1.0, 4.0)
    chance = made(0.1, 0.1, 2.3, 2.3, 2.3)  # less than at the start, but hardly
    assert chance.stable == 2.0
    assert "at an end" in str(made(3.1, 3.0, 2.0, 1.0, 0.1))


def test_where_nothing_learns_no_rate_is_told():
    found = ei.find_learning_rate(
        *LINE, steps=10, optimizer=optax.sgd, learning_rates=(4.0, 64.0)
    )
    assert found.final.min() > 0.5
    for name in ("best", "stable"):
        with pytest.raises(ValueError, match="learns at none of these rates"):
            getattr(found, name)
    with pytest.raises(ValueError, match="smaller learning_rates"):
        found.plot()
    assert "learns at none" in str(found)


def test_a_diverged_run_ends_early_and_is_infinite():
    rates = (2.0**-2, 2.0**100)
    options = {"optimizer": optax.sgd, "learning_rates": rates}
    found = ei.find_learning_rate(*LINE, steps=60, **options)
    assert np.isinf(found.losses[0, 1, -1]) and np.isinf(found.final[0, 1])
    assert found.gradient_steps < 2 * 60
    assert found.best == rates[0]
    assert found.rows()[1] == {
        "learning_rate": rates[1],
        "loss": np.inf,
        "spread": np.inf,
    }


def test_scales_are_trained_with():
    """With their update factors, as by hand."""
    model, params, x, loss = net_job()
    scales = ei.tune(model, params, x, loss, optimizer=optax.adam)
    rate = 0.25
    found = ei.find_learning_rate(
        model, params, x, loss, scales=scales, steps=8, learning_rates=(rate,)
    )
    optimizer = optax.chain(optax.adam(rate), ei.scale_updates(scales))
    state, expected = optimizer.init(params), []
    of = lambda p: loss(ei.scaled(model).apply({"params": p, "scales": scales}, x))
    for _ in range(8):
        value, gradient = jax.value_and_grad(of)(params)
        updates, state = optimizer.update(gradient, state, params)
        params, expected = optax.apply_updates(params, updates), [*expected, value]
    allclose(found.losses[0, 0], jnp.stack(expected), rtol=1e-4)
    assert found.tuned and "scale_updates" in str(found)


def test_batches_seeds_and_progress():
    """Seeds draw other batches; the same key gives the same bits."""
    model, params, _, _ = net_job()
    target = lambda x: jnp.sin(x[:, :4])
    mean_square = lambda y, target: jnp.mean(jnp.square(y - target))

    def train(key):
        x = jax.random.normal(key, (16, 8))
        return x, {"target": target(x)}

    loss, heard = partial(mean_square, target=target(x)), []
    run = lambda: ei.find_learning_rate(
        model, params, x, loss, train=train, steps=5, seeds=2,
        learning_rates=(2.0**-6, 2.0**-8), progress=lambda *at: heard.append(at),
    )  # fmt: skip
    found = run()
    assert found.rates == (2.0**-8, 2.0**-6)  # in order
    assert found.losses.shape == (2, 2, 5)
    assert not np.allclose(found.losses[0], found.losses[1])
    assert heard == [(i, 10) for i in range(1, 11)]
    np.testing.assert_array_equal(found.losses, run().losses)
    assert found.rows()[0]["spread"] == found.final[:, 0].std()
    (ax,) = found.plot().axes
    assert [t.get_text().split(":")[0] for t in ax.get_legend().texts] == [
        "best",
        "stable",
    ]


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"learning_rates": (0.0,)}, ValueError, "expected positive numbers"),
        ({"learning_rates": ()}, ValueError, "expected positive numbers"),
        ({"steps": 0}, ValueError, "steps=0, expected an integer"),
        ({"seeds": 1.5}, ValueError, "seeds=1.5, expected an integer"),
        ({"optimizer": optax.adam(1.0)}, TypeError, "function of the learning rate"),
        ({"train": 3}, TypeError, "train is a int"),
        ({"progress": 3}, TypeError, "progress is 3"),
        ({"scales": {"other": {"output": 1.0}}}, ValueError, "other"),
    ],
)
def test_errors_name_the_argument(options, error, text):
    with refuses(error, match=text):
        ei.find_learning_rate(*net_job(), **options)


def test_command_line(tmp_path, capsys):
    """A figure, and the table."""
    file = tmp_path / "rates.png"
    words = ["lr", f"{__name__}:net_job", "--steps", "5", "--out", str(file)]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert "best: 2^" in out and "2^-16" in out
    assert file.read_bytes()[:4] == b"\x89PNG"
