"""`plot`: one measurement, or several of the same units, as a picture."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from ._figures import pillars, unit
from ._measurement import Measurement

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot(
    before: Measurement, after: Measurement | None = None, **others: Measurement
) -> "Figure":
    r"""The picture of a network at a glance: log2 rms of each pillar, unit by unit.

    Three panels in call order: activation, input gradient, update at learning rate 1
    (dotted: by an update of all units at once). 0 is an rms of 1; the band is within
    a factor of 2. Under `nn.scan` and `nn.vmap` over layers a unit is one place, its
    line at the median over layers, its bar from the least to the most. A rms of zero
    ("dead") is marked by x, one that is not finite by a triangle, a unit that was not
    reached by a ring.

    Args:
        before: what `measure` returned.
        after: the same of the same units, tuned say; both are drawn.
        others: more of them, by the names that the legend gives them.

    Returns:
        A `matplotlib.figure.Figure`: nothing is shown or saved. Notebooks show it where
        it is the value of a cell; `figure.savefig("network.png")` saves it.

    Raises:
        TypeError: something else than measurements.
        ValueError: they are not of the same units.
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
    named = {"before": before} | ({} if after is None else {"after": after}) | others
    for name, given in named.items():
        if not isinstance(given, Measurement):
            raise TypeError(
                f"{name} is a {type(given).__name__}, expected what ei.measure returned"
            )
    for name, given in named.items():
        if units_of(given) != units_of(before):
            _refuse(name, units_of(before), units_of(given))
    return drawn(named)


def drawn(named: Mapping[str, Measurement]) -> "Figure":
    """One figure of measurements of the same units; a single one needs no name."""
    tables = {name: given.rows() for name, given in named.items()}
    return pillars(tables if len(tables) > 1 else {"": next(iter(tables.values()))})


def units_of(given: Measurement) -> list[str]:
    """The unit of each row."""
    return [unit({"path": row.path}) for row in given.rows_of]


def _refuse(name: str, expected: list[str], found: list[str]) -> None:
    lacking = [u for u in dict.fromkeys(expected) if u not in found]
    extra = [u for u in dict.fromkeys(found) if u not in expected]
    differ = "; ".join(
        f"{what} {', '.join(units[:6])}"
        for what, units in (("it lacks", lacking), ("it alone has", extra))
        if units
    )
    raise ValueError(
        f"'before' and {name!r} are measurements of different units: "
        f"{differ or 'their order or numbers of layers differ'}; measure the same "
        "model twice, as it is and with scales=..."
    )
