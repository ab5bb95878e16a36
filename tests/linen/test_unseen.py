"""What is carried to units is seen by no code of the model's own."""

from collections import Counter
from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import einit_jax as ei
from tests.support.cases import squared_error
from tests.support.checks import KEY, params_of, quick, refuses, same

X = jax.random.normal(KEY, (16, 8))


def _mapped(change, mutable=None, collections: bool | str = "params", layer=nn.Dense):
    """Two layers whose parameters a function maps, all leaves at once."""

    class Mapped(nn.Module):
        @nn.compact
        def __call__(self, x):
            first = self.is_initializing() if mutable is None else mutable
            mapped = nn.map_variables(
                layer, collections, change, init=first, mutable=first
            )
            return mapped(4)(nn.tanh(mapped(8)(x)))

    return Mapped()


def _over_norm(tree):
    leaves = jax.tree.leaves(tree)
    norm = jnp.sqrt(sum(jnp.sum(jnp.square(w)) for w in leaves))
    return jax.tree.map(lambda w: w / norm, tree)


def _standardized(tree):
    apart = lambda w: (w - w.mean(0)) / (w.std(0) + 0.1)
    return jax.tree.map(lambda w: apart(w) if w.ndim > 1 else w, tree)


def _triangular(tree):
    return jax.tree.map(lambda w: jnp.triu(w) if w.ndim > 1 else w, tree)


MAPS = {
    "clip": partial(jax.tree.map, lambda w: jnp.clip(w, -0.1, 0.1)),
    "norm": _over_norm,
    "round": partial(jax.tree.map, lambda w: jnp.round(8 * w) / 8),
    "triangle": _triangular,
    "standard": _standardized,
}


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, _=None):
        return nn.tanh(nn.Dense(8)(x)), None


class Penalty(nn.Module):
    """Returns what it sees of its parameters, from where layers are scanned too."""

    wrap: str = "none"

    def around(self):
        axes = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}}
        if self.wrap == "scan":
            return nn.scan(nn.remat(Block), length=2, **axes)(name="blocks")
        if self.wrap == "vmap":
            return nn.vmap(Block, in_axes=(0, None), axis_size=16, **axes)(
                name="blocks"
            )
        return {"none": Block, "jit": nn.jit(Block)}[self.wrap](name="blocks")

    @nn.compact
    def __call__(self, x):
        block, head = self.around(), nn.Dense(3)
        y = head(block(x, None)[0])
        seen = self.variables["params"]
        total = sum(jnp.sum(jnp.square(w)) for w in jax.tree.leaves(seen))
        count = jnp.float32(
            len(jax.tree.leaves(self.variables))
            + len(jax.tree.leaves(head.variables["params"]))
        )
        return y, total, count, head.variables["params"]


def _loss(outputs, key):
    return squared_error(outputs[0], key)


@pytest.mark.parametrize("layer", [nn.Dense, nn.remat(nn.Dense)], ids=["", "remat"])
@pytest.mark.parametrize("collections", ["params", True])
@pytest.mark.parametrize("name", MAPS)
def test_functions_of_all_variables_map_those_of_the_model_alone(
    name, collections, layer
):
    """The tuned outputs have rms 1, and the scaled model with factors of 1 is plain.

    `True`, which maps every collection there is, is the default of `nn.map_variables`.
    """
    model = _mapped(MAPS[name], collections=collections, layer=layer)
    params = jax.tree.map(lambda w: 0.2 * w, params_of(model))
    scales = ei.tune(model, params, X, squared_error)
    apply = quick(ei.scaled(model).apply)
    tuned = apply({"params": params, "scales": scales}, X)
    np.testing.assert_allclose(jnp.sqrt(jnp.mean(jnp.square(tuned))), 1, rtol=1e-5)
    ones = jax.tree.map(jnp.ones_like, scales)
    plain = quick(model.apply)({"params": params}, X)
    assert same(apply({"params": params, "scales": ones}, X), plain)
    assert abs(float(jnp.sqrt(jnp.mean(jnp.square(plain)))) - 1) > 0.1
    table = ei.measure(model, params, X, squared_error, scales=scales)
    np.testing.assert_allclose(table.output_rms, 1, rtol=1e-5)
    total = float(jnp.max(table.total_update_rms))  # rounding lets no gradient pass
    np.testing.assert_allclose(total, 0 if name == "round" else 1, rtol=1e-3)
    assert table.probed_paths() == []


