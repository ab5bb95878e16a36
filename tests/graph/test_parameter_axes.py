"""What weight arrays connect: against counting, against `fans`, in raw einsums."""

import math
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import einit_jax as ei
from einit_jax.core import path_str
from einit_jax.graph import ParameterAxes, multiplying, parameter_axes
from tests.support.cases import Job
from tests.support.checks import traced
from tests.support.models import CASES

KEY = jax.random.key(0)
squares = lambda y: sum(jnp.mean(t**2) for t in jax.tree.leaves(y))


def axes_of(job: Job) -> dict[str, ParameterAxes]:
    """The axes of each parameter, by its path as a name."""
    axes = parameter_axes(traced(job))
    return {"/".join(path): of for path, of in axes.items()}


def of_case(name: str) -> dict[str, ParameterAxes]:
    return axes_of(CASES[name].build())


def of_module(module, x):
    """Parameters by shape alone: nothing here hangs on their values."""
    params = jax.eval_shape(module.init, KEY, x)["params"]
    return axes_of(Job(module, params, lambda key: x, squares))


def counted(module, x):
    """Fans by counting, away from borders: inputs that move an output, and back."""
    params = jax.eval_shape(module.init, KEY, x)["params"]
    ones = jax.tree.map(lambda p: jnp.ones(p.shape, p.dtype), params)
    jacobian = jax.jacobian(lambda x: module.apply({"params": ones}, x))(x)[0]
    size = math.prod(jacobian.shape[: jacobian.ndim - x.ndim])
    matrix = np.asarray(jacobian).reshape(size, -1) != 0
    return matrix.sum(1).max(), matrix.sum(0).max()


class Raw(nn.Module):
    """A raw array in an einsum, whatever its axes are called."""

    equation: str
    shape: tuple[int, ...]

    @nn.compact
    def __call__(self, x):
        kernel = self.param("kernel", nn.initializers.ones, self.shape)
        return jnp.einsum(self.equation, x, kernel)


class Stacked(nn.Module):
    """Layers in one raw array: scanned over, or indexed one by one."""

    scanned: bool

    @nn.compact
    def __call__(self, x):
        stack = self.param("stack", nn.initializers.ones, (3, 4, 4))
        if self.scanned:
            return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, stack)[0]
        for i in range(3):
            x = jnp.tanh(x @ stack[i])
        return x


class LowRank(nn.Module):
    """A kernel plus a product of two thin ones, with a gain on the inputs."""

    @nn.compact
    def __call__(self, x):
        ones = nn.initializers.ones
        kernel = self.param("kernel", ones, (6, 5))
        left = self.param("left", ones, (6, 2))
        right = self.param("right", ones, (2, 5))
        shift = self.param("shift", ones, (6,))
        return (x * (1 + shift)) @ (kernel + left @ right)


Transposed = partial(nn.ConvTranspose, strides=(2,))


@pytest.mark.parametrize(
    ("module", "shape", "contracted", "features", "kind"),
    [
        (nn.Dense(5), (1, 7), (0,), (1,), "dense"),
        (nn.DenseGeneral((2, 3)), (1, 7), (0,), (1, 2), "dense"),
        (nn.DenseGeneral(5, axis=(-2, -1)), (1, 4, 3), (0, 1), (2,), "dense"),
        (Raw("nc,oc->no", (5, 7)), (1, 7), (1,), (0,), "dense"),
        (Raw("nab,boa->no", (3, 5, 4)), (1, 4, 3), (0, 2), (1,), "dense"),
        (nn.Conv(6, (3,)), (1, 9, 4), (0, 1), (2,), "conv"),
        (nn.Conv(6, (3, 3)), (1, 7, 7, 2), (0, 1, 2), (3,), "conv"),
        (nn.Conv(6, (3,), feature_group_count=2), (1, 7, 4), (0, 1), (2,), "conv"),
        (nn.Conv(6, (3,), kernel_dilation=2), (1, 16, 4), (0, 1), (2,), "conv"),
        (nn.Conv(3, (4, 4), strides=2), (1, 8, 8, 2), (0, 1, 2), (3,), "conv"),
        (nn.Conv(3, (2, 2, 2)), (1, 4, 4, 4, 2), (0, 1, 2, 3), (4,), "conv"),
        (Transposed(3, (4,)), (1, 8, 2), (0, 1), (2,), "conv_transpose"),
        (Transposed(3, (4,), transpose_kernel=True), (1, 8, 2), (0, 2), (1,),
         "conv_transpose"),
    ],
)  # fmt: skip
def test_axes_and_fans_are_those_of_the_jacobian(
    module, shape, contracted, features, kind
):
    g = of_module(module, jnp.ones(shape))["kernel"]
    assert (g.contracted, g.features, g.layer_type) == (contracted, features, kind)
    assert (g.layers, g.batch, g.role) == ((), (), "weight")
    assert (g.fan_in, g.fan_out) == counted(module, jnp.ones(shape))


