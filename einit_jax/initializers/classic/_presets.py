"""Classic rules by name: from what a parameter is for to how it is drawn.

A preset is a function from a `Parameter` to a `RuleValue`. To add one, write such a
function and name it in `PRESETS`.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.nn import initializers
from jax.typing import ArrayLike, DTypeLike

from ...core import Path
from ._parameters import Parameter


class Keyed(NamedTuple):
    """An initializer that draws by the key of another path; several arrays share it."""

    path: Path
    draw: Callable


RuleValue = ArrayLike | Callable | Keyed | None
"""How a parameter is drawn: a constant, an initializer, or None: it stays."""


Preset = Callable[[Parameter], RuleValue]


def uniform(bound: float) -> Callable:
    """An initializer uniform on +-bound, whatever the shape; complex too."""
    return of_variance(bound**2 / 3, "uniform")


def normal(deviation: float) -> Callable:
    """A normal initializer of mean 0, whatever the shape; complex too."""
    return of_variance(deviation**2, "normal")


def of_variance(variance: float, distribution: Any) -> Callable:
    """An initializer of this variance, whatever the shape.

    `distribution` is a name that `jax.nn.initializers.variance_scaling` knows.
    """
    init = initializers.variance_scaling(variance, "fan_in", distribution)

    def draw(key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike) -> jax.Array:
        # with a fan-in of 1 the variance is what is asked for
        return init(key, (1, math.prod(shape)), dtype).reshape(shape)

    return draw


def _gain_or_bias(parameter: Parameter) -> RuleValue:
    """Gains 1, biases 0; other parameters stay."""
    return {"gain": 1.0, "bias": 0.0}.get(parameter.role)


def _weight_rule(draw: Preset, embed: Preset | None = None) -> Preset:
    """Weights by `draw`, look-up tables by `embed`, gains 1, biases 0."""

    def rule(parameter: Parameter) -> RuleValue:
        if parameter.role != "weight":
            return _gain_or_bias(parameter)
        return embed(parameter) if embed and parameter.looked_up else draw(parameter)

    return rule


def _pytorch(parameter: Parameter) -> RuleValue:
    """The defaults of PyTorch; a bias is drawn by the weight beside it."""
    weight = parameter if parameter.role == "weight" else parameter.beside
    if weight is None:
        return _gain_or_bias(parameter)
    if weight.gate is not None:  # all arrays of a cell by its width
        return uniform(weight.outputs**-0.5)
    if weight.looked_up:
        return normal(1.0) if parameter is weight else 0.0
    fan = weight.outputs if weight.transposed else weight.inputs
    return uniform(fan**-0.5)


def _keras(parameter: Parameter) -> RuleValue:
    """The defaults of Keras; the gates of a recurrent cell are drawn as one matrix."""
    gate = parameter.gate
    if parameter.role == "bias" and gate and gate.gates == 4:
        return 1.0 if gate.name == "f" else 0.0
    if parameter.role != "weight" or gate is None:
        return _glorot(parameter)
    if not gate.recurrent:  # one matrix for all gates: so many more outputs
        return uniform((6 / (parameter.inputs + gate.gates * parameter.outputs)) ** 0.5)

    def draw(key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike) -> jax.Array:
        all_gates = (shape[0], gate.gates * shape[1])
        matrix = initializers.orthogonal()(key, all_gates, dtype)
        return matrix[:, gate.place * shape[1] :][:, : shape[1]]

    return Keyed((*gate.cell, "recurrent"), draw)


_glorot = _weight_rule(lambda _: initializers.glorot_uniform(), lambda _: uniform(0.05))


def _flax_table(_: Parameter) -> Callable:
    """Flax's own initializer of look-up tables."""
    return initializers.variance_scaling(1.0, "fan_in", "normal", out_axis=0)


def _flax(kernel: Callable) -> Preset:
    """Flax's own initializers, with this one for kernels."""

    def draw(parameter: Parameter) -> RuleValue:
        recurrent = parameter.gate is not None and parameter.gate.recurrent
        return initializers.orthogonal() if recurrent else kernel

    return _weight_rule(draw, _flax_table)


def _gpt2(parameter: Parameter) -> RuleValue:
    """GPT-2: a weight that ends one of N residual branches is divided by sqrt(N)."""
    if parameter.role == "other" and parameter.rank > 1:  # positions as a raw array
        return normal(0.02)
    if parameter.role != "weight":
        return _gain_or_bias(parameter)
    return normal(0.02 * (parameter.branches or 1) ** -0.5)


def _dcgan(parameter: Parameter) -> RuleValue:
    """DCGAN: normal weights, and normal gains around 1."""
    if parameter.role == "gain":
        return lambda key, shape, dtype: 1 + normal(0.02)(key, shape, dtype)
    return normal(0.02) if parameter.role == "weight" else _gain_or_bias(parameter)


def _connected(parameter: Parameter) -> int:
    """The n of 1/n; of a look-up table the features, as in Flax."""
    return parameter.shape[-1] if parameter.looked_up else parameter.inputs


_scaled = initializers.variance_scaling


_LINGVO = 1.000001
"""Lingvo multiplies its Xavier draws by this number, which marks its default."""


PRESETS: dict[str, Preset] = {
    "pytorch": _pytorch,
    "keras": _keras,
    "glorot_uniform": _keras,
    "he_normal": _flax(initializers.he_normal()),
    "lecun_normal": _flax(initializers.lecun_normal()),
    "lingvo": _weight_rule(lambda _: _scaled(_LINGVO**2, "fan_avg", "uniform")),
    "returnn_theano": _weight_rule(lambda _: _scaled(6.0, "fan_avg", "normal")),
    "dcgan": _dcgan,
    "gpt2": _gpt2,
    "general_rule": _weight_rule(lambda p: uniform(_connected(p) ** -0.5)),
    "normal_rule": _weight_rule(lambda p: normal(_connected(p) ** -0.5)),
    "uniform": _weight_rule(lambda _: initializers.uniform(1.0)),
    "uniform_half": _weight_rule(lambda _: uniform(0.5)),
    "zeros": _weight_rule(lambda _: 0.0),
    "ones": _weight_rule(lambda _: 1.0),
}


NEEDS_MODEL = ("gpt2",)
"""Presets that need more than names and shapes."""
