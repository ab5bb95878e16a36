"""What a tuned NNX model is; what cannot be done is said before anything runs."""

import copy
import pickle
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import einit_jax as ei
from tests.benchmarks.cost.timing import compilations
from tests.support.checks import refuses, same

X = jax.random.normal(jax.random.key(1), (8, 8))
to_one = lambda outputs: jnp.mean(jnp.square(outputs - 1))


class Two(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Linear(8, 8, rngs=rngs)
        self.second = nnx.Linear(8, 8, rngs=rngs)

    def __call__(self, x):
        return self.second(nnx.tanh(self.first(x)))


class Bound(Two):
    """Keeps a method: copies of the model go on calling the layer of before."""

    def __init__(self, rngs):
        super().__init__(rngs)
        self.again = self.first.__call__

    def __call__(self, x):
        return self.second(self.again(x))


class Closed(Two):
    """The same in a function that closes over the model."""

    def __init__(self, rngs):
        super().__init__(rngs)
        self.again = lambda x: self.first(x)

    def __call__(self, x):
        return self.second(self.again(x))


class Asking(Two):
    """Asks for a class by its identity, which a subclass has not."""

    def __call__(self, x):
        layers = [m for m in (self.first, self.second) if type(m) is nnx.Linear]
        for layer in layers:
            x = nnx.tanh(layer(x))
        return x + jnp.mean(self.first.kernel * self.second.kernel)


class Around(nnx.Module):
    """A model with a tuned one inside."""

    def __init__(self, rngs):
        self.head = nnx.Linear(8, 8, rngs=rngs)
        self.body = ei.scaled(Two(rngs), SCALES)

    def __call__(self, x):
        return self.head(self.body(x))


class Empty(nnx.Module):
    def __call__(self, x):
        return x


def two() -> Two:
    return Two(nnx.Rngs(0))


SCALES = ei.tune(two(), None, X, to_one)
BAD = {
    "bound": (lambda: ei.tune(Bound(nnx.Rngs(0)), None, X, to_one),
              ValueError, ["'again'", "'first'", "method of the class"]),
    "closed": (lambda: ei.tune(Closed(nnx.Rngs(0)), None, X, to_one),
               ValueError, ["'again'", "'.'"]),
    "asking": (lambda: ei.tune(Asking(nnx.Rngs(0)), None, X, to_one),
               ValueError, ["isinstance", "dot_general"]),
    "tuned_inside": (lambda: ei.tune(Around(nnx.Rngs(0)), None, X, to_one),
                     ValueError, ["'body' of Around", "the plain model"]),
    "empty": (lambda: ei.tune(Empty(), None, X, to_one),
              ValueError, ["no parameters", "Empty"]),
    "class": (lambda: ei.tune(Two, None, X, to_one),
              TypeError, ["class Two", "rngs=nnx.Rngs(0)"]),
    "collections": (lambda: ei.tune(two(), None, X, to_one, collections={"a": 1}),
                    ValueError, ["collections", "own variables"]),
    "foreign_params": (lambda: ei.tune(two(), {"third": {"kernel": X}}, X, to_one),
                       ValueError, ["nothing that Two has"]),
    "shapes": (lambda: ei.tune(two(), {"first": {"kernel": X[:2]}}, X, to_one),
               ValueError, ["'first/kernel'", "(2, 8)", "(8, 8)"]),
    "method": (lambda: ei.tune(two(), None, X, to_one, method="encode"),
               ValueError, ["no method 'encode'", "Two"]),
    "inputs": (lambda: ei.tune(two(), None, (X, X), to_one),
               ValueError, ["Two cannot take the inputs", "too many"]),
    "include": (lambda: ei.tune(two(), None, X, to_one, include="third"),
                ValueError, ["first, second"]),
    "loss": (lambda: ei.tune(two(), None, X, lambda a, b, c: a),
             TypeError, ["loss_fn takes (a, b, c)"]),
    "no_scales": (lambda: ei.scaled(two()), TypeError, ["no scales", "ei.tune"]),
    "other_scales": (lambda: ei.scaled(two(), {"third": SCALES["first"]}),
                     ValueError, ["'third'"]),
    "other_method": (
        lambda: ei.scaled(two(), {"first": {"encode": SCALES["first"]}}),
        ValueError, ["first/encode"]),
    "missing_scales": (lambda: ei.scaled(two(), {"first": SCALES["first"]})(X),
                       ValueError, ["missing for second"]),
    "measured_missing": (
        lambda: ei.measure(two(), None, X, to_one, scales={"first": SCALES["first"]}),
        ValueError, ["missing for second"]),
    "abstract": (
        lambda: ei.tune(nnx.eval_shape(two), None, X, to_one),
        TypeError, ["first/bias", "shape"]),
}  # fmt: skip


def decayed(net, x):
    """A loss with all parameters of the model in it."""
    own = jax.tree.leaves(nnx.state(net, nnx.Param))
    return to_one(net(x)) + sum(jnp.sum(jnp.square(p)) for p in own)


def decayed_by_name(net, x):
    """The same, of kernels alone."""
    own = jax.tree.leaves(nnx.state(net, nnx.PathContains("kernel")))
    return to_one(net(x)) + sum(jnp.sum(jnp.square(p)) for p in own)


class Damped(Two):
    """Divides by the size of all of its parameters."""

    def __call__(self, x):
        own = jax.tree.leaves(nnx.state(self, nnx.Param))
        return super().__call__(x) / sum(jnp.sum(jnp.square(p)) for p in own)


class Unlike(nnx.Module):
    """Damped by real parameters of 32 bits, between layers that have none of these."""

    def __init__(self, rngs, kind, damped=True):
        self.damped, kinds = damped, {"param_dtype": kind, "dtype": kind}
        self.first = nnx.Linear(8, 8, rngs=rngs, **kinds)
        self.second = nnx.Linear(8, 8, rngs=rngs, **kinds)

    def __call__(self, x):
        own = jax.tree.leaves(nnx.state(self, nnx.Param))
        real = [p for p in own if p.dtype == jnp.float32]
        size = sum(jnp.sum(jnp.square(p)) for p in real) if self.damped else 0.0
        y = self.second(nnx.tanh(self.first(x))) / (1 + size)
        return y.real.astype(jnp.float32)


ComplexDamped = partial(Unlike, kind=jnp.complex64)
NarrowDamped = partial(Unlike, kind=jnp.bfloat16)


@pytest.mark.parametrize("kind", [jnp.complex64, jnp.bfloat16])
def test_layers_of_other_dtypes_are_tuned(kind):
    model = Unlike(nnx.Rngs(0), kind, damped=False)
    assert ei.tune(model, None, X, to_one).keys() == {"first", "second"}


@pytest.mark.parametrize(
    ("model", "loss_fn"),
    [(Two, decayed), (Damped, to_one), (ComplexDamped, to_one), (NarrowDamped, to_one)],
)
def test_what_is_carried_is_not_counted_among_parameters(model, loss_fn):
    """It cannot be told from them where all are taken: that is refused by name."""
    for verb in (ei.tune, ei.measure):
        with refuses(ValueError, "computes with all parameters"):
            verb(model(nnx.Rngs(0)), None, X, loss_fn)


class Normed(nnx.Module):
    """Layers that norm all matrices that they find below, under a scan or alone."""

    def __init__(self, rngs, scanned):
        def layer(rngs):
            return nnx.SpectralNorm(nnx.Linear(8, 8, rngs=rngs), rngs=rngs)

        split = nnx.split_rngs(splits=2)
        self.scanned = scanned
        self.layers = split(nnx.vmap(layer))(rngs) if scanned else layer(rngs)

    def __call__(self, x):
        step = lambda x, layer: layer(x, update_stats=True)
        return nnx.scan(step, out_axes=nnx.Carry)(x, self.layers) if self.scanned else (
            step(x, self.layers)
        )  # fmt: skip


def test_errors_that_tell_of_what_is_carried_are_refusals():
    """What is carried to layers of a scan cannot be told from their parameters."""
    assert ei.tune(Normed(nnx.Rngs(0), True), None, X, to_one)
    assert ei.measure(Normed(nnx.Rngs(0), False), None, X, to_one).rows()
    with refuses(ValueError, "computes with all parameters"):
        ei.measure(Normed(nnx.Rngs(0), True), None, X, to_one)


def test_parameters_in_the_loss_are_taken_by_name():
    model = two()
    assert ei.tune(model, None, X, decayed_by_name).keys() == {"first", "second"}
    table = ei.measure(model, None, X, decayed_by_name)
    np.testing.assert_allclose(table.loss, decayed_by_name(model, X), rtol=1e-5)


@pytest.mark.parametrize("name", BAD)
def test_errors_name_what_is_wrong(name):
    call, exception, words = BAD[name]
    with refuses(exception) as error:
        call()
    assert all(word in str(error.value) for word in words), str(error.value)


@pytest.mark.parametrize("kind", ["hijax", "ref"])
def test_variables_that_are_references_are_refused(kind):
    with nnx.var_defaults(**{kind: True}):
        model = two()
    with refuses(NotImplementedError, "first/bias"):
        ei.tune(model, None, X, to_one)


def test_linen_is_given_scales_where_it_is_applied():
    import flax.linen as nn

    with refuses(TypeError, "apply"):
        ei.scaled(nn.Dense(3), SCALES)


# What a tuned model is.


def test_a_tuned_model_keeps_its_class_and_attributes_and_hides_its_scales():
    tuned = ei.scaled(two(), SCALES)
    assert isinstance(tuned, Two) and isinstance(tuned.first, nnx.Linear)
    assert type(tuned.first).__name__ == "Linear" and tuned.first.in_features == 8
    paths = lambda net, kind: {p for p, _ in nnx.to_flat_state(nnx.state(net, kind))}
    assert paths(tuned, nnx.Param) == paths(two(), nnx.Param)
    rest = nnx.state(tuned, nnx.Not(nnx.Param))
    assert len(nnx.to_flat_state(rest)) == 6  # three factors for each unit
    assert "Scale" in repr(tuned) and "Hook" not in repr(tuned)


def test_a_tuned_model_is_copied_pickled_split_and_scaled_anew():
    expected = ei.scaled(two(), SCALES)(X)
    tuned = ei.scaled(two(), SCALES)
    copies = {
        "pickle": pickle.loads(pickle.dumps(tuned)),
        "deepcopy": copy.deepcopy(tuned),
        "clone": nnx.clone(tuned),
        "merge": nnx.merge(*nnx.split(tuned)),
        "scaled": ei.scaled(tuned, SCALES),
    }
    for name, other in copies.items():
        assert same(other(X), expected), name
    other = ei.scaled(tuned, jax.tree.map(jnp.ones_like, SCALES))
    assert same(other(X), two()(X))


def test_tuned_models_of_equal_structure_share_what_is_compiled():
    traces = []

    @nnx.jit
    def run(net, x):
        traces.append(net)
        return net(x)

    for seed in range(2):
        net = Two(nnx.Rngs(seed))
        run(ei.scaled(net, ei.tune(net, None, X, to_one)), X)
    assert len(traces) == 1


def test_a_second_tune_of_an_equal_model_compiles_nothing():
    tune = lambda x: compilations(lambda: ei.tune(two(), None, x, to_one))
    tune(X)
    assert tune(X) == 0
    assert tune(X[:4]) > 0  # the negative


def test_a_tuned_model_is_measured_with_its_factors():
    net = two()
    scales = ei.tune(net, None, X, to_one)
    tuned = ei.scaled(net, scales)
    with refuses(TypeError, "holds factors already"):
        ei.measure(tuned, None, X, to_one)
    table = ei.measure(tuned, None, X, to_one, scales=scales)
    np.testing.assert_allclose(table.output_rms, 1, rtol=1e-5)


@pytest.mark.parametrize("name", ["y", "target"])
def test_a_second_argument_of_another_name_is_refused_beside_outputs(name):
    scope = {"jnp": jnp}
    exec(f"def loss(logits, {name}): return jnp.mean(logits)", scope)
    with refuses(TypeError, "expected .logits, labels."):
        ei.tune(two(), None, X, scope["loss"])


def test_tuning_inside_of_a_trace():
    """In `nnx.jit`, and over seeds under `vmap`."""

    @nnx.jit
    def init(key):
        net = Two(nnx.Rngs(key))
        return net, ei.tune(net, None, X, to_one)

    key = jax.random.key(5)
    net, scales = init(key)
    outside = ei.tune(net, None, X, to_one)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-5), scales, outside)
    keys = jax.random.split(key, 2)
    each = jax.vmap(lambda key: ei.tune(Two(nnx.Rngs(key)), None, X, to_one))(keys)
    for i in range(2):
        alone = ei.tune(Two(nnx.Rngs(keys[i])), None, X, to_one)
        compare = lambda a, b, i=i: np.testing.assert_allclose(a[i], b, 1e-5)
        jax.tree.map(compare, each, alone)


