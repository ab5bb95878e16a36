"""What users' functions and loaders give: arrays, told apart into inputs and labels."""

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from ._types import Batch, Inputs, as_inputs, describe, is_array

OF_BATCH = ("labels", "batch")
"""What a loss may take of a batch, besides inputs."""
OF_MODEL = "model"
"""Among the names of what a loss takes: it calls the model itself, on the batch."""
Split = Callable[[Any, str], tuple[Inputs, Inputs]]
"""Takes what was drawn, and words for where; gives the model's arguments, the loss's.
"""


def is_loader(source: Any) -> bool:
    """Whether batches are taken from it by iteration.

    A loader is what can be iterated and is nothing else: no function, no array or
    tensor, no container that jax knows (a list of arrays is one batch).
    """
    if callable(source) or isinstance(source, str | bytes | Mapping):
        return False
    if isinstance(source, Iterator):
        return True
    if not isinstance(source, Iterable) or is_array(source) or _is_tensor(source):
        return False
    return jax.tree_util.all_leaves([source])


def take_batches(loader: Iterable[Any], count: int) -> list[Any]:
    """The first batches of a loader, or the next ones of an iterator.

    Raises:
        ValueError: there are fewer.
    """
    batches: list[Any] = []
    for batch in loader:
        batches.append(keep_batch(batch))
        if len(batches) == count:
            return batches
    given = len(batches)
    if given:
        raise ValueError(
            f"input_fn ended after {given} batch(es), expected draws={count}; pass a "
            f"loader of more batches, or draws={given}"
        )
    source = loader.source if isinstance(loader, Replayed) else loader
    hint = "pass one that has batches"
    if isinstance(source, Iterator):
        hint = (
            "an earlier call may have used it up; pass the loader itself, or "
            "iter(loader) anew"
        )
    raise ValueError(
        f"input_fn is a {type(source).__name__} that gives no batch; {hint}"
    )


class Replayed:
    """An iterator's batches, or a loader's, such that the first of them come again."""

    def __init__(self, source: Iterable[Any], keep: int | None = None):
        """`keep` is the number of batches that are kept; None: all."""
        self.keep = keep
        self.source = source
        self._kept: list[Any] = []
        self._rest: Iterator[Any] | None = None

    def __iter__(self) -> Iterator[Any]:
        if self._rest is None:
            self._rest = iter(self.source)
        yield from self._kept
        for batch in self._rest:
            kept = keep_batch(batch)
            if self.keep is None or len(self._kept) < self.keep:
                self._kept.append(kept)
            yield kept


def replayed(source: Any) -> Any:
    """The source; a loader or iterator such that all of its batches come again."""
    return Replayed(source) if is_loader(source) else source


def begun_again(source: Any) -> Any:
    """The source; an iterator such that its first batch comes whenever it begins."""
    return Replayed(source, keep=1) if isinstance(source, Iterator) else source


def endless(loader: Iterable[Any]) -> Iterator[Any]:
    """The batches of a loader, pass after pass.

    Raises:
        ValueError: it has none, or is an iterator, which has one pass alone.
    """
    given = 0
    while True:
        before = given
        for batch in loader:
            given += 1
            yield batch
        one_shot = isinstance(loader, Replayed) and loader.keep is not None
        if one_shot or isinstance(loader, Iterator) or given == before:
            raise ValueError(
                f"the batches ended after {given}, before the last step of training: "
                "an iterator has one pass; pass the loader itself, or fewer steps"
            )


def keep_batch(batch: Any) -> Any:
    """A batch as arrays that stay: a loader may fill the same buffers again."""
    arrays = as_arrays(batch)
    if isinstance(arrays, Iterator):
        return arrays
    return jax.tree.map(lambda x: np.array(x) if type(x) is np.ndarray else x, arrays)


def as_arrays(drawn: Any) -> Any:
    """A batch with the tensors of other libraries as arrays.

    Raises:
        TypeError: one is none that can be converted.
    """
    if isinstance(drawn, Iterator):  # of which jax warns
        return drawn
    return jax.tree.map(_as_array, drawn)


def _is_tensor(leaf: Any) -> bool:
    """Whether a leaf is an array of another library, by what it can do."""
    converts = hasattr(leaf, "__array__") or hasattr(leaf, "__dlpack__")
    return converts and hasattr(leaf, "shape") and hasattr(leaf, "dtype")


