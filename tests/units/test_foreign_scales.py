"""Scales and taps of another model, its units at top level or not: refused by name."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
import pytest

import einit_jax as ei
from tests.support.cases import to_one
from tests.support.checks import KEY, params_of, quick, refuses
from tests.support.models.dense import CompactMlp
from tests.support.models.inputs import TiedLm
from tests.support.models.lifted import Layers

X = jax.random.normal(KEY, (16, 8))
FLAT, OTHER = CompactMlp(), nn.Sequential([nn.Dense(4), nn.tanh, nn.Dense(3)])
TOKENS = jnp.arange(10).reshape(2, 5)
TABLE = nn.Embed(10, 4)  # a unit at the root, with a method beside `__call__`


def scales_for(model: nn.Module, *inputs) -> dict:
    """Factors of 1 of a model's units, `update` among them."""
    scales = quick(ei.scaled(model).init)(KEY, *inputs)["scales"]

    def with_update(node):
        own = {"update": jnp.ones_like(node["output"])} if "output" in node else {}
        below = lambda x: with_update(x) if isinstance(x, dict) else x
        return own | {name: below(child) for name, child in node.items()}

    return with_update(scales)


def inits(model: nn.Module, x: jax.Array) -> dict:
    return quick(model.init)(KEY, x)["params"]


PARAMS = params_of(FLAT)
SCALES = scales_for(FLAT, X)
BARE = params_of(nn.Dense(4))  # arrays at top level, as of a unit at the root
PAIR = {"token": X[0], "head": BARE}  # a raw array beside a unit
NO_MODULE = "no module of these"


def created(params, scales):
    model = ei.scaled(FLAT)
    made = ei.TrainState.create
    return made(apply_fn=model.apply, params=params, tx=optax.sgd(1.0), scales=scales)


def updated(params, scales):
    tx = ei.scale_updates(scales)
    state = tx.init(PARAMS)
    tx.update(params, state)


VERBS = {
    "scale_updates.init": lambda p, s: ei.scale_updates(s).init(p),
    "scale_updates.update": updated,
    "unit_params": lambda p, s: ei.unit_params(p, KEY, scales=s),
    "TrainState": created,
}


@pytest.mark.parametrize("verb", VERBS.values(), ids=VERBS)
@pytest.mark.parametrize(
    "params",
    [{"params": PARAMS}, inits(OTHER, X), BARE, PAIR],
    ids=["variables", "other", "bare", "pair"],
)
def test_scales_of_another_flat_model_are_refused(verb, params):
    """None of its units is one of the model, whose root they would be methods of."""
    verb(PARAMS, SCALES)
    with refuses(ValueError, match=NO_MODULE) as error:
        verb(params, SCALES)
    assert "'Dense_0'" in str(error.value)


@pytest.mark.parametrize("verb", [ei.measure, ei.fold], ids=["measure", "fold"])
def test_verbs_with_a_model_refuse_them_too(verb):
    order = (FLAT, PARAMS, X, to_one) if verb is ei.measure else (FLAT, PARAMS)
    scales = scales_for(OTHER, X)
    rest = {"scales": scales} if verb is ei.measure else {}
    rest |= {} if verb is ei.measure else {"scales": scales, "input_fn": X}
    with refuses(ValueError, match="'layers_0'"):
        verb(*order, **rest)
    with refuses(ValueError, match="'layers_0'"):
        ei.scaled(FLAT).apply({"params": PARAMS, "scales": scales}, X)


def test_entries_of_methods_are_no_foreign_ones():
    """Of a tied model and of a table at the root: all factors arrive."""
    for model in (TiedLm(), TABLE):
        scales, params = scales_for(model, TOKENS), inits(model, TOKENS)
        if model is TABLE:
            one = {name: scales[name] for name in ("output", "update", "input_grad")}
            scales["attend"] = {**one, "output_grad": jnp.float32(1)}
        twice = jax.tree.map(lambda factor: 2 * factor, scales)
        tx = ei.scale_updates(twice)
        moved, _ = tx.update(params, tx.init(params))
        wanted = jax.tree.map(lambda p: 2 * p, params)
        assert jax.tree.all(jax.tree.map(jnp.array_equal, moved, wanted))
        ei.unit_params(params, KEY, scales=scales)
        only = {"attend": scales["attend"]} if model is TABLE else scales
        ei.scale_updates(only).init(params)