def test_parts_of_a_tuned_model_are_called_by_themselves():
    tuned = ei.scaled(two(), SCALES)
    plain = two()
    expected = SCALES["first"]["output"] * plain.first(X)
    np.testing.assert_allclose(tuned.first(X), expected, rtol=1e-6)


def test_a_tuned_model_inside_of_another_model_runs_as_it_is():
    around = Around(nnx.Rngs(0))
    inner = nnx.clone(around.body)
    assert same(around(X), around.head(inner(X)))


class Coded(Two):
    def encode(self, x):
        return nnx.tanh(self.first(x))


def test_methods_are_given_by_name_or_as_functions():
    """Only what they call has factors."""
    by_name = ei.tune(Coded(nnx.Rngs(0)), None, X, to_one, method="encode")
    function = lambda net, x: net.encode(x)
    by_function = ei.tune(Coded(nnx.Rngs(0)), None, X, to_one, method=function)
    assert same(by_name, by_function) and by_name.keys() == {"first"}
    tuned = ei.scaled(Coded(nnx.Rngs(0)), by_name)
    assert np.isfinite(tuned.encode(X)).all()
    with refuses(ValueError, "missing for second"):
        tuned(X)


class Placed(nnx.Module):
    """Gives a layer positions that numpy knows, to which the layer adds."""

    def __init__(self, rngs):
        self.places = Shifted(rngs)
        self.head = nnx.Linear(8, 8, rngs=rngs)

    def __call__(self, x):
        return self.head(x + self.places(np.arange(8)))


