"""`report`: what was measured, as one file to share."""

import os
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax

from ._files import writable, write
from ._history import PREFIX, History
from ._measurement import Measurement
from ._page import block, facts, heading, page, paragraphs, picture, table
from ._plot import drawn, units_of
from ._spread import CoordinateCheck

PACKAGES = ("einit_jax", "jax", "jaxlib", "flax", "optax", "numpy")
KINDS = (Measurement, History, CoordinateCheck)


def report(
    path: str | os.PathLike,
    *,
    model: Any = None,
    seed: Any = None,
    title: str = "einit_jax",
    notes: Mapping[str, Any] | None = None,
    **parts: Measurement | History | CoordinateCheck,
) -> Path:
    r"""Writes one HTML file with all that was measured: it opens offline, anywhere.

    Tables (a click on a column sorts), figures inside of the file, the model, versions
    of packages, the device, the seed. The file is written as a whole or not at all.

    Args:
        path: of the file.
        parts: what `measure`, `ActivationStats.value` and `coordinate_check` returned,
            in the order in which they are shown, by the names of their sections.
            Measurements of the same units share one figure.
        model: the Linen module, shown by its `repr`.
        seed: the seed or key of the run.
        title: the page's heading.
        notes: further facts to be shown, by name: a learning rate, a commit.

    Returns:
        The path.

    Raises:
        TypeError: a part is something else, or path is no path.
        ValueError: no part, an empty history, or a path that cannot be written.
        ImportError: matplotlib is not installed.

    Example:
        >>> import flax.linen as nn, jax, jax.numpy as jnp, einit_jax as ei, tempfile
        >>> model = nn.Sequential([nn.Dense(32), jnp.tanh, nn.Dense(4)])
        >>> x = jax.random.normal(jax.random.key(1), (64, 8))
        >>> params = model.init(jax.random.key(0), x)["params"]
        >>> loss = lambda y: jnp.mean(jnp.square(y - 1))
        >>> before = ei.measure(model, params, x, loss)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = ei.report(folder + "/run.html", before=before, model=model)
        ...     text = path.read_text()
        >>> "layers_0" in text and "<img" in text
        True
    """
    path = writable(path)
    if not parts:
        raise ValueError(
            "nothing to report; pass what was measured by name: "
            "report('run.html', before=ei.measure(...))"
        )
    for name, part in parts.items():
        if not isinstance(part, KINDS):
            raise TypeError(
                f"{name} is a {type(part).__name__}, expected what ei.measure, "
                "ActivationStats.value or ei.coordinate_check returned"
            )
    about = _about(seed) | {k: str(v) for k, v in (notes or {}).items()}
    body = [facts(about)]
    if model is not None:
        body += [heading("model"), block(repr(model))]
    measured = {n: p for n, p in parts.items() if isinstance(p, Measurement)}
    body += _together(measured) if measured else []
    for name, part in parts.items():
        body += _section(name.replace("_", " "), part)
    return write(path, page(title, body).encode())


def _about(seed: Any) -> dict[str, str]:
    """Versions, device and seed."""
    device = jax.devices()[0]
    found = {
        "packages": ", ".join(f"{name} {_version(name)}" for name in PACKAGES),
        "Python": platform.python_version(),
        "device": f"{device.device_kind} ({jax.device_count()})",
    }
    return found if seed is None else found | {"seed": str(seed)}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # run from its source, not installed
        return "(not installed)"


def _together(measured: Mapping[str, Measurement]) -> list[str]:
    """One figure of all measurements where their units are the same, else one each."""
    first, *others = measured.values()
    title = ", ".join(measured)
    if all(units_of(other) == units_of(first) for other in others):
        return [heading("the three pillars"), picture(drawn(measured), title)]
    pictures = {name: picture(drawn({"": m}), name) for name, m in measured.items()}
    return [p for name, drawing in pictures.items() for p in (heading(name), drawing)]


def _section(name: str, part: Measurement | History | CoordinateCheck) -> list[str]:
    """A heading, what is to be said, figures and the table of one part."""
    shown: list[str] = [heading(name)]
    if isinstance(part, Measurement):
        shown.append(paragraphs(part.notes()))
    elif isinstance(part, History):
        for signal in PREFIX:
            shown.append(picture(part.plot(signal), f"{name}, {signal}"))
    else:
        shown.append(picture(part.plot(), name))
    return [*shown, table(part.rows())]
