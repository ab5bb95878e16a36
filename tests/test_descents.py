"""MetaInit and GradInit: what they descend, by definition, and what becomes of it."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import einit_jax as ei
from einit_jax.core import draw_batches, flatten
from einit_jax.initializers.learned import gradient_quotient, make_rescaling
from einit_jax.initializers.learned._gradinit import _Step, _step_norm
from einit_jax.linen import make_objective
from tests.models import CASES

KEY = jax.random.key(0)
COMPILED = "/jax/core/compile/backend_compile_duration"


# The gradient quotient.


def dense(function, at, epsilon):
    """By the dense Hessian over real and imaginary parts, in numpy."""
    leaves, tree = jax.tree.flatten(at)
    parts = [
        p for x in leaves for p in ((x.real, x.imag) if x.dtype.kind == "c" else [x])
    ]
    sizes = np.cumsum([p.size for p in parts])[:-1]

    def of_vector(v):
        flat = iter(jnp.split(v, sizes))
        whole = [
            jax.lax.complex(next(flat), next(flat))
            if x.dtype.kind == "c"
            else next(flat)
            for x in leaves
        ]
        shaped = [w.reshape(x.shape) for w, x in zip(whole, leaves, strict=True)]
        return function(jax.tree.unflatten(tree, shaped))

    v = jnp.concatenate([p.ravel() for p in parts])
    both = jax.jit(lambda v: (jax.grad(of_vector)(v), jax.hessian(of_vector)(v)))
    g, h = map(np.asarray, both(v))
    e = np.where(g < 0, -epsilon, epsilon)
    return np.mean(np.abs((g - h @ g) / (g + e) - 1))


def two_layers(params):
    x = jnp.linspace(-1, 1, 12).reshape(4, 3)
    return jnp.sum(jnp.sin(jnp.tanh(x @ params["a"]) @ params["b"]))


def of_complex(params):
    z = params["z"] @ params["z"].T + params["r"]
    return jnp.sum(jnp.cos(z.real) * z.imag) + jnp.sum(jnp.abs(params["z"]) ** 4)


@pytest.mark.parametrize(
    ("function", "shapes"),
    [
        (two_layers, {"a": (3, 5), "b": (5, 2)}),
        (of_complex, {"z": (3, 3), "r": (3, 3)}),
    ],
)
@pytest.mark.parametrize("epsilon", [1e-5, 0.3])
def test_quotient_is_that_of_the_dense_hessian(function, shapes, epsilon):
    """In float64, to 1e-10; products with the Hessian are exact."""
    with jax.enable_x64(True):
        keys = jax.random.split(KEY, len(shapes))
        kinds = {"z": jnp.complex128}
        at = {
            n: jax.random.normal(k, s, kinds.get(n, jnp.float64))
            for k, (n, s) in zip(keys, shapes.items(), strict=True)
        }
        want = dense(function, at, epsilon)
        found = jax.jit(partial(gradient_quotient, function, epsilon=epsilon))(at)
        assert float(found) == pytest.approx(want, rel=1e-10)


def test_quotient_in_closed_form():
    """Of a quadratic `g = A x`, `H g = A A x`; a linear loss has 0, a flat one 1."""
    a = np.array([[2.0, -0.5], [-0.5, 0.3]])
    x = np.array([1.0, -2.0])
    g = a @ x
    e = 0.01 * np.sign(g)
    want = np.mean(np.abs((g - a @ g) / (g + e) - 1))
    quadratic = lambda x: 0.5 * x @ jnp.asarray(a) @ x
    at = jnp.asarray(x)
    assert float(gradient_quotient(quadratic, at, 0.01)) == pytest.approx(
        want, rel=1e-5
    )
    linear = lambda x: 3.0 * x.sum()
    assert float(gradient_quotient(linear, at, 1e-5)) == pytest.approx(0, abs=1e-5)
    assert float(gradient_quotient(lambda x: 0 * x.sum(), at, 1e-5)) == 1.0


# MetaInit on weights that are too large.

WAYS = jax.random.normal(jax.random.key(5), (8, 4))


class Deep(nn.Module):
    """A ReLU chain, its weights `size` times those of He."""

    size: float = 2.0

    @nn.compact
    def __call__(self, x):
        draw = nn.initializers.variance_scaling(2 * self.size**2, "fan_in", "normal")
        for _ in range(5):
            x = nn.relu(nn.Dense(32, kernel_init=draw)(x))
        return nn.Dense(4, kernel_init=draw)(x)


def draw(key):
    return jax.random.normal(key, (64, 8))


def loss_fn(logits, inputs):
    labels = jnp.argmax(inputs @ WAYS, -1)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


MODEL = Deep()
PARAMS = MODEL.init(KEY, draw(KEY))["params"]


def loss_of(params, x):
    return loss_fn(MODEL.apply({"params": params}, x), x)


@jax.jit
def trained(params):
    """The losses of 200 steps of SGD on fresh batches."""

    def step(params, key):
        value, gradient = jax.value_and_grad(loss_of)(params, draw(key))
        return jax.tree.map(lambda p, g: p - 0.3 * g, params, gradient), value

    return jax.lax.scan(step, params, jax.random.split(jax.random.key(9), 200))[1]


@pytest.fixture(scope="module")
def metainit():
    seen = []
    report = lambda *args: seen.append(args)
    found = ei.metainit(MODEL, PARAMS, draw, loss_fn, progress=report)
    return found, seen


def test_metainit_lowers_the_quotient(metainit):
    """On batches of its own; an independent evaluation, on one that it never saw."""
    found, seen = metainit
    assert seen[-1][2] < 0.1 * seen[0][2]
    fresh = partial(loss_of, x=draw(jax.random.key(77)))
    quotient = jax.jit(lambda params: gradient_quotient(fresh, params, 1e-5))
    assert quotient(found) < 0.1 * quotient(PARAMS)


def test_metainit_makes_it_train(metainit):
    before, after = trained(PARAMS), trained(metainit[0])
    assert not before[-20:].mean() < 1.3  # log 4 = 1.39 is chance
    assert after[-20:].mean() < 0.7


def test_metainit_changes_norms_alone(metainit):
    for path, old in flatten(PARAMS).items():
        new = flatten(metainit[0])[path]
        if path[-1] == "bias":
            assert np.array_equal(old, new)
            continue
        by = jnp.linalg.norm(new) / jnp.linalg.norm(old)
        assert 0.01 <= by < 0.99
        np.testing.assert_allclose(new, by * old, rtol=1e-5)


def test_metainit_tells_how_far_it_is(metainit):
    steps, of, values = zip(*metainit[1], strict=True)
    assert steps[0] == 1 and steps[-1] == 200 and set(of) == {200}
    assert list(steps) == sorted(set(steps)) and len(steps) >= 100
    assert np.isfinite(values).all()


def test_one_program_serves_any_number_of_steps(metainit):
    """And the same key gives the same parameters, another key others."""
    compiled = []
    listen = lambda event, duration, **_: compiled.append(event)
    run = partial(ei.metainit, MODEL, PARAMS, draw, loss_fn)
    first = run(steps=3)
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        second, more = run(steps=3), run(steps=7)
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert COMPILED not in compiled
    assert jax.tree.all(jax.tree.map(np.array_equal, first, second))
    assert not np.array_equal(first["Dense_0"]["kernel"], more["Dense_0"]["kernel"])


# GradInit.


SMALL = nn.Sequential([nn.Dense(8), nn.tanh, nn.Dense(4)])


def small_loss(params, x):
    return loss_fn(SMALL.apply({"params": params}, x), x)


def reference(power, gamma, params, batches, factors):
    """The objective as the paper writes it: scale, gradient, step, loss."""
    scaled = jax.tree.unflatten(
        jax.tree.structure(params),
        [a * p for a, p in zip(factors, jax.tree.leaves(params), strict=True)],
    )
    gradient = jax.grad(small_loss)(scaled, batches[0])
    leaves = jax.tree.leaves(gradient)
    total = sum(jnp.sum(jnp.abs(g) ** power) for g in leaves) ** (1 / power)
    if gamma == 0:
        return total
    if power == 1:
        moved = jax.tree.map(lambda p, g: p - 0.01 * jnp.sign(g), scaled, gradient)
    else:
        moved = jax.tree.map(lambda p, g: p - 0.1 * g, scaled, gradient)
    return (small_loss(moved, batches[0]) + small_loss(moved, batches[1])) / 2


@pytest.mark.parametrize("gamma", [0.0, 1e9])
@pytest.mark.parametrize(
    ("optimizer", "kind"), [(optax.sgd(0.1), (2, 0.1)), (optax.adam(0.01), (1, 0.01))]
)
def test_gradinit_descends_what_it_says(optimizer, kind, gamma):
    """Value and gradient, against the definition; Adam's first step is a sign."""
    task = make_objective(SMALL, loss_fn, None, None)
    params = SMALL.init(KEY, draw(KEY))["params"]
    now, then = draw_batches(draw, KEY, (), None, 2)
    how = make_rescaling(task, params, {}, now, lambda *_: True, None, ())
    power, eta = _step_norm(optimizer, params)
    assert (power, eta) == pytest.approx(kind, rel=1e-3)
    step = _Step(how, optimizer, power, gamma)
    factors = 1 + 0.1 * jnp.arange(4.0)
    batches = [b.inputs.args[0] for b in (now, then)]
    want = jax.jit(
        jax.value_and_grad(partial(reference, power, gamma, params, batches))
    )
    value, gradient = jax.jit(step)(factors, (params, {}), now, then)
    right, slope = want(factors)
    assert float(value) == pytest.approx(float(right), rel=1e-4)
    np.testing.assert_allclose(gradient, slope, rtol=1e-3, atol=1e-4 * abs(slope).max())