def test_a_shared_axis_connects_nothing():
    """Heads side by side: an einsum's batch axis, `nn.Einsum` and `nn.ConvLocal`."""
    g = of_module(Raw("nhd,hde->nhe", (2, 4, 6)), jnp.ones((1, 2, 4)))["kernel"]
    assert (g.batch, g.contracted, g.features) == ((0,), (1,), (2,))
    assert (g.fan_in, g.fan_out) == (4, 6)
    g = of_case("tensors")["heads/kernel"]
    assert (g.batch, g.contracted, g.features) == ((0,), (1,), (2,))
    g = of_module(nn.ConvLocal(5, (3,)), jnp.ones((1, 6, 2)))["kernel"]
    assert (g.batch, g.features, g.fan_in) == ((0,), (2,), 6)


def test_fans_agree_with_those_told_by_hand():
    embed = of_case("embed")["embed/embedding"]
    assert (embed.layer_type, embed.fan_in, embed.fan_out) == ("embed", 1, 8)
    assert (embed.fan_in, embed.fan_out) == ei.fans((11, 8), "embed")
    tied = of_case("tied_lm")["wte/embedding"]
    assert (tied.layer_type, tied.looked_up) == ("dense", True)
    assert (tied.contracted, tied.fan_in, tied.fan_out) == ((1,), 8, 11)
    assert not of_case("compact_mlp")["Dense_0/kernel"].looked_up


@pytest.mark.parametrize(
    ("case", "name", "layers", "contracted", "copies"),
    [
        ("scan_layers", "layers/block/up/kernel", (0,), (1,), 3),
        ("scan_remat", "layers/block/up/kernel", (0,), (1,), 3),
        ("scan_axis_1", "layers/block/up/kernel", (1,), (0,), 3),
        ("remat_scan", "stack/up/kernel", (0, 1), (2,), 4),
        ("vmap_ensemble", "members/Dense_0/kernel", (0,), (1,), 3),
        ("vmap_shared", "each/up/kernel", (), (0,), 1),
        ("time_scan", "step/state/kernel", (), (0,), 1),
        ("nn_jit", "first/up/kernel", (), (0,), 1),
    ],
)
def test_layers_are_told_apart(case, name, layers, contracted, copies):
    g = of_case(case)[name]
    assert (g.layers, g.contracted, g.layer_count) == (layers, contracted, copies)
    assert g.fan_in == g.shape[contracted[0]]


@pytest.mark.parametrize("shared", [False, True])
def test_convolutions_side_by_side(shared):
    """`vmap` makes groups of the layers, or more outputs where they share inputs."""
    conv = nn.vmap(
        nn.Conv, variable_axes={"params": 0}, split_rngs={"params": True},
        in_axes=None if shared else 0, axis_size=3,
    )  # fmt: skip
    x = jnp.ones((1, 7, 4) if shared else (3, 1, 7, 4))
    for groups in (1, 2):
        module = conv(6, (3,), feature_group_count=groups)
        g = of_module(module, x)["kernel"]
        assert (g.layers, g.contracted, g.features) == ((0,), (1, 2), (3,))
        assert (g.fan_in, g.fan_out) == (12 / groups, 18 / groups)


