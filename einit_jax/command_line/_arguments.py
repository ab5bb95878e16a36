"""The options of all commands, and what is no number for them."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from ._errors import CommandError
from ._jobs import job_name
from ._output import say

DEMO_STEPS = 300


MOST = 2**32 - 1
"""The largest seed: JAX drops what is above 32 bits, so others would come twice."""


def tune_arguments(words: Sequence[str]) -> argparse.Namespace:
    """The options of `python -m einit_jax`; `job` is a `JobName` or None.

    Raises:
        CommandError: a word is no option, or a value is none that it can have.
    """
    parser = _Parser(
        prog="python -m einit_jax",
        description="Tune a Flax model: run it, measure, scale. Without a job: a "
        "32-layer MLP on scikit-learn's digits, as Flax draws it and tuned on weights "
        "of looks_linear, and its training. "
        "See also: python -m einit_jax compare --help, and lr --help",
    )
    _add_job(parser, "tune and measure")
    parser.add_argument("--out", type=Path, metavar="FILE", help="save the scales")
    parser.add_argument(
        "--html", type=Path, metavar="FILE", help="write a report to share"
    )
    parser.add_argument(
        "--steps",
        type=_integer(1),
        default=DEMO_STEPS,
        help="training steps of the embedded job",
    )
    return _parsed(parser, words)


def compare_arguments(words: Sequence[str]) -> argparse.Namespace:
    """The options of `python -m einit_jax compare`; `job` is a `JobName` or None.

    Raises:
        CommandError: a word is no option, or a value is none that it can have.
    """
    parser = _Parser(
        prog="python -m einit_jax compare",
        description="Compare ways to initialize a Flax model: cost, pillars, loss. "
        "Without a job: a 32-layer MLP on scikit-learn's digits.",
    )
    _add_job(parser, "compare, such as strategies and train")
    parser.add_argument(
        "--steps", type=_integer(1), default=100, help="of training, a run"
    )
    parser.add_argument("--out", type=Path, metavar="FIGURE", help="save the figure")
    return _parsed(parser, words)


def rate_arguments(words: Sequence[str]) -> argparse.Namespace:
    """The options of `python -m einit_jax lr`; `job` is a `JobName` or None.

    Raises:
        CommandError: a word is no option, or a value is none that it can have.
    """
    parser = _Parser(
        prog="python -m einit_jax lr",
        description="Find the learning rate of Adam, or of the job's optimizer, by "
        "short trainings. Without a job: a 32-layer MLP on scikit-learn's digits, "
        "tuned on weights of looks_linear.",
    )
    _add_job(parser, "find_learning_rate, such as scales, train and optimizer")
    parser.add_argument(
        "--steps", type=_integer(1), default=100, help="of training, a run"
    )
    parser.add_argument("--out", type=Path, metavar="FIGURE", help="save the figure")
    return _parsed(parser, words)


class _Parser(argparse.ArgumentParser):
    """Raises what is wrong, the help that cannot be printed too."""

    def print_help(self, file: Any = None) -> None:
        del file  # standard output
        say(self.format_help().rstrip())

    def error(self, message: str) -> NoReturn:
        raise CommandError(f"{message}; see {self.prog} --help")


def _add_job(parser: argparse.ArgumentParser, verbs: str) -> None:
    """The arguments of all commands."""
    parser.add_argument(
        "job",
        nargs="?",
        metavar="package.module:function",
        help="a function that returns (model, params, input_fn, loss_fn), and if need "
        f"be a dict of further keywords for {verbs}; or path/file.py:function",
    )
    parser.add_argument(
        "--seed", type=_integer(0, MOST), default=0, help="of all random draws"
    )


def _parsed(
    parser: argparse.ArgumentParser, words: Sequence[str]
) -> argparse.Namespace:
    """The options, with the job's name taken apart."""
    options = parser.parse_args(words)
    options.job = None if options.job is None else job_name(options.job)
    return options


def _integer(least: int, most: int | None = None) -> Callable[[str], int]:
    """Reads an integer of a range."""
    wanted = f">= {least}" if most is None else f"from {least} to {most}"

    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = None
        if value is None or value < least or (most is not None and value > most):
            raise argparse.ArgumentTypeError(f"{text!r}, expected an integer {wanted}")
        return value

    return read
