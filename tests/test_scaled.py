"""`scaled`: the model with factors in a collection of their own, and nothing else."""

import pickle
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.core import DenyList, freeze
from flax.training.train_state import TrainState

import einit_jax as ei
from tests.cases import QUICK, Job, as_inputs, squared_error
from tests.models import (
    CASES,
    Autoencoder,
    CompactMlp,
    Dropped,
    Layers,
    Normed,
    TiedLm,
)

KEY = jax.random.key(0)
FACTORS = {"output", "input_grad", "output_grad"}
X = jax.random.normal(KEY, (16, 8))
# One per way in which a unit is reached or its factors are laid out.
VARIED = (
    "compact_mlp",
    "scan_remat",
    "vmap_ensemble",
    "rnn_gru",
    "fusion",
    "keywords",
    "tied_lm",
    "batch_norm",
    "dropout",
    "complex",
    "bfloat16",
    "boxed",
)
quick = partial(jax.jit, compiler_options=QUICK)


@lru_cache
def job_of(name: str) -> Job:
    return CASES[name].build()


def same(left: Any, right: Any) -> bool:
    """Whether two trees agree in structure, shapes, dtypes and every bit."""
    pairs = zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True)
    return jax.tree.structure(left) == jax.tree.structure(right) and all(
        x.dtype == y.dtype and np.array_equal(x, y) for x, y in pairs
    )


def factors(tree: Any) -> dict[str, Any]:
    """The factors of each unit, by the path of the unit."""
    found: dict[str, Any] = {}
    for path, leaf in jax.tree.flatten_with_path(tree)[0]:
        *unit, name = (key.key for key in path)
        found.setdefault("/".join(unit) or ".", {})[name] = leaf
    return found


def uneven(scales: Any) -> Any:
    """Factors that are all different, between 1/2 and 2."""
    leaves, treedef = jax.tree.flatten(scales)
    keys = jax.random.split(KEY, len(leaves))
    draw = lambda k, x: jax.random.uniform(k, x.shape, x.dtype, 0.5, 2.0)
    return jax.tree.unflatten(treedef, map(draw, keys, leaves))


def initialized(model: nn.Module, *args: Any) -> tuple[Any, dict]:
    tuned = ei.scaled(model)
    return tuned, quick(tuned.init)(KEY, *args)


def zeros_of(function: Callable, *args: Any) -> Any:
    """What the function would return, with zeros for values: nothing is compiled."""
    zeros = lambda s: jnp.zeros(s.shape, s.dtype)
    return jax.tree.map(zeros, jax.eval_shape(function, *args))


def without(tree: dict, path: str) -> dict:
    """A copy of a nested dict that lacks the entry at `path`."""
    name, _, rest = path.partition("/")
    kept = {k: v for k, v in tree.items() if rest or k != name}
    return kept | ({name: without(tree[name], rest)} if rest else {})


# Initialization.


@pytest.mark.parametrize("name", VARIED)
def test_init_adds_factors_at_the_paths_of_the_units(name):
    """The shapes of the model's own variables, and three factors per unit."""
    job = job_of(name)
    inputs = as_inputs(job.input_fn(KEY))
    rngs = dict.fromkeys(("params", *job.options.get("rngs", ())), KEY)
    init = lambda model: lambda: dict(model.init(rngs, *inputs.args, **inputs.kwargs))
    variables = jax.eval_shape(init(ei.scaled(job.model)))
    scales = variables.pop("scales")
    assert variables == jax.eval_shape(init(job.model))
    assert factors(scales).keys() == CASES[name].units
    assert all(unit.keys() == FACTORS for unit in factors(scales).values())
    assert {leaf.dtype for leaf in jax.tree.leaves(scales)} == {jnp.dtype("float32")}


@pytest.mark.parametrize("model", [CompactMlp(), Normed()], ids=type)
def test_init_is_the_models_own_and_ones(model):
    """The same variables to the bit, by init and by init_with_output; factors of 1."""
    plain = model.init(KEY, X)
    y, variables = ei.scaled(model).init_with_output(KEY, X)
    assert same(ei.scaled(model).init(KEY, X), variables)
    scales = variables.pop("scales")
    assert same(variables, plain)
    assert same(y, model.init_with_output(KEY, X)[0])
    assert all(bool(jnp.all(factor == 1)) for factor in jax.tree.leaves(scales))