FEWER = {"draws": 4, "steps": 60, "learning_rate": 0.03}


def test_gradinit_lowers_the_loss_after_a_step():
    """On fresh data, and the gradient keeps the bound that it broke before."""
    seen = []
    report = lambda *args: seen.append(args[0])
    found = ei.gradinit(MODEL, PARAMS, draw, loss_fn, progress=report, **FEWER)
    assert seen == list(range(1, 61))

    @jax.jit
    def look(params):
        x = draw(jax.random.key(77))
        gradient = jax.grad(loss_of)(params, x)
        moved = jax.tree.map(lambda p, g: p - 0.1 * g, params, gradient)
        return loss_of(moved, x), optax.tree.norm(gradient)

    (before, steep), (after, flat) = look(PARAMS), look(found)
    assert steep > 10 and flat < 1.1
    assert after < 1.4 < before
    assert trained(found)[-20:].mean() < 0.7


# Other models, other arrays.

FEW = {"draws": 2, "steps": 3}
DESCENTS = {
    "metainit": ei.metainit,
    "gradinit": partial(ei.gradinit, learning_rate=0.1),
}


def layers_of(name, path):
    """Along which axis an array of a case holds layers."""
    return (
        {"scan_layers": 0, "scan_axis_1": 1}.get(name) if path[0] == "layers" else None
    )


