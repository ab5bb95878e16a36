"""`report`: what was measured, as one HTML file to share."""

import os
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from ..reporting import check_writable, write_atomically
from ._html import (
    column_names,
    html_block,
    html_facts,
    html_folded,
    html_glossary,
    html_heading,
    html_page,
    html_paragraphs,
    html_picture,
    html_table,
    html_tables,
    html_verdict,
)
from ._training_curves import TrainingCurves, training_curves

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PACKAGES = ("einit_jax", "jax", "jaxlib", "flax", "optax", "numpy")
SHORT_TABLE = 8
"""A table of no more rows is not folded, unless its worst rows are shown apart."""
WORST_COUNT = 5
"""So many of these."""


@runtime_checkable
class Reportable(Protocol):
    """What `report` can show.

    A type may have three methods more. `summary()` returns sentences, what it all comes
    to: a report begins with them, and does not repeat them among the notes.
    `layers_off()` returns rows of the layers that are off, the worst first; a report
    shows these and folds the table. The static method `joint_figures(parts)` replaces
    the figures of all its parts in a report. It takes these parts by name and returns
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


@runtime_checkable
class Summarized(Protocol):
    """A part that says what it comes to."""

    def summary(self) -> list[str]:
        """Sentences; none where there is nothing to say."""
        ...


@runtime_checkable
class Judged(Protocol):
    """A part that knows which layers are off."""

    def layers_off(self) -> list[dict[str, Any]]:
        """Rows of them, the worst first; none where all is well."""
        ...


def report(
    path: str | os.PathLike,
    *,
    model: Any = None,
    seed: Any = None,
    title: str = "einit_jax",
    notes: Mapping[str, Any] | None = None,
    **parts: Reportable | Mapping[str, Any],
) -> Path:
    r"""Writes one HTML file with all that was measured: it opens offline, anywhere.

    It opens with the verdict on each part and with curves of training, if there are
    any; then come figures and the worst units. Folded are whole tables (a click on a
    column sorts, its tooltip says what it means), the model, versions of packages, the
    device and the seed; a printer unfolds them. It is readable on a telephone, and
    dark where the browser is. The file is written as a whole or not at all.

    Args:
        path: of the file.
        parts: what `measure`, `ActivationStats.value`, `coordinate_check` and `compare`
            returned, or anything else with `rows()`, `notes()` and `figures()`, in the
            order in which they are shown, by the names of their sections. Measurements
            of the same units share one figure. A dict of losses by name, a number for
            each step, is drawn as curves: `training={"tuned": [2.3, 2.1, ...]}`.
        model: the Linen module, shown by its `repr`.
        seed: the seed or key of the run.
        title: the page's heading.
        notes: further facts to be shown, by name: a learning rate, a commit.

    Returns:
        The path.

    Raises:
        TypeError: a part is something else, or path is no path.
        ValueError: no part, an empty history or dict, or a path that cannot be written.
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
    shown = {name: _reportable(name, part) for name, part in parts.items()}
    curves = {n: p for n, p in shown.items() if isinstance(p, TrainingCurves)}
    shown = curves | shown  # in front, the others in the order given
    body = [html_verdict(_verdicts(shown))]
    if notes:
        body.append(html_facts({k: str(v) for k, v in notes.items()}))
    body += _report_sections(shown)
    body.append(html_heading("about this page"))
    columns = _all_columns(shown)
    body.append(html_folded("what columns mean", [html_glossary(columns)]))
    if model is not None:
        body.append(html_folded("the model", [html_block(repr(model))]))
    facts = html_facts(_environment(seed))
    body.append(html_folded("versions, device, seed", [facts]))
    return write_atomically(path, html_page(title, body).encode())


def _reportable(name: str, part: Any) -> Reportable:
    """A part of a report; curves of training where it is a dict.

    Raises:
        TypeError: it is something else.
        ValueError: a dict that is empty, or has an empty curve.
    """
    if isinstance(part, Mapping):
        return training_curves(name, part)
    if isinstance(part, Reportable):
        return part
    raise TypeError(
        f"{name} is a {type(part).__name__}, expected what ei.measure, "
        "ActivationStats.value, ei.coordinate_check or ei.compare returned, or a dict "
        "of losses by name"
    )


def _verdicts(parts: Mapping[str, Reportable]) -> list[tuple[str, str]]:
    """What each part says of itself, if it does, after its name."""
    return [
        (_heading_of(name), line)
        for name, part in parts.items()
        if isinstance(part, Summarized)
        for line in part.summary()
    ]


def _all_columns(parts: Mapping[str, Reportable]) -> list[str]:
    """The columns of all tables of all parts."""
    off = [part.layers_off() for part in parts.values() if isinstance(part, Judged)]
    tables = [*off, *(part.rows() for part in parts.values())]
    return [name for table in tables for name in column_names(table)]


def _heading_of(name: str) -> str:
    return name.replace("_", " ")


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
    """A heading, figures and the worst rows of one part; all the rest is folded."""
    heading, rows = _heading_of(name), part.rows()
    known = part.summary() if isinstance(part, Summarized) else []
    notes = [note for note in part.notes() if note not in known]  # these stand on top
    section = [html_heading(heading)]
    section += [
        html_picture(figure, f"{heading}, {about}" if about else heading)
        for about, figure in figures.items()
    ]
    said = f'<div class="notes">{html_paragraphs(notes)}</div>' if notes else ""
    if isinstance(part, Judged):
        section += _worst_layers(part.layers_off())
    elif len(rows) <= SHORT_TABLE:
        return [*section, html_tables(rows), said]
    count = f"all {len(rows)} rows"
    return [
        *section,
        html_folded(f"{heading}: {count}, notes", [said, html_tables(rows)]),
    ]


def _worst_layers(off: Sequence[Mapping[str, Any]]) -> list[str]:
    """Those that are off, as many as one sees at a glance; or that none is."""
    if not off:
        return [html_paragraphs(["no layer is off"])]
    shown = off[:WORST_COUNT]
    which = f"off, the worst {len(shown)} of {len(off)} layers:"
    return [html_paragraphs([which]), html_table(shown)]