def test_lazy_init_takes_a_shape_for_the_input():
    """Nothing but the shape of the input is needed for the same variables."""
    tuned = ei.scaled(CompactMlp())
    spec = jax.ShapeDtypeStruct((16, 8), jnp.float32)
    assert same(tuned.lazy_init(KEY, spec), tuned.init(KEY, X))


# Factors of 1.


@pytest.mark.parametrize("name", VARIED)
def test_ones_leave_outputs_and_gradients_to_the_bit(name):
    """With factors of 1: same outputs, same state, same gradients of the params."""
    job = job_of(name)
    inputs = as_inputs(job.input_fn(KEY))
    state = job.options.get("collections", {})
    rngs = dict.fromkeys(("params", *job.options.get("rngs", ())), KEY)
    init = ei.scaled(job.model).init
    shapes = jax.eval_shape(lambda: init(rngs, *inputs.args, **inputs.kwargs))
    ones = jax.tree.map(lambda s: jnp.ones(s.shape, s.dtype), shapes["scales"])

    def run(apply, rest):
        def loss(params):
            y, written = apply(
                {**state, **rest, "params": params},
                *inputs.args,
                rngs=rngs,
                mutable=list(state),
                **inputs.kwargs,
            )
            return squared_error(y, KEY), (y, written)

        return quick(jax.grad(loss, has_aux=True))(job.params)

    plain = run(job.model.apply, {})
    assert same(run(ei.scaled(job.model).apply, {"scales": ones}), plain)


# Factors in force.