def _as_array(leaf: Any) -> Any:
    if is_array(leaf) or not _is_tensor(leaf):
        return leaf
    try:
        return np.asarray(leaf)
    except (TypeError, RuntimeError, ValueError):  # of a GPU, or of a dtype of its own
        try:
            return jax.dlpack.from_dlpack(leaf)
        except Exception as error:
            name = f"{type(leaf).__module__.partition('.')[0]}.{type(leaf).__name__}"
            raise TypeError(
                f"input_fn gave a {name} that is not to be had as an array: {error}; "
                "pass arrays of numpy (of a tensor of torch x.detach().cpu().numpy())"
            ) from error


def generator_hint(input_fn: Any) -> str:
    """What to type in the place of a generator function."""
    if not inspect.isgeneratorfunction(input_fn):
        return ""
    return f"; {input_fn.__name__} is a generator function: pass what it returns"


def check_drawn(drawn: Any, what: str) -> None:
    """Raises where a batch holds no data.

    Raises:
        TypeError: it is no array, and no pytree of arrays.
        ValueError: all of its arrays are empty.
    """
    iterator = isinstance(drawn, Iterator)  # of which jax warns
    leaves: list[Any] = [drawn] if iterator else jax.tree.leaves(drawn)
    is_leaf = len(leaves) == 1 and leaves[0] is drawn
    if drawn is None or (is_leaf and not is_array(drawn)):
        hint = "an array, a pytree of arrays, a tuple of arguments, or ei.Inputs(...)"
        if isinstance(drawn, Iterator):
            hint += "; input_fn may be an iterator itself"
        shown = type(drawn).__name__
        raise TypeError(
            f"{what} {'None' if drawn is None else f'a {shown}'}, expected a batch: "
            f"{hint}"
        )
    arrays: list[Any] = [leaf for leaf in leaves if is_array(leaf)]
    sizes = [leaf.size for leaf in arrays if leaf.shape]
    if sizes and not any(sizes):
        raise ValueError(
            f"{what} {describe(drawn)}, an empty batch; pass one with examples in it"
        )


def split_batch(
    drawn: Any, said: str, *, names: tuple[str, ...] = ()
) -> tuple[Inputs, Inputs]:
    """What the model is called with, and what of the batch its loss gets besides.

    Args:
        drawn: a batch; a pair only where the loss wants labels.
        said: how an error begins to speak of it.
        names: what the loss takes besides outputs.

    Raises:
        TypeError: the loss wants labels, and the batch does not tell which they are.
    """
    wanted = [name for name in OF_BATCH if name in names]
    if OF_MODEL in names:
        is_whole = isinstance(drawn, Batch)
        return Inputs(drawn) if is_whole else as_inputs(drawn), Inputs()
    if not wanted and not isinstance(drawn, Batch):
        return as_inputs(drawn), Inputs()
    if isinstance(drawn, Batch):
        inputs, labels = drawn.inputs, drawn.labels
    elif type(drawn) in (tuple, list) and len(drawn) == 2:
        inputs, labels = drawn
    else:
        raise _missing_labels(drawn, names, said)
    if labels is None and "labels" in wanted:
        raise _missing_labels(drawn, names, said)
    check_drawn(inputs, f"{said} a batch whose inputs are")
    known = {"labels": labels, "batch": drawn}
    return as_inputs(inputs), Inputs(**{name: known[name] for name in wanted})


def _missing_labels(drawn: Any, names: tuple[str, ...], said: str) -> TypeError:
    """The error of a batch that cannot be told apart into inputs and labels."""
    wanted = next(name for name in OF_BATCH if name in names)
    hint = "pass ei.Batch(inputs=x, labels=y), or bind labels with functools.partial"
    if isinstance(drawn, Mapping):
        first, second, *_ = [*map(repr, drawn), "'image'", "'label'"]
        hint = f"make it ei.Batch(inputs=batch[{first}], labels=batch[{second}])"
    elif hasattr(drawn, "_fields"):
        first, second, *_ = [*drawn._fields, "inputs", "labels"]
        hint = f"make it ei.Batch(inputs=batch.{first}, labels=batch.{second})"
    elif type(drawn) in (tuple, list):
        hint = "say which are which: ei.Batch(inputs=x, labels=(y, weights))"
    return TypeError(
        f"loss_fn takes {wanted}, and {said} {describe(drawn)}, expected a pair "
        f"(inputs, labels); {hint} (where a loader gives it: in its collate function, "
        "or by map)"
    )
