"""`python -m einit_jax`: tune a model and show it before and after, or compare."""

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from ._demo import DemoJob, Digits, digits, digits_job, digits_train, load_job, train
from .experiments import compare
from .linen import scales_to_bytes
from .measurement import Measurement, measure
from .reporting import check_writable, empty_figure, report, write_atomically
from .tuning import tune

DEMO_STEPS = 300


LOSS_TAIL = 20
"""The final loss is the mean over so many last steps."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words[:1] == ["compare"]:
        return _run_compare(_compare_parser().parse_args(words[1:]))
    return _run_tune(_tune_parser().parse_args(words))


def _run_tune(options: argparse.Namespace) -> int:
    """`python -m einit_jax`: a model before and after it is tuned."""
    console = Console(soft_wrap=True, highlight=False)
    key = jax.random.key(options.seed)
    try:
        for path in filter(None, (options.out, options.html)):
            check_writable(path)
        if options.html:
            empty_figure(1.0, 1.0)  # is matplotlib there? before anything runs
        data = None if options.job else digits()
        job = load_job(options.job) if data is None else digits_job(data, key)
    except (ImportError, ValueError) as error:
        return _refuse_arguments(error)
    with _progress_bars(console) as bars:
        scales, before, after = _tune_and_measure(job, key, bars)
        if options.out:
            write_atomically(options.out, scales_to_bytes(scales))
            console.print(f"scales written to {options.out} (flax.serialization)")
        if data is not None:
            _train_both(job, data, scales=scales, options=options, bars=bars)
        if options.html:
            write_report = partial(
                report, options.html, before=before, after=after, model=job.model,
                seed=options.seed,
            )  # fmt: skip
            _with_bar(bars, "report", write_report)
            console.print(f"report written to {options.html}")
    return 0


def _run_compare(options: argparse.Namespace) -> int:
    """`python -m einit_jax compare`: strategies side by side on one model."""
    console = Console(soft_wrap=True, highlight=False)
    try:
        if options.out:
            _check_figure_path(options.out)
        job = _job_to_compare(options)
    except (ImportError, ValueError) as error:
        return _refuse_arguments(error)
    keywords = {"steps": options.steps, "key": jax.random.key(options.seed)}
    keywords |= {"progress": True} | job.options
    comparison = compare(job.model, job.params, job.input_fn, job.loss_fn, **keywords)
    console.print(str(comparison), markup=False)
    if options.out:
        comparison.plot().savefig(options.out)
        console.print(f"figure written to {options.out}")
    return 0


def _refuse_arguments(error: Exception) -> int:
    """The exit status of wrong arguments, once the reason is written."""
    print(f"error: {error}", file=sys.stderr)
    return 2


def _check_figure_path(path: Path) -> None:
    """Raises where no figure can be written to a path."""
    check_writable(path)
    formats = empty_figure(1.0, 1.0).canvas.get_supported_filetypes()
    if path.suffix[1:].lower() not in formats:
        raise ValueError(f"{path} is no figure's name; its end may be .png, .pdf, .svg")


def _job_to_compare(options: argparse.Namespace) -> DemoJob:
    """The user's job, or the embedded one with batches to train on."""
    if options.job:
        return load_job(options.job)
    data = digits()
    job = digits_job(data, jax.random.key(options.seed))
    return job._replace(options={"train": digits_train(data)})


def _progress_bars(console: Console) -> Progress:
    """Bars of what is under way: compiling may take a while."""
    columns = TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn()
    return Progress(*columns, console=console, transient=True)


def _with_bar(bars: Progress, name: str, run: Callable[[], Any]) -> Any:
    """The result of a stage of unknown length, with a moving bar while it lasts."""
    bar = bars.add_task(name, total=None)
    try:
        return run()
    finally:
        bars.remove_task(bar)


def _tune_and_measure(
    job: DemoJob, key: jax.Array, bars: Progress
) -> tuple[dict[str, Any], Measurement, Measurement]:
    """The scales, and the model before and after."""
    arguments, options = job[:4], {"key": key, **job.options}
    before = _with_bar(bars, "measure", partial(measure, *arguments, **options))
    bars.console.print("[bold]before[/bold]")
    bars.console.print(str(before), markup=False)
    scales = _with_bar(bars, "tune", partial(tune, *arguments, **options))
    measure_again = partial(measure, *arguments, scales=scales, **options)
    after = _with_bar(bars, "measure again", measure_again)
    bars.console.print("\n[bold]after[/bold]")
    bars.console.print(str(after), markup=False)
    return scales, before, after


def _train_both(
    job: DemoJob,
    data: Digits,
    *,
    scales: dict[str, Any],
    options: argparse.Namespace,
    bars: Progress,
) -> None:
    """Trains the model as it is and tuned, from the same parameters and batches."""
    steps, seed = options.steps, options.seed
    bars.console.print(f"\ntraining both, {steps} steps of SGD, momentum")
    losses: dict[str, list[float]] = {}
    for name, factors in (("as it is", None), ("tuned", scales)):
        losses[name] = []
        bar = bars.add_task(name, total=steps)
        for loss in train(job, data, scales=factors, steps=steps, seed=seed):
            losses[name].append(loss)
            bars.advance(bar)
        bars.remove_task(bar)
    for name, values in losses.items():
        tail = values[-LOSS_TAIL:]
        end = sum(tail) / len(tail)
        bars.console.print(f"loss {name}: {values[0]:.3f} -> {end:.3f}")


def _tune_parser() -> argparse.ArgumentParser:
    """The options of `python -m einit_jax`."""
    parser = argparse.ArgumentParser(
        prog="python -m einit_jax",
        description="Tune a Flax model: run it, measure, scale. Without a job: a "
        "32-layer MLP on scikit-learn's digits, before and after, and its training. "
        "See also: python -m einit_jax compare --help",
    )
    parser.add_argument(
        "job",
        nargs="?",
        metavar="package.module:function",
        help="a function that returns (model, params, input_fn, loss_fn), and if need "
        "be a dict of further keywords for tune and measure",
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="save the scales")
    parser.add_argument(
        "--html", type=Path, metavar="FILE", help="write a report to share"
    )
    parser.add_argument("--seed", type=int, default=0, help="of all random draws")
    parser.add_argument(
        "--steps",
        type=int,
        default=DEMO_STEPS,
        help="training steps of the embedded job",
    )
    return parser


def _compare_parser() -> argparse.ArgumentParser:
    """The options of `python -m einit_jax compare`."""
    parser = argparse.ArgumentParser(
        prog="python -m einit_jax compare",
        description="Compare ways to initialize a Flax model: cost, pillars, loss. "
        "Without a job: a 32-layer MLP on scikit-learn's digits.",
    )
    parser.add_argument(
        "job",
        nargs="?",
        metavar="package.module:function",
        help="a function that returns (model, params, input_fn, loss_fn), and if need "
        "be a dict of further keywords for compare, such as strategies and train",
    )
    parser.add_argument("--steps", type=int, default=100, help="of training, a run")
    parser.add_argument("--seed", type=int, default=0, help="of all random draws")
    parser.add_argument("--out", type=Path, metavar="FIGURE", help="save the figure")
    return parser


if __name__ == "__main__":
    sys.exit(main())