class Shifted(nnx.Module):
    def __init__(self, rngs):
        self.table = nnx.Param(rngs.params.normal((9, 8)))

    def __call__(self, places):
        return jnp.take(self.table[...], places + 1, axis=0)


def test_what_numpy_computes_in_a_layer_is_no_other_model():
    scales = ei.tune(Placed(nnx.Rngs(0)), None, X, to_one)
    assert scales.keys() == {"places", "head"}


class Listed(nnx.Module):
    """Raw parameters in a list, and in a dict under a name that is a number."""

    def __init__(self, rngs):
        self.gains = nnx.List([nnx.Param(jnp.full((8,), 0.5)) for _ in range(2)])
        self.shifts = nnx.Dict({"0": nnx.Param(rngs.params.normal((8,)))})
        self.layers = nnx.List([nnx.Linear(8, 8, rngs=rngs) for _ in range(2)])

    def __call__(self, x):
        for gain, layer in zip(self.gains, self.layers, strict=True):
            x = nnx.tanh(layer(x)) * gain
        return x + self.shifts["0"]


def test_gradients_of_raw_parameters_have_their_factors():
    model = Listed(nnx.Rngs(0))
    scales = ei.tune(model, None, X, to_one)
    factors = {
        ("gains", 1): scales["gains"]["1"]["output_grad"],
        ("shifts", "0"): scales["shifts"]["0"]["output_grad"],
    }
    gradient = lambda net: nnx.grad(lambda net: to_one(net(X)))(net)
    flat = lambda net: dict(nnx.to_flat_state(gradient(net)))
    without = {name: own for name, own in scales.items() if name == "layers"}
    carried = flat(ei.scaled(model, scales))
    plain = flat(ei.scaled(model, without))
    for keys, factor in factors.items():
        expected = factor * plain[keys].get_value()
        np.testing.assert_allclose(carried[keys].get_value(), expected, rtol=1e-5)
        assert not np.isclose(factor, 1)
    tuned = ei.scaled(model, scales)
    tuned(X)  # what was put in for the call is taken back
    assert same(tuned.gains[1][...], model.gains[1][...])


