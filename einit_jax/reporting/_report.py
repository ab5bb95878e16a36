"""`report`: what was measured, as one HTML file to share."""

import os
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from ._files import check_writable, write_atomically
from ._html import (
    html_block,
    html_facts,
    html_heading,
    html_page,
    html_paragraphs,
    html_picture,
    html_table,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PACKAGES = ("einit_jax", "jax", "jaxlib", "flax", "optax", "numpy")


@runtime_checkable
class Reportable(Protocol):
    """What `report` can show.

    A type may have a static method `joint_figures(parts)` besides, which replaces the
    figures of all its parts in a report. It takes these parts by name and returns
    figures by heading; a heading that is the name of a part puts the figure there.
    """

    def rows(self) -> list[dict[str, Any]]:
        """The lines of a table: plain Python values by column."""
        ...

    def notes(self) -> list[str]:
        """Sentences about the whole."""
        ...

    def figures(self) -> "dict[str, Figure]":
        """Figures by what they show; "" for the only one."""
        ...


def report(
    path: str | os.PathLike,
    *,
    model: Any = None,
    seed: Any = None,
    title: str = "einit_jax",
    notes: Mapping[str, Any] | None = None,
    **parts: Reportable,
) -> Path:
    r"""Writes one HTML file with all that was measured: it opens offline, anywhere.

    Tables (a click on a column sorts), figures inside of the file, the model, versions
    of packages, the device, the seed. The file is written as a whole or not at all.

    Args:
        path: of the file.
        parts: what `measure`, `ActivationStats.value`, `coordinate_check` and `compare`
            returned, or anything else with `rows()`, `notes()` and `figures()`, in the
            order in which they are shown, by the names of their sections. Measurements
            of the same units share one figure.
        model: the Linen module, shown by its `repr`.
        seed: the seed or key of the run.
        title: the page's heading.
        notes: further facts to be shown, by name: a learning rate, a commit.

    Returns:
        The path.

    Raises:
        TypeError: a part is something else, or path is no path.
        ValueError: no part, an empty history, or a path that cannot be written.
        OSError: the file cannot be written after all: the disk is full.
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
    path = check_writable(path)
    if not parts:
        raise ValueError(
            "nothing to report; pass what was measured by name: "
            "report('run.html', before=ei.measure(...))"
        )
    for name, part in parts.items():
        if not isinstance(part, Reportable):
            raise TypeError(
                f"{name} is a {type(part).__name__}, expected what ei.measure, "
                "ActivationStats.value, ei.coordinate_check or ei.compare returned"
            )
    facts = _environment(seed) | {k: str(v) for k, v in (notes or {}).items()}
    body = [html_facts(facts)]
    if model is not None:
        body += [html_heading("model"), html_block(repr(model))]
    body += _report_sections(parts)
    return write_atomically(path, html_page(title, body).encode())


def _environment(seed: Any) -> dict[str, str]:
    """Versions of packages, the device, and the seed where there is one."""
    import jax  # here, so that a path is checked before this long import

    device = jax.devices()[0]
    facts = {
        "packages": ", ".join(f"{name} {_version(name)}" for name in PACKAGES),
        "Python": platform.python_version(),
        "device": f"{device.device_kind} ({jax.device_count()})",
    }
    return facts if seed is None else facts | {"seed": str(seed)}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # run from its source, not installed
        return "(not installed)"


def _report_sections(parts: Mapping[str, Reportable]) -> list[str]:
    """A section per part; figures that parts share stand before the first of them."""
    sections: list[str] = []
    own_figures: dict[str, dict[str, Figure]] = {}
    for name, part in parts.items():
        if name not in own_figures:
            peers = {n: p for n, p in parts.items() if type(p) is type(part)}
            shared, own = _figures_of(peers)
            own_figures |= own
            for heading, figure in shared.items():
                alt = ", ".join(peers)
                sections += [html_heading(heading), html_picture(figure, alt)]
        sections += _part_section(name, part, own_figures[name])
    return sections


def _figures_of(
    peers: "Mapping[str, Reportable]",
) -> "tuple[dict[str, Figure], dict[str, dict[str, Figure]]]":
    """Of all parts of one type: the figures they share, and those of each by name."""
    joint = getattr(type(next(iter(peers.values()))), "joint_figures", None)
    if joint is None:
        return {}, {name: part.figures() for name, part in peers.items()}
    figures = joint(peers)
    shared = {n: figure for n, figure in figures.items() if n not in peers}
    own = {n: {"": figures[n]} if n in figures else {} for n in peers}
    return shared, own


def _part_section(
    name: str, part: Reportable, figures: "Mapping[str, Figure]"
) -> list[str]:
    """A heading, notes, figures and the table of one part."""
    heading = name.replace("_", " ")
    pictures = [
        html_picture(figure, f"{heading}, {about}" if about else heading)
        for about, figure in figures.items()
    ]
    notes = html_paragraphs(part.notes())
    return [html_heading(heading), notes, *pictures, html_table(part.rows())]