def test_masked_arrays_are_arrays_of_their_module():
    """A mask may take out all arrays of a unit that is entered by a method."""
    params = inits(TABLE, TOKENS)
    own = scales_for(TABLE, TOKENS)
    tx = ei.scale_updates({"attend": own})
    masked = optax.masked(tx, {"embedding": False})
    moved, _ = masked.update(params, masked.init(params))
    assert jnp.array_equal(moved["embedding"], params["embedding"])


def test_scales_of_other_layers_are_refused():
    """A scan over three layers, and parameters of two."""
    params, scales = inits(Layers(), X), scales_for(Layers(), X)
    fewer = {**params, "layers": jax.tree.map(lambda p: p[:2], params["layers"])}
    for verb in (ei.scale_updates(scales).init, partial(unit, scales=scales)):
        verb(params)
        with refuses(ValueError, match=r"layers.*'layers/block/\w+/\w+', of shape \(2"):
            verb(fewer)


def unit(params, scales):
    return ei.unit_params(params, KEY, scales=scales)


@pytest.mark.parametrize(
    ("change", "exception", "words"),
    [
        (lambda s: {**s, "Dense_0": {**s["Dense_0"], "output": "1"}}, TypeError, "'1'"),
        (lambda s: {**s, "Dense_0": {**s["Dense_0"], "output": None}}, TypeError, "No"),
        (lambda s: [s], TypeError, "a list, expected the dict that tune returned"),
    ],
)
def test_what_are_no_factors_are_refused(change, exception, words):
    wrong = change(SCALES)
    tuned = ei.scaled(FLAT)
    for verb in (
        lambda: tuned.apply({"params": PARAMS, "scales": wrong}, X),
        lambda: ei.measure(FLAT, PARAMS, X, to_one, scales=wrong),
        lambda: ei.fold(FLAT, PARAMS, wrong, X),
        lambda: created(PARAMS, wrong),
    ):
        with refuses(exception, match=words):
            verb()


def test_a_train_state_without_scales_is_refused():
    with refuses(TypeError, match="got no scales; pass scales=ei.tune"):
        created(PARAMS, None)


# Taps.


def test_taps_of_another_model_are_refused():
    stats = ei.activation_stats(FLAT)
    taps = stats.init({"params": PARAMS}, X).taps
    others = ei.activation_stats(OTHER)
    foreign = others.init({"params": inits(OTHER, X)}, X).taps
    apply = lambda taps, params=PARAMS: stats.apply({"params": params, "taps": taps}, X)
    apply(taps)
    for params in (PARAMS, {"params": PARAMS}):
        with refuses(ValueError, match="'layers_0' is no module of these params"):
            apply(foreign, params)
    with refuses(ValueError, match="'Dense_0/encode': neither a module"):
        apply({**taps, "Dense_0/encode": taps["Dense_0"]})
    with refuses(ValueError, match="of other layers or other options"):
        apply(
            ei.activation_stats(FLAT, octaves=(-8, 8)).init({"params": PARAMS}, X).taps
        )
    with refuses(TypeError, match="taps are a StatsState, expected state.taps"):
        apply(stats.init({"params": PARAMS}, X))
    with refuses(TypeError, match="variables are a ArrayImpl"):
        stats.init(X)


def test_taps_of_other_layers_are_refused():
    stats, params = ei.activation_stats(Layers()), inits(Layers(), X)
    taps = stats.init({"params": params}, X).taps
    stats.apply({"params": params, "taps": taps}, X)
    fewer = {name: tap[:2] if tap.ndim > 1 else tap for name, tap in taps.items()}
    with refuses(ValueError, match="which is of other layers"):
        stats.apply({"params": params, "taps": fewer}, X)