class Mixed(nnx.Module):
    """A raw matrix behind a layer."""

    def __init__(self, rngs):
        self.layer = nnx.Linear(8, 8, rngs=rngs)
        self.mix = nnx.Param(rngs.params.normal((8, 8)))

    def __call__(self, x):
        return self.layer(x) @ self.mix[...]


class Members(nnx.Module):
    """Two of them side by side, from one array of parameters each."""

    def __init__(self, rngs):
        self.members = nnx.vmap(Mixed)(rngs.split(2))

    def __call__(self, x):
        apply = nnx.vmap(lambda member, x: member(x), in_axes=(0, None))
        return apply(self.members, x).mean(0)


def test_a_raw_parameter_that_is_mapped_over_has_one_factor():
    """No transform sees it, as it has no axis to be mapped over."""
    model = Members(nnx.Rngs(0))
    scales = ei.tune(model, None, X, to_one)
    factor = scales["members"]["mix"]["output_grad"]
    assert factor.shape == () and not np.isclose(factor, 1)
    tuned = ei.scaled(model, scales)
    np.testing.assert_allclose(tuned(X), nnx.jit(lambda net: net(X))(tuned), rtol=1e-5)
    gradient = nnx.grad(lambda net: to_one(net(X)))
    layers = {"members": {"layer": scales["members"]["layer"]}}
    without = gradient(ei.scaled(model, layers))["members"]["mix"].get_value()
    carried = gradient(tuned)["members"]["mix"].get_value()
    np.testing.assert_allclose(carried, factor * without, rtol=1e-4)
    table = ei.measure(model, None, X, to_one, scales=scales)
    assert "exact" in table.modes()["gradients"]


