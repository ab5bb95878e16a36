"""All that is random hangs on the key; several draws are averaged."""

from functools import partial

import jax
import numpy as np
import pytest

import einit_jax as ei
from tests.support.cases import squared_error, to_one, vectors
from tests.support.checks import KEY, allclose, params_of, same
from tests.support.models.dense import CompactMlp
from tests.support.models.stateful import Dropped

X = jax.random.normal(KEY, (16, 8))


@pytest.mark.parametrize(
    ("model", "input_fn", "loss_fn", "rngs"),
    [
        (CompactMlp(), vectors, to_one, ()),
        (CompactMlp(), X, squared_error, ()),
        (Dropped(), X, to_one, ("dropout",)),
        (Dropped(), X, to_one, "dropout"),
    ],
    ids=["batch", "loss", "stream", "stream_name"],
)
def test_the_key_decides_all_that_is_random(model, input_fn, loss_fn, rngs):
    """The same key gives the same bits, another other ones; none is `key(0)`."""
    run = partial(ei.tune, model, params_of(model), input_fn, loss_fn, rngs=rngs)
    scales = run(key=jax.random.key(3))
    assert same(run(key=jax.random.key(3)), scales)
    assert not same(run(key=jax.random.key(4)), scales)
    assert same(run(), run(key=jax.random.key(0)))


def test_keys_by_name_are_used_as_they_are():
    """Streams given as keys do not change with the key of the call."""
    run = partial(ei.tune, Dropped(), params_of(Dropped()), X, to_one)
    draw = lambda stream, key: run(
        rngs={"dropout": jax.random.key(stream)}, key=jax.random.key(key)
    )
    scales = draw(1, 0)
    assert same(draw(1, 5), scales)
    assert not same(draw(2, 0), scales)


def test_draws_are_averaged_in_the_logarithm():
    """Factors of several draws: the geometric mean of those of each batch."""
    drawn = []

    def draw(key):
        drawn.append(vectors(key))
        return drawn[-1]

    run = partial(ei.tune, CompactMlp(), params_of(CompactMlp()), loss_fn=to_one)
    scales = run(draw, draws=3)
    assert len(drawn) == 3
    assert not np.array_equal(drawn[0], drawn[1])
    each = [run(batch) for batch in drawn]
    mean = lambda *factors: np.exp(np.mean(np.log(factors), 0))
    allclose(scales, jax.tree.map(mean, *each), rtol=1e-5)