class Twice(nn.Module):
    """A mapped layer that is called twice: the second call could map the outputs
    captured from the first one."""

    collections: bool | str

    @nn.compact
    def __call__(self, x):
        first = self.is_initializing()
        layer = nn.map_variables(
            nn.Dense, self.collections, _triangular, init=first, mutable=first
        )(8)
        return nn.Dense(4)(nn.tanh(layer(nn.tanh(layer(x)))))


def test_what_is_measured_of_a_layer_is_not_mapped():
    """Where a function maps all collections, the table is that of parameters alone."""
    params = params_of(Twice("params"))
    tables = []
    for collections in ("params", True):
        model = Twice(collections)
        scales = ei.tune(model, params, X, squared_error)
        tables.append(ei.measure(model, params, X, squared_error, scales=scales))
    alone, every = (t.rows() for t in tables)
    assert alone == every and len(alone) == 2


class Spectral(nn.Module):
    """A layer called twice whose norm reads the names of all variables."""

    @nn.compact
    def __call__(self, x):
        layer = nn.SpectralNorm(nn.Dense(8))
        call = lambda x: layer(x, update_stats=False)
        return nn.Dense(4)(nn.tanh(call(nn.tanh(call(x)))))


def test_a_norm_that_reads_the_names_of_variables_is_measured():
    """Flax's own capture of intermediates fails in its second call."""
    variables = Spectral().init(KEY, X)
    with pytest.raises(AttributeError):
        Spectral().apply(variables, X, capture_intermediates=True)
    params = variables.pop("params")
    args = (Spectral(), params, X, squared_error)
    scales = ei.tune(*args, collections=variables)
    table = ei.measure(*args, collections=variables, scales=scales)
    np.testing.assert_allclose(table.output_rms, 1, rtol=1e-4)
    np.testing.assert_allclose(jnp.max(table.total_update_rms), 1, rtol=1e-3)


@pytest.mark.parametrize("wrap", ["none", "jit", "scan", "vmap"])
def test_a_model_sees_its_own_parameters_and_no_others(wrap):
    """A norm and a count of all of them come out as in the plain model, bit for bit."""
    model = Penalty(wrap)
    params = params_of(model)
    plain = quick(model.apply)({"params": params}, X)
    tuned = ei.scaled(model)
    scales = ei.tune(model, params, X, _loss)
    ones = jax.tree.map(jnp.ones_like, scales)
    assert same(quick(tuned.apply)({"params": params, "scales": ones}, X), plain)
    assert same(tuned.apply({"params": params, "scales": scales}, X)[3], plain[3])
    watched = quick(tuned.apply)({"params": params, "scales": scales}, X)
    assert same(watched[1:3], plain[1:3])
    stats = ei.activation_stats(model)
    state = stats.init({"params": params}, X)
    assert same(quick(stats.apply)({"params": params, "taps": state.taps}, X), plain)


def test_a_loss_on_parameters_is_measured_as_it_is():
    """A penalty is a part of the loss, and the same number with and without scales."""
    model = Penalty("scan")
    params = params_of(model)
    penalty = lambda outputs: 1e-3 * outputs[1] + jnp.mean(jnp.square(outputs[0] - 1))
    scales = ei.tune(model, params, X, penalty)
    table = ei.measure(model, params, X, penalty, scales=scales)
    outputs = quick(ei.scaled(model).apply)({"params": params, "scales": scales}, X)
    np.testing.assert_allclose(table.loss, penalty(outputs), rtol=1e-6)
    np.testing.assert_allclose(table.output_rms, 1, rtol=1e-5)


# What is seen of the model by mistake.


