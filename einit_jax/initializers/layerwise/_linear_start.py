"""What `looks_linear` did, and what it measured: its report."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
from jaxtyping import Array, Bool, Float

from ...core import is_concrete

SHOWN = 6
"""How many names a line of the text has at most."""


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["before", "after", "in_pairs", "size"],
    meta_fields=["mirrored", "curved", "left", "limit"],
)
@dataclass(frozen=True)
class LinearStart:
    """What `looks_linear` did: a frozen pytree, whose `str()` tells it."""

    before: Float[Array, ""]
    """The amplification of the model's outputs on plain orthonormal weights."""
    after: Float[Array, ""]
    """That on the weights returned."""
    in_pairs: Bool[Array, ""]
    """Whether the weights `mirrored` are; else all of them are plain draws."""
    size: Float[Array, ""]
    """The rms of outputs before curved functions, 1 where none had to be smaller."""
    mirrored: tuple[str, ...]
    """The weights whose features can be mirrored."""
    curved: tuple[tuple[str, ...], tuple[str, ...]]
    """The layers whose outputs have that size, without and with mirrored weights."""
    left: tuple[tuple[str, str], ...]
    """The weights whose features cannot be mirrored, and why."""
    limit: float
    """The amplification up to which plain draws are left alone."""

    @property
    def smaller(self) -> tuple[str, ...]:
        """The layers whose outputs are smaller than 1; none where nothing had to be."""
        return self.curved[bool(self.in_pairs)] if self.size < 1 else ()

    def targets(self) -> dict[str, float]:
        """The rms of outputs that `tune(targets=...)` is to keep, by path.

        Raises:
            ValueError: it is traced; its size is known outside of `jit` alone.
        """
        if not is_concrete(self.size):
            raise ValueError(
                "the targets of a traced start are not known; call looks_linear "
                "outside of jit for them"
            )
        return {**dict.fromkeys(self.smaller, float(self.size)), "*": 1.0}

    def rows(self) -> list[dict[str, Any]]:
        """One dict per weight whose features could be mirrored, or could not."""
        done = bool(self.in_pairs)
        rows = [{"weight": name, "mirrored": done, "why": ""} for name in self.mirrored]
        left = [{"weight": n, "mirrored": False, "why": why} for n, why in self.left]
        return rows + left

    def __str__(self) -> str:
        if not all(map(is_concrete, jax.tree.leaves(self))):
            return "LinearStart (traced)"
        lines = [
            f"amplification of the outputs: {float(self.before):.3g} on orthonormal "
            f"weights, {float(self.after):.3g} now; up to {self.limit:g} is left alone"
        ]
        if bool(self.in_pairs):
            lines.append(f"mirrored: {_listed(self.mirrored)}")
            lines += [f"not mirrored: {n}: {why}" for n, why in _by_reason(self.left)]
        else:
            lines.append("mirrored: nothing; weights are plain orthonormal draws")
        if self.smaller:
            names = _listed(self.smaller)
            lines.append(f"outputs of rms {float(self.size):.3g}: {names}")
        return "\n".join(lines)


def _by_reason(left: tuple[tuple[str, str], ...]) -> list[tuple[str, str]]:
    """The names with each reason, joined."""
    names: Mapping[str, list[str]] = {why: [] for _, why in left}
    for name, why in left:
        names[why].append(name)
    return [(_listed(some), why) for why, some in names.items()]


def _listed(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    rest = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {rest} more" if rest > 0 else "")