def test_one_unit_obeys_the_equation():
    """`y = G_c(a f(G_b(x)))`: output times a, of the inputs abc, of the params ac."""
    a, b, c = jnp.float32(1.7), jnp.float32(0.3), jnp.float32(2.9)
    x, ct = jax.random.normal(KEY, (8, 3)), jax.random.normal(KEY, (8, 5))
    tuned = ei.scaled(nn.Dense(5))
    params = {"kernel": jax.random.normal(KEY, (3, 5)), "bias": jnp.arange(5.0)}
    scales = {"output": a, "input_grad": b, "output_grad": c}

    def apply(params, x):
        return tuned.apply({"params": params, "scales": scales}, x)

    y, pull = jax.vjp(apply, params, x)
    assert same(y, a * nn.Dense(5).apply({"params": params}, x))
    of_params, of_x = pull(ct)
    kernel, bias = a * c * (x.T @ ct), a * c * ct.sum(0)
    np.testing.assert_allclose(of_params["kernel"], kernel, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(of_params["bias"], bias, rtol=1e-5, atol=1e-6)
    of_x_by_hand = a * b * c * (ct @ params["kernel"].T)
    np.testing.assert_allclose(of_x, of_x_by_hand, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["compact_mlp", "scan_remat", "rnn_gru", "tied_lm"])
def test_forward_mode_is_the_transpose_of_reverse_mode(name):
    """`<ct, J t> = <J^T ct, t>` with uneven factors, through lifted transforms too."""
    job = job_of(name)
    (x,) = as_inputs(job.input_fn(KEY)).args
    tuned = ei.scaled(job.model)
    tangent = jax.tree.map(lambda t: 1 + jnp.abs(t), job.params)

    @quick
    def both(params, scales):
        run = lambda params: tuned.apply({"params": params, "scales": scales}, x)
        y, moved = jax.jvp(run, (params,), (tangent,))
        ct = jax.random.normal(KEY, y.shape)
        (back,) = jax.vjp(run, params)[1](ct)
        each = jax.tree.map(jnp.vdot, back, tangent)
        size = jnp.linalg.norm(ct) * jnp.linalg.norm(moved)
        return jnp.vdot(ct, moved) / size, sum(jax.tree.leaves(each)) / size

    shapes = jax.eval_shape(tuned.init, KEY, x)["scales"]
    forward, reverse = both(job.params, uneven(shapes))
    np.testing.assert_allclose(forward, reverse, rtol=1e-5, atol=1e-6)
    ones = jax.tree.map(lambda s: jnp.ones(s.shape), shapes)
    assert abs(both(job.params, ones)[0] - forward) > 1e-3


def test_each_layer_of_a_scan_has_a_factor():
    """A stack under `nn.scan` is the loop over its layers, each with its factor."""
    tuned, variables = initialized(Layers(), X)
    params, scales = variables["params"], uneven(variables["scales"])

    def dense(params, scales, x):
        return scales["output"] * (x @ params["kernel"] + params["bias"])

    x = X
    for i in range(3):
        pair = params["layers"]["block"], scales["layers"]["block"]
        theta, s = jax.tree.map(lambda leaf, i=i: leaf[i], pair)
        h = nn.relu(dense(theta["up"], s["up"], x))
        x = x + dense(theta["down"], s["down"], h)
    by_hand = dense(params["head"], scales["head"], x)
    y = tuned.apply({"params": params, "scales": scales}, X)
    np.testing.assert_allclose(y, by_hand, rtol=1e-5, atol=1e-6)
    ones = jax.tree.leaves(variables["scales"])
    assert all(np.array_equal(leaf, np.ones(leaf.shape)) for leaf in ones)


def test_a_method_has_factors_of_its_own():
    """`Embed.attend` is scaled by its own factor, not by that of the lookup."""
    tokens = jnp.arange(10).reshape(2, 5)
    tuned, variables = initialized(TiedLm(), tokens)
    y = tuned.apply(variables, tokens)
    wte = variables["scales"]["wte"]
    attend = {**wte["attend"], "output": 2 * wte["attend"]["output"]}
    scales = {**variables["scales"], "wte": {**wte, "attend": attend}}
    assert same(tuned.apply({**variables, "scales": scales}, tokens), 2 * y)


@pytest.mark.parametrize(
    "method",
    ["encode", Autoencoder.encode, lambda model, x: model.encode(x)],
    ids=["name", "unbound", "function"],
)
def test_method_is_that_of_apply(method):
    """A method by name or function runs with the factors of the units it calls."""
    tuned, variables = initialized(Autoencoder(), X)
    encoder = variables["scales"]["encoder"]
    last = {**encoder["layers_2"], "output": jnp.float32(3)}
    scales = {**variables["scales"], "encoder": {**encoder, "layers_2": last}}
    got = tuned.apply({**variables, "scales": scales}, X, method=method)
    plain = {"params": variables["params"]}
    assert same(got, 3 * Autoencoder().apply(plain, X, method="encode"))
    inits = jax.eval_shape(partial(tuned.init, method=method), KEY, X)
    assert factors(inits["scales"]).keys() == {"encoder/layers_0", "encoder/layers_2"}


# Collections, streams and the model's own parameters.


def test_rngs_reach_the_model():
    """Dropout draws from the stream given, as in the plain model."""
    rngs = {"params": KEY, "dropout": jax.random.key(1)}
    tuned = ei.scaled(Dropped())
    variables = tuned.init(rngs, X)
    plain = {"params": variables["params"]}
    drop = lambda apply, variables, i: apply(
        variables, X, rngs={"dropout": jax.random.key(i)}
    )
    left, other = (drop(tuned.apply, variables, i) for i in (1, 2))
    assert same(left, drop(Dropped().apply, plain, 1))
    assert not np.array_equal(left, other)


@pytest.mark.parametrize(
    ("mutable", "capture"),
    [
        ("batch_stats", False),
        (["params", "batch_stats"], False),
        (True, False),
        (DenyList("params"), True),
        (["params", "intermediates", "batch_stats"], True),
    ],
)
def test_mutable_returns_what_the_model_writes(mutable, capture):
    """The collections written are the plain model's: no factor leaks into any."""
    tuned, variables = initialized(Normed(), X)
    plain = {k: v for k, v in variables.items() if k != "scales"}
    options = {"mutable": mutable, "capture_intermediates": capture}
    y, written = tuned.apply(variables, X, **options)
    assert "einit:" not in str(written)
    assert same((y, written), Normed().apply(plain, X, **options))
    assert not same(written["batch_stats"], plain["batch_stats"])


def test_the_variables_passed_are_not_touched():
    """Nothing is written into the trees given, and mutable params come back alike."""
    tuned, variables = initialized(Layers(), X)
    copy = jax.tree.map(np.array, variables)
    run = lambda variables: tuned.apply(variables, X, mutable=["params"])
    _, written = run(variables)
    slope = quick(jax.grad(lambda variables: run(variables)[0].sum()))(variables)
    assert same(variables, copy)
    assert same(written["params"], copy["params"])
    assert jax.tree.structure(slope) == jax.tree.structure(copy)


def test_frozen_variables_are_taken():
    tuned, variables = initialized(CompactMlp(), X)
    frozen = freeze(variables)
    got = tuned.apply(frozen, X, mutable=["params"])
    plain = freeze({"params": variables["params"]})
    assert same(got, CompactMlp().apply(plain, X, mutable=["params"]))


# What a scaled model is.


def test_scaled_twice_is_scaled_once():
    once = ei.scaled(CompactMlp())
    assert ei.scaled(once) is once
    assert once == ei.scaled(CompactMlp())


@pytest.mark.parametrize(
    ("build", "other"),
    [
        (CompactMlp, lambda: CompactMlp(jnp.bfloat16)),
        (lambda: Layers(axis=1), Layers),
        (lambda: nn.Sequential([nn.Dense(8), nn.tanh]), lambda: nn.Sequential([])),
    ],
    ids=["compact", "scan", "unhashable"],
)
def test_equal_models_scale_to_equal_values(build, other):
    """Value semantics: equal, of one hash, and one entry in the cache of jit."""
    left, right = ei.scaled(build()), ei.scaled(build())
    assert left == right
    assert hash(left) == hash(right)
    assert left != ei.scaled(other())
    traces = []
    run = jax.jit(lambda model, x: traces.append(model) or x, static_argnums=0)
    run(left, KEY)
    run(right, KEY)
    assert len(traces) == 1


def test_a_scaled_model_pickles():
    """The copy is equal and computes the same."""
    tuned, variables = initialized(CompactMlp(), X)
    copy = pickle.loads(pickle.dumps(tuned))
    assert copy == tuned
    assert same(copy.apply(variables, X), tuned.apply(variables, X))


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


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (CompactMlp(), ["scales", "Dense_2", "output: float32[]", "9 (36 B)"]),
        (Layers(), ["scales", "layers/block/up", "output: float32[3]", "21 (84 B)"]),
    ],
    ids=["scalars", "layers"],
)
def test_tabulate_has_a_column_of_scales(model, words):
    """A column of factors with their shapes beside the plain model's columns."""
    plain = {"width": 200, "color_system": None}
    table = ei.scaled(model).tabulate(KEY, X, console_kwargs=plain)
    for word in words:
        assert word in table
    assert "einit:" not in table


