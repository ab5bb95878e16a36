"""Classic rules by name: from what an array is for to how it is drawn."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.nn import initializers

from ...core import Path
from ._parameters import Parameter

Preset = Callable[[Parameter], Any]


class Keyed(NamedTuple):
    """An initializer that draws by the key of another path, for several arrays."""

    path: Path
    draw: Callable


def uniform(bound: float) -> Callable:
    """Uniform on +-bound, whatever the shape; complex too."""
    return of_variance(bound**2 / 3, "uniform")


def normal(deviation: float) -> Callable:
    """Normal of mean 0, whatever the shape; complex too."""
    return of_variance(deviation**2, "normal")


def of_variance(variance: float, distribution: Any) -> Callable:
    """Entries of a variance, whatever the shape, by a name that jax knows."""
    init = initializers.variance_scaling(variance, "fan_in", distribution)
    size = math.prod
    return lambda key, shape, dtype: init(key, (1, size(shape)), dtype).reshape(shape)


def _gain_or_bias(site: Parameter) -> Any:
    """Gains 1, biases 0; what is neither layer nor look-up stays."""
    return {"gain": 1.0, "bias": 0.0}.get(site.role)


def _weight_rule(
    draw: Callable[[Parameter], Any], embed: Callable[[Parameter], Any] | None = None
) -> Preset:
    """Weights and look-up tables by their rules, gains 1, biases 0."""

    def rule(site: Parameter) -> Any:
        if site.role != "weight":
            return _gain_or_bias(site)
        return embed(site) if embed and site.looked_up else draw(site)

    return rule


def _pytorch(site: Parameter) -> Any:
    weight = site if site.role == "weight" else site.beside
    if weight is None:
        return _gain_or_bias(site)
    if weight.gate is not None:  # all arrays of a cell by its width
        return uniform(weight.outputs**-0.5)
    if weight.looked_up:
        return normal(1.0) if site is weight else 0.0
    fan = weight.outputs if weight.transposed else weight.inputs
    return uniform(fan**-0.5)


def _keras(site: Parameter) -> Any:
    gate = site.gate
    if site.role == "bias" and gate and gate.gates == 4:
        return 1.0 if gate.name == "f" else 0.0
    if site.role != "weight" or gate is None:
        return _glorot(site)
    if not gate.recurrent:  # one matrix for all gates: so many more outputs
        return uniform((6 / (site.inputs + gate.gates * site.outputs)) ** 0.5)

    def draw(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
        whole = (shape[0], gate.gates * shape[1])
        found = initializers.orthogonal()(key, whole, dtype)
        return found[:, gate.place * shape[1] :][:, : shape[1]]

    return Keyed((*gate.cell, "recurrent"), draw)


_glorot = _weight_rule(lambda _: initializers.glorot_uniform(), lambda _: uniform(0.05))


def _flax_table(_: Parameter) -> Callable:
    return initializers.variance_scaling(1.0, "fan_in", "normal", out_axis=0)


def _flax(kernel: Callable) -> Preset:
    """As Flax draws, with this initializer for kernels."""

    def draw(site: Parameter) -> Any:
        recurrent = site.gate is not None and site.gate.recurrent
        return initializers.orthogonal() if recurrent else kernel

    return _weight_rule(draw, _flax_table)


def _gpt2(site: Parameter) -> Any:
    if site.role == "other" and site.rank > 1:  # positions as a raw array
        return normal(0.02)
    if site.role != "weight":
        return _gain_or_bias(site)
    return normal(0.02 * (site.branches or 1) ** -0.5)


def _dcgan(site: Parameter) -> Any:
    if site.role == "gain":
        return lambda key, shape, dtype: 1 + normal(0.02)(key, shape, dtype)
    return normal(0.02) if site.role == "weight" else _gain_or_bias(site)


def _connected(site: Parameter) -> int:
    """The n of 1/n; of a look-up table the features, as in Flax."""
    return site.shape[-1] if site.looked_up else site.inputs


_scaled = initializers.variance_scaling


_LINGVO = 1.000001
"""Its Xavier draws are multiplied by that, a mark of the default."""


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
    "general_rule": _weight_rule(lambda site: uniform(_connected(site) ** -0.5)),
    "normal_rule": _weight_rule(lambda site: normal(_connected(site) ** -0.5)),
    "uniform": _weight_rule(lambda _: initializers.uniform(1.0)),
    "uniform_half": _weight_rule(lambda _: uniform(0.5)),
    "zeros": _weight_rule(lambda _: 0.0),
    "ones": _weight_rule(lambda _: 1.0),
}


NEEDS_MODEL = ("gpt2",)
"""Presets that ask for more than names and shapes."""
