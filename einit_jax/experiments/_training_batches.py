"""Batches to train on, one a step, with their labels or keywords of the loss."""

import inspect
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, SupportsIndex

import jax

from ..core import (
    OF_BATCH,
    OF_MODEL,
    Batch,
    Draw,
    Inputs,
    draw_batches,
    endless,
    is_loader,
    split_batch,
)
from ..units import Objective

DATA_NAMES = {*OF_BATCH, OF_MODEL}
"""What tells a loss of labels, or of a whole batch."""


class TrainingBatch(NamedTuple):
    """A batch to train on, and the keywords of the loss that belong to it."""

    batch: Draw
    loss_keywords: Mapping[str, Any]


@dataclass(frozen=True)
class TrainingBatches:
    """How batches are drawn for training."""

    objective: Objective
    source: Any
    """Where batches come from: a function of a key, a loader, or a batch."""
    paired: bool
    """Whether it is the user's `train`, which may bring keywords of the loss."""
    rngs: Sequence[str] | Mapping[str, jax.Array]
    batch_size: SupportsIndex | None

    def of_steps(self, key: jax.Array) -> Iterator[TrainingBatch]:
        """A batch for each step, from a key of its own, or one after the other."""
        source = endless(self.source) if is_loader(self.source) else self.source
        for t in itertools.count():
            yield replace(self, source=source).draw(jax.random.fold_in(key, t))

    def draw(self, key: jax.Array) -> TrainingBatch:
        """The batch of a key, the first one of a loader, or the next of an iterator.

        Raises:
            TypeError: `train` returned something other than a batch.
        """
        keywords: dict[str, Any] = {}

        def split(drawn: Any, said: str) -> tuple[Inputs, Inputs]:
            names = self.objective.loss_arguments
            if not self.paired:
                return split_batch(drawn, said, names=names)
            said = said.replace("input_fn", "train")
            if self._brings_keywords(drawn):
                drawn, own = drawn
                keywords.update(own)
                names = tuple(name for name in names if name not in keywords)
            elif not isinstance(drawn, Batch) and not DATA_NAMES.intersection(names):
                raise TypeError(
                    "train must return a pair, inputs and a dict of keywords for "
                    "loss_fn: return images, {'labels': labels}; or inputs and labels, "
                    "where loss_fn takes (outputs, labels)"
                )
            return split_batch(drawn, said, names=names)

        size = self.batch_size if self._takes_size() else None
        how = {"rngs": self.rngs, "batch_size": size, "split": split}
        (batch,) = draw_batches(self.source, key, **how)
        return TrainingBatch(batch, keywords)

    def _brings_keywords(self, drawn: Any) -> bool:
        """Whether `train` gave inputs and keywords of the loss, no dict of labels."""
        is_pair = type(drawn) in (tuple, list) and len(drawn) == 2
        if not is_pair or not isinstance(drawn[1], Mapping):
            return False
        if not DATA_NAMES.intersection(self.objective.loss_arguments):
            return True
        try:
            self.objective.with_loss_keywords(drawn[1])
        except TypeError:
            return False
        return True

    def _takes_size(self) -> bool:
        """Whether `batch_size` is passed to it; else it is for `input_fn` alone."""
        if not self.paired:
            return True
        if not callable(self.source):
            return False
        return "batch_size" in inspect.signature(self.source).parameters