# Refusals.

MLP, SCAN, TIED = CompactMlp(), Layers(), TiedLm()


@pytest.mark.parametrize(
    ("model", "change", "words"),
    [
        (MLP, lambda s: None, ["'scales'", "ei.tune"]),
        (MLP, lambda s: {}, ["Dense_0", "Dense_2"]),
        (MLP, lambda s: without(s, "Dense_1"), ["Dense_1"]),
        (MLP, lambda s: without(s, "Dense_1/output"), ["Dense_1", "output"]),
        (MLP, lambda s: s | {"Dense_9": s["Dense_0"]}, ["Dense_9"]),
        (MLP, lambda s: s | {"block": {"up": s["Dense_0"]}}, ["block"]),
        (MLP, lambda s: s | {"Dense_0": {"gain": 1.0}}, ["Dense_0", "gain"]),
        (MLP, lambda s: jax.tree.map(lambda x: jnp.ones(3), s), ["Dense_0"]),
        (SCAN, lambda s: without(s, "layers/block/up"), ["layers/block/up"]),
        (
            SCAN,
            lambda s: s | {"layers": jax.tree.map(lambda x: x[:2], s["layers"])},
            ["layers/block"],
        ),
        (TIED, lambda s: without(s, "wte/attend"), ["wte/attend"]),
        (TIED, lambda s: s | {"wte": {"attend": s["wte"]["attend"]}}, ["wte"]),
    ],
    ids=[
        "no_collection",
        "empty",
        "missing_unit",
        "missing_factor",
        "foreign_unit",
        "foreign_module",
        "foreign_entry",
        "not_scalar",
        "missing_in_scan",
        "other_layers",
        "missing_method",
        "missing_call",
    ],
)
def test_scales_that_do_not_fit_are_refused(model, change, words):
    """`apply` names the path at which scales and model part."""
    x = jnp.zeros((2, 5), int) if model is TIED else X
    tuned = ei.scaled(model)
    variables = zeros_of(tuned.init, KEY, x)
    scales = change(variables.pop("scales"))
    given = {} if scales is None else {"scales": scales}
    with pytest.raises(ValueError) as error:
        tuned.apply({**variables, **given}, x)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize(
    ("model", "words"),
    [(nn.Dense, ["Dense", "instance"]), (None, ["None", "flax.linen.Module"])],
    ids=["class", "none"],
)
def test_only_instances_of_linen_modules_are_scaled(model, words):
    with pytest.raises(TypeError) as error:
        ei.scaled(model)
    for word in words:
        assert word in str(error.value)
