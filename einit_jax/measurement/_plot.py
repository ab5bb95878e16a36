"""`plot`: one measurement, or several of the same units, as a picture."""

from typing import TYPE_CHECKING

from ..reporting import difference
from ._measurement import Measurement, pillar_figure, units_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot(*measurements: Measurement, **named: Measurement) -> "Figure":
    r"""The picture of a network at a glance: log2 rms of each pillar, unit by unit.

    Three panels in call order: activation, input gradient, update at learning rate 1
    (dotted: by an update of all units at once). 0 is an rms of 1; the band is within
    a factor of 2. Under `nn.scan` and `nn.vmap` over layers a unit is one place, its
    line at the median over layers, its bar from the least to the most. A rms of zero
    ("dead") is marked by x, one that is not finite by a triangle, a unit that was not
    reached by a ring.

    Args:
        measurements: what `measure` returned: one, or two of the same units, which are
            called before and after.
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
        'log2 rms of\nactivation'
    """
    if len(measurements) > 2 or not (measurements or named):
        raise ValueError(
            f"plot got {len(measurements)} measurements without names, expected one or "
            "two (before, after); name them: plot(glorot=..., kaiming=...)"
        )
    named = dict(zip(("before", "after"), measurements, strict=False)) | named
    for name, given in named.items():
        if not isinstance(given, Measurement):
            raise TypeError(
                f"{name} is a {type(given).__name__}, expected what ei.measure returned"
            )
    first, *_ = named
    for name, given in named.items():
        if units_of(given) != units_of(named[first]):
            _raise_different_units(first, units_of(named[first]), name, units_of(given))
    return pillar_figure(named)


def _raise_different_units(
    first: str, expected: list[str], name: str, found: list[str]
) -> None:
    differ = difference(expected, found)
    raise ValueError(
        f"{first!r} and {name!r} are measurements of different units: "
        f"{differ or 'their order or numbers of layers differ'}; measure the same "
        "model twice, as it is and with scales=..."
    )
