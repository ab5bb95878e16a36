"""What an array is for, as far as its name tells."""

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import NamedTuple

from ._paths import Path

BIASES = ("bias", "*_bias", "bias_*", "b", "beta")
GAINS = ("scale", "*_scale", "gain", "g", "gamma")
"""Names of arrays that add and that multiply, in Flax and in code like it."""
CELLS = ("ifgo", "rzn", "fn", "")
"""The gates of Flax's LSTM, GRU, MGU and simple cells."""


def role_of(path: Path, axes: int) -> str:
    """What an array is for: "bias", "gain", "weight" or "other"."""
    name = next((n for n in reversed(path) if not n.isdigit()), "")
    for role, patterns in {"bias": BIASES, "gain": GAINS}.items():
        if any(fnmatchcase(name.lower(), p) for p in patterns):
            return role
    return "weight" if axes > 1 else "other"


class Gate(NamedTuple):
    """A gate of a recurrent cell, all of which have layers `i*` and `h*`."""

    cell: Path
    recurrent: bool
    name: str
    place: int
    gates: int


def gates_of(paths: Iterable[Path]) -> dict[Path, Gate]:
    """The gate that each array of a recurrent cell belongs to."""
    paths = list(paths)
    inside: dict[Path, set[str]] = {}
    for path in paths:
        for i in range(1, len(path)):
            inside.setdefault(path[: i - 1], set()).add(path[i - 1])
    cells = {cell: _gates(names) for cell, names in inside.items()}
    return {path: gate for path in paths if (gate := _gate(path, cells)) is not None}


def _gate(path: Path, cells: Mapping[Path, list[str] | None]) -> Gate | None:
    """The gate of a path such as `(*cell, "hf", "kernel")`."""
    *cell, layer, _ = "", "", *path
    gates = cells.get(tuple(cell[2:])) if len(path) > 1 else None
    if gates is None or layer[:1] not in ("i", "h") or layer[1:] not in gates:
        return None
    place = gates.index(layer[1:])
    return Gate(tuple(cell[2:]), layer[0] == "h", layer[1:], place, len(gates))


def _gates(names: set[str]) -> list[str] | None:
    """The gates of a cell with layers of such names, if it is one."""
    for letters in CELLS:
        gates = list(letters) or [""]
        if {f"{side}{gate}" for side in "ih" for gate in gates} <= names:
            return gates
    return None
