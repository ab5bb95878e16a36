"""`scaled`: the model with factors in a collection of their own."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import einit_jax as ei
from tests.support.cases import Case, as_inputs, squared_error
from tests.support.checks import (
    KEY,
    VARIED,
    allclose,
    factors_of,
    initialized,
    quick,
    same,
    some,
    uneven,
)
from tests.support.models.calls import Autoencoder
from tests.support.models.dense import CompactMlp
from tests.support.models.inputs import TiedLm
from tests.support.models.lifted import Layers
from tests.support.models.stateful import Normed

X = jax.random.normal(KEY, (16, 8))


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


@some(*VARIED)
def test_ones_leave_outputs_and_gradients_to_the_bit(case: Case):
    """With factors of 1: same outputs, same state, same gradients of the params."""
    job = case.build()
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
    scaled = run(ei.scaled(job.model).apply, {"scales": ones})
    if case.name == "vmap_ensemble":  # whose members share an input
        allclose(scaled, plain, rtol=1e-5, atol=1e-7)
    else:
        assert same(scaled, plain)


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


@some("compact_mlp", "scan_remat", "rnn_gru", "tied_lm")
def test_forward_mode_is_the_transpose_of_reverse_mode(case: Case):
    """`<ct, J t> = <J^T ct, t>` with uneven factors, through lifted transforms too."""
    job = case.build()
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
    assert factors_of(inits["scales"]).keys() == {
        "encoder/layers_0",
        "encoder/layers_2",
    }


class Behind(nn.Module):
    """A layer, and behind it a scaled model that is no part of this one."""

    name_of_layer: str
    inner: dict

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(8, name=self.name_of_layer)(x)
        return ei.scaled(CompactMlp()).apply(self.inner, x)


@pytest.mark.parametrize("name", ["own", "Dense_0"])
def test_a_scaled_model_inside_of_a_model_has_its_factors_once(name):
    """And it is no unit of that model, though a layer may have the name of one."""
    _, inner = initialized(CompactMlp(), X)
    twice = lambda scales: jax.tree.map(lambda factor: 2 * factor, scales)
    model = Behind(name, {**inner, "scales": twice(inner["scales"])})
    tuned, variables = initialized(model, X)
    plain = model.apply({"params": variables["params"]}, X)
    assert same(tuned.apply(variables, X), plain)
    assert not same(
        Behind(name, inner).apply({"params": variables["params"]}, X), plain
    )
    scales = ei.tune(model, variables["params"], X, squared_error)
    assert list(scales) == [name]
    table = ei.measure(model, variables["params"], X, squared_error, scales=scales)
    assert table.modes()["gradients"] == ("exact", "unit")
    assert not table.layers_off()