class Inner(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(4)(x)


class Hyper(nn.Module):
    """Layers that make the weights of another model, of the same names."""

    @nn.compact
    def __call__(self, x):
        h = nn.Dense(8)(x)
        kernel = nn.Dense(32)(jnp.tanh(h).mean(0)).reshape(8, 4)
        made = {"Dense_0": {"kernel": kernel, "bias": jnp.zeros(4)}}
        return Inner(parent=None).apply({"params": made}, h)


def test_modules_of_another_apply_are_not_those_of_the_model():
    """Their names are the same by accident: nothing of them is tuned or counted."""
    model = Hyper()
    params = params_of(model)
    scales = ei.tune(model, params, X, squared_error)
    table = ei.measure(model, params, X, squared_error, scales=scales)
    assert [row["path"] for row in table.rows()] == ["Dense_0", "Dense_1"]
    np.testing.assert_allclose(table.output_rms, 1, rtol=1e-5)
    np.testing.assert_allclose(jnp.max(table.total_update_rms), 1, rtol=1e-4)


class Ruled(nn.Module):
    """A layer under a reverse rule that signs the gradients of parameters."""

    @nn.compact
    def __call__(self, x):
        def forward(layer, x):
            return nn.vjp(lambda layer, x: layer(x), layer, x)

        def backward(transpose, cotangent):
            params, x = transpose(cotangent)
            return jax.tree.map(jnp.sign, params), x

        signed = nn.custom_vjp(
            lambda layer, x: layer(x), forward_fn=forward, backward_fn=backward
        )
        return signed(nn.Dense(4, name="signed"), nn.Dense(8, name="free")(x))


def test_a_reverse_rule_of_the_users_is_refused_and_kept():
    """Nothing is measured through it; a scaled model runs it as the plain one does."""
    model = Ruled()
    params = params_of(model)
    for verb in (ei.tune, ei.measure):
        with refuses(ValueError, "signed run inside of nn.custom_vjp"):
            verb(model, params, X, squared_error)
    with refuses(ValueError, "signed run inside of nn.custom_vjp"):
        ei.activation_stats(model).init({"params": params}, X)
    tuned = ei.scaled(model)
    scales = tuned.init(KEY, X)["scales"]
    scales["signed"]["output"] = jnp.float32(2)

    def gradient(apply, **rest):
        loss = lambda p: squared_error(apply({"params": p, **rest}, X), KEY)
        return quick(jax.grad(loss))(params)["signed"]

    found = gradient(tuned.apply, scales=scales)
    assert set(np.unique(found["kernel"])) <= {-1, 0, 1}
    ones = jax.tree.map(jnp.ones_like, scales)
    assert same(gradient(tuned.apply, scales=ones), gradient(model.apply))


class Forces(nn.Module):
    """The derivative of an energy by the inputs."""

    inner: bool = True

    @nn.compact
    def __call__(self, x):
        first, last = nn.Dense(8, name="first"), nn.Dense(1, name="last")
        energy = lambda x: jnp.sum(last(nn.tanh(first(x))))
        value = energy(x)
        return jax.grad(energy)(x) if self.inner else value


def test_a_derivative_inside_of_the_model_is_refused():
    """The advice holds: an energy that is tuned by outputs alone has true forces."""
    params = params_of(Forces())
    for verb in (ei.tune, ei.measure):
        with refuses(ValueError, "differentiates first, last itself"):
            verb(Forces(), params, X, squared_error)
    how = {"optimizer": optax.sgd(1.0), "gradients": "plain"}
    scales = ei.tune(Forces(inner=False), params, X, squared_error, **how)
    run = lambda model, x: ei.scaled(model).apply(
        {"params": params, "scales": scales}, x
    )
    energy = lambda x: run(Forces(inner=False), x)
    np.testing.assert_allclose(
        run(Forces(), X), quick(jax.grad(energy))(X), rtol=1e-5, atol=1e-7
    )


class Telling(nn.Module):
    """Calls back before layers of a scan, and inside of them."""

    heard: Callable[[str], None]

    @nn.compact
    def __call__(self, x):
        tell = lambda what: jax.debug.callback(lambda: self.heard(what))

        class Told(nn.Module):
            @nn.compact
            def __call__(self, x, _):
                tell("layer")
                return nn.tanh(nn.Dense(8)(x)), None

        tell("model")
        scan = nn.scan(
            Told, variable_axes={"params": 0}, split_rngs={"params": True}, length=3
        )
        return nn.Dense(4)(scan(name="layers")(nn.Dense(8)(x), None)[0])


@pytest.mark.parametrize("wrap", [lambda run: run, jax.jit], ids=["eager", "jit"])
def test_a_tuned_model_calls_back_as_often_as_the_plain_one(wrap):
    """Nothing of a run that had to start over is left once the model was tuned."""
    heard: list[str] = []
    model = Telling(heard.append)
    params = model.init(KEY, X)["params"]
    scales = ei.tune(model, params, X, squared_error)
    counts = []
    for tuned, variables in (
        (model, {"params": params}),
        (ei.scaled(model), {"params": params, "scales": scales}),
    ):
        jax.effects_barrier()
        heard.clear()
        jax.block_until_ready(wrap(tuned.apply)(variables, X))
        jax.effects_barrier()
        counts.append(Counter(heard))
    assert counts[0] == counts[1]
    assert counts[0]["model"] == 1 and counts[0]["layer"] >= 3
