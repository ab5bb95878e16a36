"""What a loss is called with."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

import einit_jax as ei
from tests.support.cases import to_one
from tests.support.checks import KEY, params_of

X = jax.random.normal(KEY, (16, 8))


@pytest.mark.parametrize(
    ("build", "names"),
    [
        (lambda see: lambda y: see(y), set()),
        (lambda see: lambda y, key: see(y, key=key), {"key"}),
        (lambda see: lambda y, inputs: see(y, inputs=inputs), {"inputs"}),
        (
            lambda see: lambda y, inputs, key: see(y, inputs=inputs, key=key),
            {"key", "inputs"},
        ),
        (
            lambda see: lambda y, *, key, inputs: see(y, inputs=inputs, key=key),
            {"key", "inputs"},
        ),
        (lambda see: lambda y, key=None, half=0.5: see(half * y, key=key), {"key"}),
        (
            lambda see: partial(lambda half, y, key: see(y * half, key=key), 0.5),
            {"key"},
        ),
        (lambda see: partial(lambda y, half: see(y * half), half=0.5), set()),
        (lambda see: lambda y, *rest, **named: see(y, *rest, **named), set()),
    ],
    ids=[
        "outputs",
        "key",
        "inputs",
        "both",
        "keyword_only",
        "defaults",
        "partial_positional",
        "partial_keyword",
        "variadic",
    ],
)
def test_loss_fn_is_given_what_it_names(build, names):
    """Outputs come first; the key and the inputs come by name, where they are named."""
    seen = []

    def see(outputs, **named):
        seen.append((outputs.shape, {n: v.shape for n, v in named.items()}))
        return to_one(outputs)

    run = lambda params: ei.tune(nn.Dense(4), params, X, build(see))
    jax.eval_shape(run, params_of(nn.Dense(4)))
    shapes = {"key": (), "inputs": X.shape}
    assert seen
    assert all(s == ((16, 4), {n: shapes[n] for n in names}) for s in seen)


def test_the_loss_is_that_of_the_batch_and_the_key():
    """Inputs arrive with their values; the key is a function of that of the call."""
    model, params = nn.Dense(4), params_of(nn.Dense(4))

    def loss(outputs, inputs, key):
        noise = jax.random.normal(key, outputs.shape)
        return jnp.mean((outputs - inputs[:, :4]) ** 2) + 1e-3 * jnp.mean(noise**2)

    run = partial(ei.measure, model, params, X, loss)
    first, again, other = (float(run(key=jax.random.key(i)).loss) for i in (1, 1, 2))
    by_hand = jnp.mean((model.apply({"params": params}, X) - X[:, :4]) ** 2)
    # the noise adds 1e-3 of the mean of 64 chi squares, which is 1 +- 0.18
    assert abs(first - by_hand - 1e-3) < 1e-3 * 4 * (2 / 64) ** 0.5
    assert first == again != other
