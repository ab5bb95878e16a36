"""`python -m einit_jax`: tune a model, compare ways to start it, find its rate.

What takes long to import is imported when the arguments are known to be right.
"""

import argparse
import io
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .command_line import (
    CommandError,
    compare_arguments,
    complain,
    finish_output,
    load_job,
    progress_bars,
    rate_arguments,
    say,
    told_with_place,
    tune_arguments,
    with_bar,
    write_or_complain,
)

if TYPE_CHECKING:
    import jax
    from rich.progress import Progress

    from ._demo import DemoJob, Digits
    from .experiments import Comparison, LearningRates
    from .measurement import Measurement

LOSS_TAIL = 20
"""The final loss is the mean over so many last steps."""
INTERRUPTED = 130
"""The exit status after an interrupt from the keyboard: 128 + SIGINT."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        if words[:1] == ["compare"]:
            return _run_search(compare_arguments(words[1:]), _compared)
        if words[:1] == ["lr"]:
            return _run_search(rate_arguments(words[1:]), _rates_found)
        return _run_tune(tune_arguments(words))
    except CommandError as error:
        if str(error):
            complain(f"error: {error}")
        return error.status
    except KeyboardInterrupt:
        return INTERRUPTED


def _run_tune(options: argparse.Namespace) -> int:
    """`python -m einit_jax`: a model before and after it is tuned.

    Files are written before anything is printed, as printing may fail.
    """
    _check_files(out=options.out, html=options.html)
    if options.html:
        _empty_figure()
    said: list[str] = []
    with told_with_place(options.job), progress_bars() as bars:
        job, data, key = _job_to_tune(options)
        before = _measured("measure", job, key, bars)
        start = job if data is None else _with_linear_start(job, key, bars)
        scales = _tuned(start, key, bars)
        status = _save_scales(options.out, scales, said)
        after = _measured("measure again", start, key, bars, scales=scales)
        if options.html:
            save = partial(_save_report, options, job, (before, after), said)
            status |= with_bar(bars, "report", save)
    drawn = "" if data is None else ": weights of looks_linear, tuned"
    say("\n".join(["before", str(before), f"\nafter{drawn}", str(after), *said]))
    if data is not None:
        _train_both({"as it is": (job, None), "tuned": (start, scales)}, data, options)
    return status


def _run_search(options: argparse.Namespace, search: Callable) -> int:
    """`python -m einit_jax compare` and `lr`: strategies, or rates, side by side."""
    _check_files(out=options.out)
    if options.out:
        _check_figure_name(options.out)
    said: list[str] = []
    with told_with_place(options.job):
        found = search(options)
        status = _save_figure(options.out, found, said)
    say("\n".join([str(found), *said]))
    return status


def _check_files(**paths: Path | None) -> None:
    """Raises where a file, by its option, cannot be written, or two are the same."""
    from .reporting import check_writable

    options: dict[str, str] = {}
    for option, path in paths.items():
        if path is None:
            continue
        try:
            check_writable(path)
        except ValueError as error:
            raise CommandError(str(error)) from error
        other = options.setdefault(os.path.realpath(path), option)
        if other != option:
            raise CommandError(
                f"--{other} and --{option} are the same file, {path}; name another one"
            )


def _check_figure_name(path: Path) -> None:
    """Raises where no figure can be written under a name."""
    formats = _empty_figure().canvas.get_supported_filetypes()
    if path.suffix[1:].lower() not in formats:
        raise CommandError(
            f"{path} is no figure's name; its end may be .png, .pdf, .svg"
        )


def _empty_figure() -> Any:
    """A small figure: is matplotlib there? It is asked before anything runs."""
    from .reporting import empty_figure

    try:
        return empty_figure(1.0, 1.0)
    except ImportError as error:
        raise CommandError(str(error)) from error


def _save_scales(path: Path | None, scales: dict[str, Any], said: list[str]) -> int:
    """Writes the scales, if asked to; returns the exit status."""
    from .binding import save

    if path is None:
        return 0
    note = f"scales written to {path}; read them by ei.load({str(path)!r})"
    return write_or_complain(path, partial(save, path, scales), note, said)


def _save_report(
    options: argparse.Namespace,
    job: "DemoJob",
    measured: "tuple[Measurement, Measurement]",
    said: list[str],
) -> int:
    """Writes the report of the model before and after; returns the exit status."""
    from .reporting import report

    before, after = measured
    write = lambda: report(
        options.html, before=before, after=after, model=job.model, seed=options.seed
    )
    note = f"report written to {options.html}"
    return write_or_complain(options.html, write, note, said)


def _save_figure(
    path: Path | None, found: "Comparison | LearningRates", said: list[str]
) -> int:
    """Writes the figure, if asked to; returns the exit status."""
    from .reporting import write_atomically

    if path is None:
        return 0

    def write() -> None:
        stream = io.BytesIO()
        found.plot().savefig(stream, format=path.suffix[1:].lower())
        write_atomically(path, stream.getvalue())

    return write_or_complain(path, write, f"figure written to {path}", said)


def _job_to_tune(
    options: argparse.Namespace,
) -> "tuple[DemoJob, Digits | None, jax.Array]":
    """The user's job, or the embedded one with its data; and the key."""
    own = load_job(options.job) if options.job else None  # it may fail at once
    import jax

    from ._demo import DemoJob, digits, digits_job

    key = jax.random.key(options.seed)
    if own is not None:
        return DemoJob(*own), None, key
    data = digits()
    return digits_job(data, key), data, key