@pytest.mark.parametrize(
    ("verb", "name"),
    [
        ("gradinit", "scan_axis_1"),
        ("metainit", "batch_norm_axis_name"),
        ("metainit", "custom_vjp"),
        ("gradinit", "dropout"),
        ("gradinit", "boxed"),
        ("gradinit", "integer_parameter"),
    ],
)
def test_each_array_is_multiplied(verb, name):
    """By one number, or one a layer; structure, dtypes and zeros stay."""
    job = CASES[name].build()
    model, params, input_fn, loss_fn, options = job
    found = DESCENTS[verb](model, params, input_fn, loss_fn, **options, **FEW)
    assert jax.tree.structure(found) == jax.tree.structure(params)
    changed = 0
    for path, old in flatten(nn.meta.unbox(params)).items():
        new, axis = flatten(nn.meta.unbox(found))[path], layers_of(name, path)
        assert new.dtype == old.dtype
        pairs = [(old, new)]
        if axis is not None and path[-1] == "kernel":
            pairs = [(jnp.take(old, i, axis), jnp.take(new, i, axis)) for i in range(3)]
            assert len({float(jnp.abs(b / a).max()) for a, b in pairs}) == 3
        for a, b in pairs:
            by = jnp.linalg.norm(b) / max(jnp.linalg.norm(a), 1e-30)
            np.testing.assert_allclose(b, by * a, rtol=2e-5)
            changed += by not in (0, 1)
    assert changed


