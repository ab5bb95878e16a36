"""`plot`: one measurement, or several of the same units, as a figure."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from ..reporting import difference
from ._measurement import Measurement

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot(*measurements: Measurement, **named: Measurement) -> "Figure":
    r"""A network at a glance: the log2 rms of each pillar, unit by unit, as a figure.

    Three panels in call order: output, gradient (of the input), and the update that the
    rule in force is about: the total one, or each unit's own at learning rate 1; the
    other one is dotted. 0 is an rms of 1; the grey band is within a factor of 2 of what
    the rules in force ask for (see `Measurement.worst`), in the last measurement. Under
    `nn.scan` and `nn.vmap` over layers a unit has one place: the line is at the median
    over layers, a bar goes from the least to the most. An rms of zero ("dead") is
    marked by x, one that is not finite by a triangle, a unit that was not reached by a
    ring.

    Args:
        measurements: what `measure` returned: one, or two of the same units, which the
            legend calls before and after.
        named: the same, by the names that the legend gives them.

    Returns:
        A `matplotlib.figure.Figure`: nothing is shown or saved. Notebooks show it where
        it is the value of a cell; `figure.savefig("network.png")` saves it.

    Raises:
        TypeError: something else than measurements.
        ValueError: they are not of the same units, or more than two are without names.
        ImportError: matplotlib is not installed.

    Example:
        >>> import flax.linen as nn, jax, jax.numpy as jnp, einit_jax as ei
        >>> model = nn.Sequential([nn.Dense(32), jnp.tanh, nn.Dense(4)])
        >>> x = jax.random.normal(jax.random.key(1), (64, 8))
        >>> params = model.init(jax.random.key(0), x)["params"]
        >>> loss = lambda y: jnp.mean(jnp.square(y - 1))
        >>> before = ei.measure(model, params, x, loss)
        >>> scales = ei.tune(model, params, x, loss)
        >>> after = ei.measure(model, params, x, loss, scales=scales)
        >>> figure = ei.plot(before, after)
        >>> [ax.get_ylabel() for ax in figure.axes][0]
        'log2 rms of\noutput'
    """
    if len(measurements) > 2 or not (measurements or named):
        raise ValueError(
            f"plot got {len(measurements)} measurements without names, expected one or "
            "two (before, after); name them: plot(glorot=..., kaiming=...)"
        )
    named = dict(zip(("before", "after"), measurements, strict=False)) | named
    for name, measurement in named.items():
        if not isinstance(measurement, Measurement):
            raise TypeError(
                f"{name} is a {type(measurement).__name__}, expected what ei.measure "
                "returned"
            )
    first, *others = named
    for name in others:
        _check_same_units(named, first, name)
    (figure,) = Measurement.joint_figures(named).values()
    return figure


def _check_same_units(named: Mapping[str, Measurement], first: str, name: str) -> None:
    """Raises where two measurements are not of the same units."""
    units = lambda name: [row.unit for row in named[name].rows_of]
    expected, found = units(first), units(name)
    if found == expected:
        return
    differ = difference(expected, found)
    raise ValueError(
        f"{first!r} and {name!r} are measurements of different units: "
        f"{differ or 'their order or numbers of layers differ'}; measure the same "
        "model twice, as it is and with scales=..."
    )