def _with_linear_start(job: "DemoJob", key: "jax.Array", bars: "Progress") -> "DemoJob":
    """The embedded job with the weights that the README advises."""
    from ._demo import linear_job

    return with_bar(bars, "looks_linear", partial(linear_job, job, key))


def _tuned(job: "DemoJob", key: "jax.Array", bars: "Progress") -> dict[str, Any]:
    """The scales."""
    from .tuning import tune

    run = partial(tune, *job[:4], **{"key": key, **job.options})
    return with_bar(bars, "tune", run)


def _measured(
    name: str, job: "DemoJob", key: "jax.Array", bars: "Progress", **scales: Any
) -> "Measurement":
    """The model measured, as it is or with scales."""
    from .measurement import measure

    options = {"key": key, **job.options, **scales}
    return with_bar(bars, name, partial(measure, *job[:4], **options))


def _compared(options: argparse.Namespace) -> "Comparison":
    """The comparison on the user's job, or on the embedded one with its batches."""
    own = load_job(options.job) if options.job else None  # it may fail at once
    import jax

    from ._demo import DemoJob, digits, digits_job, digits_train
    from .experiments import compare

    key = jax.random.key(options.seed)
    if own is not None:
        job = DemoJob(*own)
    else:
        data = digits()
        job = digits_job(data, key)._replace(options={"train": digits_train(data)})
    keywords = {"steps": options.steps, "key": key, "progress": True} | job.options
    return compare(*job[:4], **keywords)


def _rates_found(options: argparse.Namespace) -> "LearningRates":
    """The search on the user's job, or on the embedded one, tuned for Adam."""
    own = load_job(options.job) if options.job else None  # it may fail at once
    import jax

    from ._demo import DemoJob, digits, tuned_job
    from .experiments import find_learning_rate

    key = jax.random.key(options.seed)
    with progress_bars() as bars:
        if own is not None:
            job = DemoJob(*own)
        else:
            job = with_bar(bars, "tune", lambda: tuned_job(digits(), key))
        bar = bars.add_task("train", total=None)
        keywords: dict[str, Any] = {"steps": options.steps, "key": key}
        keywords["progress"] = lambda i, of: bars.update(bar, completed=i, total=of)
        keywords |= job.options
        model, params, input_fn, loss_fn, _ = job
        return find_learning_rate(model, params, input_fn, loss_fn, **keywords)


def _train_both(
    starts: "dict[str, tuple[DemoJob, dict[str, Any] | None]]",
    data: "Digits",
    options: argparse.Namespace,
) -> None:
    """Trains the model from each start, on the same batches."""
    from ._demo import train

    steps, seed = options.steps, options.seed
    say(f"\ntraining both, {steps} steps of SGD, momentum")
    losses: dict[str, list[float]] = {}
    with told_with_place(None), progress_bars() as bars:
        for name, (job, factors) in starts.items():
            losses[name] = []
            bar = bars.add_task(name, total=steps)
            for loss in train(job, data, scales=factors, steps=steps, seed=seed):
                losses[name].append(loss)
                bars.advance(bar)
            bars.remove_task(bar)
    for name, values in losses.items():
        tail = values[-LOSS_TAIL:]
        end = sum(tail) / len(tail)
        say(f"loss {name}: {values[0]:.3f} -> {end:.2g}")


def _program() -> int:
    """The exit status of the whole program."""
    try:
        status = main()
    except SystemExit as stop:  # after the help
        status = stop.code if isinstance(stop.code, int) else 0
    return finish_output(status)


if __name__ == "__main__":
    sys.exit(_program())
