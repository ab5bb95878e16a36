"""Which features are pairs, over networks of every make, and which are not and why."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from einit_jax.binding import setup, sum_of_means
from einit_jax.distinctness import find_pairs
from einit_jax.graph import parameter_axes

x = jnp.ones((4, 64))
KEY = jax.random.key(0)


class Written(nn.Module):
    """A network that is written as a function of the module and its inputs."""

    body: object

    @nn.compact
    def __call__(self, x):
        return self.body(x)


def chain(*layers):
    def body(x):
        for layer in layers:
            x = layer(x)
        return x

    return body


def image(x):
    return x.reshape(-1, 8, 8, 1)


def flat(x):
    return x.reshape(len(x), -1)


def module(make, *arguments, **options):
    """A module that is made where it is called."""
    return lambda x: make(*arguments, **options)(x)


dense, conv = partial(module, nn.Dense), partial(module, nn.Conv)
pool = partial(nn.max_pool, window_shape=(2, 2), strides=(2, 2))


def residual(x, before, between):
    x = nn.Dense(16, name="stem")(x)
    for i in range(2):
        up = nn.Dense(16, name=f"up{i}")(before(x))
        x = x + nn.Dense(16, name=f"down{i}")(between(up))
    return nn.Dense(3, name="head")(before(x))


def gated(x):
    gate, value = nn.Dense(16, name="gate")(x), nn.Dense(16, name="value")(x)
    return nn.Dense(3, name="head")(nn.silu(gate) * value)


def split_gate(x):
    gate, value = jnp.split(nn.Dense(16, name="both")(x), 2, -1)
    return nn.Dense(3, name="head")(nn.silu(gate) * value)


def unet(x):
    a = nn.relu(nn.Conv(8, (3, 3), name="a")(image(x)))
    b = nn.relu(nn.Conv(8, (3, 3), strides=2, name="b")(a))
    u = nn.relu(nn.ConvTranspose(8, (3, 3), strides=(2, 2), name="u")(b))
    return nn.Conv(1, (3, 3), name="c")(jnp.concatenate([a, u], -1))


def shared(x):
    layer = nn.Dense(64, name="layer")
    return nn.Dense(3, name="head")(nn.relu(layer(nn.relu(layer(x)))))


def tied(x):
    embed = nn.Embed(20, 16, name="embed")
    h = nn.relu(embed(jnp.clip(x[:, :3], 0, 19).astype(int)))
    return embed.attend(nn.Dense(16, name="dense")(h))


def embedded(x):
    h = nn.relu(nn.Embed(20, 16, name="embed")(x[:, :3].astype(int)))
    h = nn.relu(nn.DenseGeneral((4, 6), name="many")(h))
    return nn.DenseGeneral(3, axis=(-2, -1), name="head")(h)


class Step(nn.Module):
    @nn.compact
    def __call__(self, carry, _):
        return nn.Dense(16, name="inner")(nn.relu(carry)), None


def scanned(x):
    lifted = nn.scan(
        nn.remat(Step), variable_axes={"params": 0}, split_rngs={"params": True},
        length=3,
    )  # fmt: skip
    x, _ = lifted(name="loop")(nn.Dense(16, name="stem")(x), None)
    return nn.Dense(3, name="head")(nn.relu(x))


def shuffled(x):
    h = nn.relu(nn.Conv(8, (1, 1), feature_group_count=1, name="a")(image(x)))
    h = h.reshape(*h.shape[:3], 2, 4).swapaxes(-1, -2).reshape(h.shape)
    h = nn.relu(nn.Conv(8, (1, 1), feature_group_count=2, name="b")(h))
    return nn.Dense(3, name="head")(h.mean((1, 2)))


def shifted(x):
    h = nn.Dense(16, name="a")(x)
    return nn.Dense(3, name="head")(nn.relu(h + jnp.arange(16.0)))


def half_read(x):
    h = nn.relu(nn.Dense(16, name="a")(x))
    return nn.Dense(3, name="head")(h[:, :8]) + nn.Dense(3, name="other")(h[:, 7:15])


def branching(x):
    h = nn.Dense(16, name="a")(x)
    h = jax.lax.cond(jnp.sum(x) > 0, nn.relu, nn.gelu, h)
    return nn.Dense(3, name="head")(h)


def raw(module, x):
    w = module.param("w", nn.initializers.normal(), (64, 2, 8))
    v = module.param("v", nn.initializers.normal(), (2, 8, 5))
    return jnp.einsum("bhd,hdo->bo", nn.relu(jnp.einsum("bi,ihd->bhd", x, w)), v)


class Raw(nn.Module):
    @nn.compact
    def __call__(self, x):
        return raw(self, x)


CNN = chain(
    image, conv(8, (3, 3), name="a"), nn.relu, pool,
    conv(8, (3, 3), feature_group_count=2, name="b"), nn.gelu,
    conv(16, (3, 3), feature_group_count=8, name="deep"), nn.relu,
    conv(8, (1, 1), name="c"), module(nn.BatchNorm, use_running_average=False),
    nn.relu, flat, dense(6, name="d"), module(nn.LayerNorm), nn.relu,
    dense(3, name="head"),
)  # fmt: skip
dropped = module(nn.Dropout, 0.5, deterministic=False)
NETWORKS = {
    "relu": (chain(dense(8, name="a"), nn.relu, dense(3, name="head")), "a"),
    "tanh": (chain(dense(8, name="a"), nn.tanh, dense(3, name="head")), ""),
    "sin": (chain(dense(8, name="a"), jnp.sin, dense(3, name="head")), ""),
    "cos": (chain(dense(8, name="a"), jnp.cos, dense(3, name="head")), "a"),
    "linear": (chain(dense(8, name="a"), dense(3, name="head")), ""),
    "erf gelu": (
        chain(
            dense(8, name="a"), partial(nn.gelu, approximate=False),
            dense(3, name="head"),
        ),
        "a",
    ),
    "dropout": (
        chain(dense(8, name="a"), nn.relu, dropped, dense(3, name="head")),
        "a",
    ),
    "odd width": (chain(dense(7, name="a"), nn.relu, dense(3, name="head")), "a"),
    "one feature": (chain(dense(1, name="a"), nn.relu, dense(3, name="head")), "a"),
    "PReLU": (chain(dense(8, name="a"), module(nn.PReLU), dense(3, name="head")), "a"),
    "CNN": (CNN, "a b c d deep"),
    "U-Net": (unet, "a b u"),
    "pre-activation": (
        partial(residual, before=nn.relu, between=nn.relu),
        "down0 down1 stem up0 up1",
    ),
    "residual": (partial(residual, before=lambda x: x, between=nn.relu), "up0 up1"),
    "mixed residual": (partial(residual, before=nn.tanh, between=nn.gelu), "up0 up1"),
    "gates": (gated, ""),
    "gates of one layer": (split_gate, ""),
    "shared": (shared, "layer"),
    "tied": (tied, ""),
    "embedded": (embedded, "embed many"),
    "scanned": (scanned, "loop/inner stem"),
    "shuffled": (shuffled, "a b"),
    "shifted": (shifted, ""),
    "half read": (half_read, ""),
    "cond": (branching, "a"),
}  # fmt: skip


def pairs_of(model):
    keys = {"params": KEY, "dropout": KEY}
    variables = dict(model.init(keys, x))
    params = variables.pop("params")
    options = {"rngs": ("dropout",), "collections": variables}
    bound = setup(model, params, x, sum_of_means, key=KEY, **options)
    graph = bound.objective.trace(bound.arrays.args)
    weights = [p for p, own in parameter_axes(graph).items() if own.role == "weight"]
    return find_pairs(graph, weights), graph


@pytest.mark.parametrize("name", NETWORKS)
def test_features_before_even_functions_are_pairs(name):
    body, expected = NETWORKS[name]
    pairs, graph = pairs_of(Written(body))
    found = {"/".join(path[:-1]) for path in (*pairs.features, *pairs.tied)}
    assert found == set(expected.split())
    for path, partners in (*pairs.features.items(), *pairs.rows.items()):
        assert np.array_equal(partners[partners], np.arange(partners.size)), path
    for path, partners in pairs.features.items():
        assert partners.size % graph.shapes[path][-1] == 0
    assert {name.split("/")[0] for name in pairs.left}.isdisjoint(
        found
    ) or "loop" in found


def test_raw_weights_in_einsums_are_paired():
    pairs, _ = pairs_of(Raw())
    assert [*pairs.features] == [("w",)]
    neighbours = np.arange(16).reshape(8, 2)[:, ::-1].ravel()
    assert np.array_equal(pairs.rows[("v",)], neighbours)


def test_rows_follow_channels_through_a_shuffle():
    """Channels 0 to 7 arrive as 0, 4, 1, 5, 2, 6, 3, 7, in two groups of four."""
    pairs, _ = pairs_of(Written(shuffled))
    assert np.array_equal(pairs.rows[("b", "kernel")], [2, 3, 0, 1])


@pytest.mark.parametrize(
    ("name", "weight", "reason"),
    [
        ("gates", "gate/kernel", "does not treat them alike"),
        ("linear", "a/kernel", "no function with an even part"),
        ("linear", "head/kernel", "the model returns"),
        ("tied", "dense/kernel", "the weight that reads it has no pairs"),
        ("half read", "a/kernel", "without partners"),
    ],
)
def test_what_is_left_is_told_with_a_reason(name, weight, reason):
    pairs, _ = pairs_of(Written(NETWORKS[name][0]))
    assert reason in pairs.left[weight]


CURVED = {"relu": (0, 0), "tanh": (1, 1), "erf gelu": (1, 0), "sin": (1, 1)}


@pytest.mark.parametrize("name", CURVED)
def test_functions_that_are_straighter_near_zero_are_found(name):
    pairs, _ = pairs_of(Written(NETWORKS[name][0]))
    assert (len(pairs.curved_alone), len(pairs.curved)) == CURVED[name]
