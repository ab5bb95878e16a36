"""The options of all commands, and what is no number for them."""

import argparse
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NoReturn

from ._errors import CommandError
from ._jobs import job_name
from ._output import say

TRAINING_STEPS, QUICK_STEPS = 100, 30
"""Of training: by default, and with --quick."""
REPORT_NAME = Path("einit_jax.html")


MOST = 2**32 - 1
"""The largest seed: JAX drops what is above 32 bits, so others would come twice."""


PROGRAM = "python -m einit_jax"
JOBS = (
    "a function that returns (model, params, input_fn, loss_fn), and if need be a "
    "dict of further keywords for {verbs}; or path/file.py:function. Without one an "
    "example: a 32-layer MLP on scikit-learn's digits"
)


def tune_arguments(words: Sequence[str], command: str = "") -> argparse.Namespace:
    """The options of `python -m einit_jax`, by itself or with its command `tune`.

    `job` is a `JobName` or None, as in the others.

    Raises:
        CommandError: a word is no option, or a value is none that it can have.
    """
    parser = _Parser(
        prog=f"{PROGRAM} {command}".strip(),
        description="Tune a Flax model: run it, measure, scale, measure again. The "
        "example is trained, too, and so is the same model as Flax draws it, with He's "
        "and with orthogonal weights.",
        epilog="commands: tune (this, also without its name), compare (ways to "
        "initialize), lr (find the learning rate), report (this as a page of HTML); "
        f"{PROGRAM} COMMAND --help tells more",
    )
    _add_job(parser, "tune and measure")
    parser.add_argument("--out", type=Path, metavar="FILE", help="save the scales")
    parser.add_argument(
        "--html", type=Path, metavar="FILE", help="write a report to share"
    )
    _add_steps(parser, "of training the example")
    parser.add_argument("--version", action=_Version, help="print the version")
    return _parsed(parser, words)


def report_arguments(words: Sequence[str]) -> argparse.Namespace:
    """The options of `python -m einit_jax report`, which are also those of `tune`.

    Raises:
        CommandError: a word is no option, or a value is none that it can have.
    """
    parser = _Parser(
        prog=f"{PROGRAM} report",
        description="Tune a Flax model, and write a page of HTML to share: the model "
        "measured before and after, and the training of the example.",
    )
    _add_job(parser, "tune and measure")
    parser.add_argument(
        "--out", dest="html", type=Path, metavar="FILE", default=REPORT_NAME,
        help=f"the page; default {REPORT_NAME}",
    )  # fmt: skip
    _add_steps(parser, "of training the example")
    return argparse.Namespace(**vars(_parsed(parser, words)), out=None)


def compare_arguments(words: Sequence[str]) -> argparse.Namespace:
    """The options of `python -m einit_jax compare`.

    Raises:
        CommandError: a word is no option, or a value is none that it can have.
    """
    parser = _Parser(
        prog=f"{PROGRAM} compare",
        description="Compare ways to initialize a Flax model: cost, pillars, loss.",
    )
    _add_job(parser, "compare, such as strategies and train")
    _add_steps(parser, "of training, a run")
    parser.add_argument("--out", type=Path, metavar="FIGURE", help="save the figure")
    return _parsed(parser, words)


def rate_arguments(words: Sequence[str]) -> argparse.Namespace:
    """The options of `python -m einit_jax lr`.

    Raises:
        CommandError: a word is no option, or a value is none that it can have.
    """
    parser = _Parser(
        prog=f"{PROGRAM} lr",
        description="Find the learning rate of Adam, or of the job's optimizer, by "
        "short trainings; the example is tuned on weights of looks_linear.",
    )
    _add_job(parser, "find_learning_rate, such as scales, train and optimizer")
    _add_steps(parser, "of training, a run")
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
        help=JOBS.format(verbs=verbs),
    )
    parser.add_argument(
        "--seed", type=_integer(0, MOST), default=0, help="of all random draws"
    )


def _add_steps(parser: argparse.ArgumentParser, what: str) -> None:
    """How long is trained, and whether all is made small."""
    parser.add_argument(
        "--steps", type=_integer(1), help=f"{what}; default {TRAINING_STEPS}"
    )
    parser.add_argument(
        "--quick", action="store_true",
        help=f"{QUICK_STEPS} steps at fewer learning rates; a smaller model in the "
        "example",
    )  # fmt: skip


class _Version(argparse.Action):
    """Prints the version, which takes no import of the package's rooms."""

    def __init__(self, option_strings: Sequence[str], dest: str, **how: Any) -> None:
        super().__init__(option_strings, dest, nargs=0, **how)

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        try:
            say(f"einit_jax {version('einit_jax')}")
        except PackageNotFoundError:  # run from its source
            say("einit_jax (not installed)")
        parser.exit()


def _parsed(
    parser: argparse.ArgumentParser, words: Sequence[str]
) -> argparse.Namespace:
    """The options, with the job's name taken apart."""
    options = parser.parse_args(words)
    options.steps = options.steps or (QUICK_STEPS if options.quick else TRAINING_STEPS)
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