@pytest.mark.parametrize(
    ("verb", "dtype"), [("metainit", jnp.float16), ("gradinit", jnp.bfloat16)]
)
def test_sizes_of_16_bit_parameters_are_float32(verb, dtype):
    """Steps far below what the dtype resolves add up."""
    model = nn.Dense(4, param_dtype=dtype)
    params = model.init(KEY, draw(KEY))["params"]
    how = {"steps": 100, "draws": 1, "learning_rate": 2e-4, "include": "kernel"}
    found = DESCENTS[verb](model, params, draw, lambda y: jnp.mean(y**2), **how)
    assert found["kernel"].dtype == dtype and not found["bias"].any()
    assert not np.array_equal(found["kernel"], params["kernel"])


# Bad input.


class Loops(nn.Module):
    """A gradient that is found in a while loop: it has no reverse mode."""

    @nn.compact
    def __call__(self, x):
        @jax.custom_vjp
        def same(x):
            return x

        def back(_, g):
            halve = lambda g: 0.5 * g
            return (jax.lax.while_loop(lambda g: jnp.sum(g**2) > 1, halve, g),)

        same.defvjp(lambda x: (x, None), back)
        return same(nn.Dense(4)(x))


def squares(outputs):
    return jnp.mean(outputs**2)


TINY = nn.Dense(4)
TINY_PARAMS = TINY.init(KEY, draw(KEY))["params"]
LOOPS = Loops().init(KEY, draw(KEY))["params"]
HUGE = jax.tree.map(lambda p: 1e38 * p, TINY_PARAMS)


@pytest.mark.parametrize("verb", [ei.metainit, ei.gradinit])
@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"steps": 0}, ValueError, "steps is 0"),
        ({"steps": 2.5}, ValueError, "steps is 2.5"),
        ({"learning_rate": -1.0}, ValueError, "learning_rate is -1.0"),
        ({"learning_rate": "fast"}, ValueError, "learning_rate is 'fast'"),
        ({"draws": 0}, ValueError, "draws is 0"),
        ({"progress": 3}, TypeError, "function of .step, steps, value."),
        ({"optimizer": optax.adam}, TypeError, "at its learning rate"),
        ({"include": "Dense/kernel"}, ValueError, "matches no array"),
        ({"exclude": "*"}, ValueError, "leave no array"),
        ({"params": {"params": TINY_PARAMS}}, ValueError, "pass variables"),
        ({"model": Loops(), "params": LOOPS}, ValueError, "no second derivative"),
        ({"params": HUGE}, FloatingPointError, "before the first step"),
    ],
)
def test_bad_input(verb, options, error, words):
    given = {"model": TINY, "params": TINY_PARAMS, "input_fn": draw, "loss_fn": squares}
    given |= {"draws": 2, "steps": 2} | options
    if "progress" not in options and error is not FloatingPointError:
        given["progress"] = lambda *_: pytest.fail("a step was taken")
    with pytest.raises(error, match=words):
        verb(**given)


@pytest.mark.parametrize(
    ("verb", "options", "words"),
    [
        (ei.metainit, {"momentum": 1.0}, "momentum is 1.0"),
        (ei.metainit, {"epsilon": 0}, "epsilon is 0"),
        (ei.gradinit, {"gamma": 0}, "gamma is 0"),
        (ei.gradinit, {"alpha_min": -1}, "alpha_min is -1"),
        (ei.gradinit, {"alpha_min": 2}, "alpha_min is 2"),
        (ei.gradinit, {"optimizer": optax.sgd(0.0)}, "moves nothing"),
    ],
)
def test_bad_numbers(verb, options, words):
    with pytest.raises(ValueError, match=words):
        verb(TINY, TINY_PARAMS, draw, squares, **options)


def test_batches_of_several_shapes_are_refused():
    sizes = iter([8, 8, 3])
    ragged = lambda key: jnp.ones((next(sizes), 8))
    with pytest.raises(ValueError, match=r"float32\[3, 8\].* after .*float32\[8, 8\]"):
        ei.metainit(TINY, TINY_PARAMS, ragged, squares, draws=3)
