"""`python -m einit_jax`: tune a model, and show it before and after; or compare."""

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import flax
import jax
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from ._demo import DemoJob, Digits, digits, digits_job, digits_train, load_job, train
from .experiments import compare
from .measurement import Measurement, measure
from .reporting import check_writable, figure, report, write_atomically
from .tuning import tune

DEMO_STEPS = 300


LOSS_TAIL = 20
"""The final loss is the mean over so many steps."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words[:1] == ["compare"]:
        return _compared(_compare_parser().parse_args(words[1:]))
    options = _parser().parse_args(words)
    console = Console(soft_wrap=True, highlight=False)
    key = jax.random.key(options.seed)
    try:
        for path in filter(None, (options.out, options.html)):
            check_writable(path)
        if options.html:
            figure(1.0, 1.0)  # before anything runs: is matplotlib there?
        data = None if options.job else digits()
        job = load_job(options.job) if data is None else digits_job(data, key)
    except (ImportError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    with _progress_bars(console) as bars:
        scales, before, after = _tune_and_measure(job, key, bars)
        if options.out:
            write_atomically(options.out, flax.serialization.to_bytes(scales))
            console.print(f"scales written to {options.out} (flax.serialization)")
        if data is not None:
            _train_both(job, scales, data, options, bars)
        if options.html:
            about = {"model": job.model, "seed": options.seed}
            stage = partial(report, options.html, before=before, after=after, **about)
            _during(bars, "report", stage)
            console.print(f"report written to {options.html}")
    return 0


def _compared(options: argparse.Namespace) -> int:
    """`python -m einit_jax compare`: strategies side by side on one model."""
    console = Console(soft_wrap=True, highlight=False)
    try:
        if options.out:
            _drawable(options.out)
        job = _compare_job(options)
    except (ImportError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    model, params, input_fn, loss_fn, given = job
    given = {"steps": options.steps, "key": jax.random.key(options.seed), **given}
    found = compare(model, params, input_fn, loss_fn, progress=True, **given)
    console.print(str(found), markup=False)
    if options.out:
        found.plot().savefig(options.out)
        console.print(f"figure written to {options.out}")
    return 0


def _drawable(path: Path) -> None:
    """Raises where no figure can be written to a path."""
    check_writable(path)
    kinds = figure(1.0, 1.0).canvas.get_supported_filetypes()
    if path.suffix[1:].lower() not in kinds:
        raise ValueError(f"{path} is no figure's name; its end may be .png, .pdf, .svg")


def _compare_job(options: argparse.Namespace) -> DemoJob:
    if options.job:
        return load_job(options.job)
    data = digits()
    job = digits_job(data, jax.random.key(options.seed))
    return job._replace(options={"train": digits_train(data)})


def _progress_bars(console: Console) -> Progress:
    """Bars of what is under way: it may take a while to compile."""
    columns = TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn()
    return Progress(*columns, console=console, transient=True)


def _during(bars: Progress, name: str, run: Callable[[], Any]) -> Any:
    """The result of a stage of unknown length, with a moving bar while it lasts."""
    bar = bars.add_task(name, total=None)
    try:
        return run()
    finally:
        bars.remove_task(bar)


def _tune_and_measure(
    job: DemoJob, key: jax.Array, bars: Progress
) -> tuple[dict, Measurement, Measurement]:
    """The scales, and the model before and after."""
    model, params, input_fn, loss_fn, options = job
    case: Any = (model, params, input_fn, loss_fn)
    options = {"key": key, **options}
    before = _during(bars, "measure", partial(measure, *case, **options))
    bars.console.print("[bold]before[/bold]")
    bars.console.print(str(before), markup=False)
    scales = _during(bars, "tune", partial(tune, *case, **options))
    again = partial(measure, *case, scales=scales, **options)
    after = _during(bars, "measure again", again)
    bars.console.print("\n[bold]after[/bold]")
    bars.console.print(str(after), markup=False)
    return scales, before, after


def _train_both(
    job: DemoJob, scales: dict, data: Digits, options: Any, bars: Progress
) -> None:
    """Trains the model as it is and tuned, from the same parameters and batches."""
    bars.console.print(f"\ntraining both, {options.steps} steps of SGD, momentum")
    losses: dict[str, list[float]] = {"as it is": [], "tuned": []}
    for name, extra in zip(losses, (None, scales), strict=True):
        bar = bars.add_task(name, total=options.steps)
        run = (job.model, job.params, extra, data, options.steps, options.seed)
        for loss in train(*run):
            losses[name].append(loss)
            bars.advance(bar)
        bars.remove_task(bar)
    for name, seen in losses.items():
        end = sum(seen[-LOSS_TAIL:]) / len(seen[-LOSS_TAIL:])
        bars.console.print(f"loss {name}: {seen[0]:.3f} -> {end:.3f}")


def _parser() -> argparse.ArgumentParser:
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