def test_a_layer_may_compute_in_more_digits_than_its_parameters_have():
    """A norm of weights hands on 32 bits of a kernel of 16."""
    kinds = {"dtype": jnp.bfloat16, "param_dtype": jnp.bfloat16}
    layer = nnx.Linear(8, 8, rngs=nnx.Rngs(0), **kinds)
    model = nnx.WeightNorm(layer, rngs=nnx.Rngs(1), param_dtype=jnp.bfloat16)
    x = X.astype(jnp.bfloat16)
    scales = ei.tune(model, None, x, to_one)
    table = ei.measure(model, None, x, to_one, scales=scales)
    np.testing.assert_allclose(table.output_rms, 1, rtol=0.02)


def test_tuned_models_are_saved_by_orbax(tmp_path):
    import orbax.checkpoint as ocp

    tuned = ei.scaled(two(), SCALES)
    expected, path = tuned(X), tmp_path / "tuned"
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path, nnx.state(tuned))
        checkpointer.wait_until_finished()
        other = ei.scaled(Two(nnx.Rngs(5)), jax.tree.map(jnp.ones_like, SCALES))
        shapes = jax.tree.map(ocp.utils.to_shape_dtype_struct, nnx.state(other))
        nnx.update(other, checkpointer.restore(path, shapes))
    assert same(other(X), expected)