@pytest.mark.parametrize("scanned", [False, True])
def test_layers_in_a_raw_array(scanned):
    g = of_module(Stacked(scanned), jnp.ones((2, 4)))["stack"]
    assert g.layers + g.batch == (0,)
    assert (g.contracted, g.features, g.fan_in, g.fan_out) == ((1,), (2,), 4, 4)


def test_weights_made_of_weights():
    """Each factor of a product has axes and fans of its own."""
    g = of_module(LowRank(), jnp.ones((3, 6)))
    assert (g["kernel"].fan_in, g["kernel"].fan_out) == (6, 5)
    assert (g["left"].contracted, g["left"].fan_in) == ((0,), 6)
    assert (g["right"].contracted, g["right"].fan_in) == ((0,), 2)
    assert g["shift"].role == "gain"


def test_roles():
    """What adds, what multiplies, and what only reshapes the weights."""
    roles = lambda case: {name: g.role for name, g in of_case(case).items()}
    normed = roles("batch_norm")
    assert normed["norm/scale"] == "gain"
    assert normed["norm/bias"] == "bias"
    assert roles("layer_scale")["layers_0/gain"] == "gain"
    assert roles("scalar_parameter")["layers_3/value"] == "gain"
    for case, name in (
        ("weight_norm", "norm/layer_instance/kernel"),
        ("spectral_norm", "inner/kernel"),
        ("param_overridden", "layers_0/kernel"), ("unit_rng", "layers_0/kernel"),
    ):  # fmt: skip
        g = of_case(case)[name]
        assert (g.role, g.contracted, g.features) == ("weight", (0,), (1,)), case
    assert roles("weight_norm")["norm/layer_instance/kernel/scale"] == "gain"
    unused = {name: g.role for name, g in of_case("method_encode").items()}
    assert unused["decoder/layers_0/kernel"] == "other"
    assert "layers_0/order" not in of_case("integer_parameter")


def test_residual_projections():
    """The last weight of each branch that is added to its own source; no other."""
    residual = lambda case: {n for n, g in of_case(case).items() if g.residual}
    assert residual("scan_layers") == {"layers/block/down/kernel"}
    assert residual("tied_lm") == {"block/down/kernel"}
    assert residual("masked_attention") == {"attention/out/kernel"}
    for case in ("adaln_zero", "rnn_lstm", "named_tuple", "swiglu"):
        assert residual(case) == set(), case


class Uses(nn.Module):
    """Parameters that multiply, in all ways, and others that are only added."""

    @nn.compact
    def __call__(self, x):
        draw = lambda name, *shape: self.param(name, nn.initializers.ones, shape)
        x = x @ jnp.tanh(draw("kernel", 4, 4))
        x = x * (1 + draw("gain", 4)) + draw("shift", 4)
        token = jnp.tile(draw("token", 1, 4), (len(x), 1))
        x = jnp.where(x > 0.5, x, draw("mask", 4))
        x = jnp.concatenate([token, x], -1) + draw("looked_up", 3, 8)[jnp.arange(2)]
        return nn.Dense(3, name="dense")(x)


def test_what_multiplies_is_told_from_what_is_only_added():
    x = jnp.ones((2, 4))
    params = Uses().init(jax.random.key(0), x)["params"]
    graph = traced(Job(Uses(), params, lambda key: x, jnp.mean))
    names = {path_str(raw.path) for raw in graph.movable}
    added = {"shift", "token", "mask"}
    assert names == added | {"kernel", "gain", "looked_up"}
    counted = multiplying(graph, [*graph.units, *graph.movable])
    assert {path_str(path) for path in counted} == {"dense"} | names - added
