"""`python -m einit_jax`: tune a model, compare ways to start it, find its rate.

What takes long to import is imported when the arguments are known to be right.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .command_line import (
    CommandError,
    check_figure_name,
    check_figures,
    check_files,
    compare_arguments,
    complain,
    curves_at_best,
    finish_output,
    load_job,
    progress_bars,
    rate_arguments,
    report_arguments,
    save_figure,
    save_report,
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
    from .pages import TrainingCurves

INTERRUPTED = 130
"""The exit status after an interrupt from the keyboard: 128 + SIGINT."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        match words[:1]:
            case ["compare"]:
                return _run_search(compare_arguments(words[1:]), _compared)
            case ["lr"]:
                return _run_search(rate_arguments(words[1:]), _rates_found)
            case ["report"]:
                return _run_tune(report_arguments(words[1:]))
            case ["tune"]:
                return _run_tune(tune_arguments(words[1:], "tune"))
        return _run_tune(tune_arguments(words))
    except CommandError as error:
        if str(error):
            complain(f"error: {error}")
        return error.status
    except KeyboardInterrupt:
        return INTERRUPTED


def _run_tune(options: argparse.Namespace) -> int:
    """`python -m einit_jax`: a model before and after it is tuned.

    Files are written before anything is printed, as printing may fail; where there are
    none to write, what is known is printed at once.
    """
    check_files(out=options.out, html=options.html)
    if options.html:
        check_figures()
    shown: list[str] = []
    tell = shown.append if options.out or options.html else say
    said: list[str] = []
    with told_with_place(options.job):
        with progress_bars() as bars:
            job, data, key = _loaded_job(options)
            before = _measured("measure", job, key, bars)
        tell(f"before\n{before}\n")
        with progress_bars() as bars:
            start = job if data is None else _with_linear_start(job, key, bars)
            scales = _tuned(start, key, bars)
            status = _save_scales(options.out, scales, said)
            after = _measured("measure again", start, key, bars, scales=scales)
        drawn = "" if data is None else ": weights of looks_linear, tuned"
        tell(f"after{drawn}\n{after}\n")
        parts: dict[str, Any] = {"before": before, "after": after}
        if data is not None:
            curves = _trained(job, start, scales, data=data, options=options)
            parts = {"training": curves, **parts}
            said = [str(curves), *said]
        if options.html:
            facts = {"model": job.model, "seed": options.seed}
            save = partial(save_report, options.html, parts, facts, said)
            with progress_bars() as bars:
                status |= with_bar(bars, "report", save)
    if data is not None and not options.html:
        said.append("a page of all this, to share: python -m einit_jax report")
    if shown or said:
        say("\n".join([*shown, *said]))
    return status


def _run_search(options: argparse.Namespace, search: Callable) -> int:
    """`python -m einit_jax compare` and `lr`: strategies, or rates, side by side."""
    check_files(out=options.out)
    if options.out:
        check_figure_name(options.out)
    said: list[str] = []
    with told_with_place(options.job):
        found = search(options)
        status = save_figure(options.out, found, said)
    say("\n".join([str(found), *said]))
    return status


def _save_scales(path: Path | None, scales: dict[str, Any], said: list[str]) -> int:
    """Writes the scales, if asked to; returns the exit status."""
    from .binding import save

    if path is None:
        return 0
    note = f"scales written to {path}; read them by ei.load({str(path)!r})"
    return write_or_complain(path, partial(save, path, scales), note, said)


def _loaded_job(
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
    return digits_job(data, key, quick=options.quick), data, key


def _search_keywords(
    options: argparse.Namespace, key: "jax.Array", **usual: Any
) -> dict[str, Any]:
    """What all searches are told; `usual` holds where --quick does not replace it."""
    from ._demo import QUICK_RATES

    rates = {"learning_rates": QUICK_RATES} if options.quick else {}
    return {"steps": options.steps, "key": key} | usual | rates


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
    job, data, key = _loaded_job(options)
    from ._demo import digits_train
    from .experiments import compare

    if data is not None:
        job = job._replace(options={"train": digits_train(data)})
    keywords = _search_keywords(options, key, progress=True) | job.options
    model, params, input_fn, loss_fn, _ = job
    return compare(model, params, input_fn, loss_fn, **keywords)


def _rates_found(options: argparse.Namespace) -> "LearningRates":
    """The search on the user's job, or on the embedded one, tuned for Adam."""
    job, data, key = _loaded_job(options)
    from ._demo import tuned_job
    from .experiments import find_learning_rate

    with progress_bars() as bars:
        if data is not None:
            job = with_bar(bars, "tune", partial(tuned_job, job, data, key))
        bar = bars.add_task("train", total=None)
        progress = lambda i, of: bars.update(bar, completed=i, total=of)
        keywords = _search_keywords(options, key, progress=progress) | job.options
        model, params, input_fn, loss_fn, _ = job
        return find_learning_rate(model, params, input_fn, loss_fn, **keywords)


def _trained(
    job: "DemoJob",
    start: "DemoJob",
    scales: dict[str, Any],
    *,
    data: "Digits",
    options: argparse.Namespace,
) -> "TrainingCurves":
    """The embedded job trained from each start, at the rate that is best for it."""
    import jax

    from ._demo import DEMO_RATES, LINEAR_TUNED, classic_jobs, digits_train
    from .experiments import find_learning_rate

    key = jax.random.key(options.seed)
    usual = {"learning_rates": DEMO_RATES, "train": digits_train(data)}
    keywords = _search_keywords(options, key, **usual)
    found: dict[str, LearningRates] = {}
    with progress_bars() as bars:
        starts = {name: (own, None) for name, own in classic_jobs(job, key).items()}
        for name, (own, factors) in (starts | {LINEAR_TUNED: (start, scales)}).items():
            model, params, inputs, loss, _ = own
            run = partial(find_learning_rate, model, params, inputs, loss, **keywords)
            found[name] = with_bar(bars, f"train {name}", partial(run, scales=factors))
    return curves_at_best(found, advised=LINEAR_TUNED)


def _program() -> int:
    """The exit status of the whole program."""
    try:
        status = main()
    except SystemExit as stop:  # after the help
        status = stop.code if isinstance(stop.code, int) else 0
    return finish_output(status)


if __name__ == "__main__":
    sys.exit(_program())
