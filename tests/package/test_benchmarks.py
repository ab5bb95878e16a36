"""Each benchmark runs, small, and shows what it is to show."""

import importlib
import re
from pathlib import Path

import pytest

from tests.benchmarks.report import read_records

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "tests" / "benchmarks").glob("*/*.py"))
SCRIPTS = {
    f"{file.parent.name}.{file.stem}": text
    for file in FILES
    if "__main__" in (text := file.read_text())
}
ELSEWHERE = {"torch", "mup", "empirical_init"}
"""What some need and the tests do not install."""
SHOWN = {
    "accuracy.coordinates": ["tanh 4, Flax default, SGD: head", "largest / smallest"],
    "accuracy.estimates": ["worst median", "MLP relu"],
    "accuracy.pillars": ["tanh 3", "on the batch that was tuned", "of measure <= 0"],
    "cost.bindings": ["MLP 3", "first calls", "later calls"],
    "cost.carrying": ["MLP 3", "of medians"],
    "cost.first_call": ["MLP 3", "tune, full effort", "later over step"],
    "cost.original": ["original", "einit_jax, fresh"],
    "cost.speed": ["first call", "second call", "scanned MLP 3", "regions of 4 units"],
    "cost.watching": ["MLP 16x3", "plain"],
    "training.decay": ["before", "behind", "log2 of the best"],
    "training.depth": ["MLP tanh 3", "held-out loss"],
    "training.folklore": ["second moment", "overflows", "AutoInit", "all 1"],
    "training.initializers": ["MLP 3, Adam", "gradinit", "least loss"],
    "training.language": ["AdamW, warm-up", "width 8, LayerNorm", "without a search"],
    "training.language_transfer": ["width 8, 16,", "muP", "octaves"],
    "training.mup_transfer": ["torch default", "log2 best rate"],
    "training.one_rate": ["MLP tanh 4", "rules for the common factor", "off, octaves"],
    "training.rate_search": ["MLP 3", "tuned", "steepest"],
    "training.trainability": ["tanh MLP 3", "tuned, orthogonal", "best"],
    "training.transfer": ["chain tanh", "exact, total", "log2 best rate"],
}


def test_every_benchmark_is_known():
    assert SHOWN.keys() == SCRIPTS.keys()


def test_what_is_written_of_benchmarks_and_tests_is_there():
    """In the pages and the notebooks."""
    folders = (
        ROOT,
        ROOT / "notebooks",
        ROOT / ".github",
        ROOT / "tests" / "benchmarks",
    )
    files = [f for folder in folders for f in folder.glob("*.md")]
    files += (ROOT / "notebooks").glob("*.ipynb")
    text = "".join(file.read_text() for file in files)
    named = set(re.findall(r"tests\.benchmarks\.([a-z_.]*[a-z_])", text))
    assert named
    assert named <= SCRIPTS.keys(), named - SCRIPTS.keys()
    paths = set(re.findall(r"\btests/[\w/]+(?:\.(?:py|md))?", text))
    assert not [path for path in paths if not (ROOT / path).exists()]


def written_of(records: str) -> tuple[list[dict], str, str]:
    """The records of that name, the benchmarks' page, and the first one on one line."""
    folder = ROOT / "tests" / "benchmarks"
    found = read_records(folder / "records" / f"{records}.jsonl")
    first = " ".join((ROOT / "README.md").read_text().split())
    return found, (folder / "README.md").read_text(), first


def test_what_is_written_of_the_language_model_is_that_of_its_records():
    """The table of the page, and the sentence of the first one."""
    from tests.benchmarks.training.language import TUNED, USUAL, markdown, summary

    records, page, text = written_of("language")
    table = markdown(records)
    assert table.count("\n") >= 5
    assert table in page
    found = {(row["network"], row["way"]): row for row in summary(records)}

    def both(network: str) -> tuple[str, str]:
        ours = found[network, TUNED]["without a search"]
        theirs = found[network, USUAL]["at its best rate"]
        return ours.partition(",")[0], theirs.partition(",")[0]

    ours, theirs = both("width 128, LayerNorm")
    assert f"at {ours} nats per held-out character at rate 1, AdamW with" in text
    assert f"clipping at {theirs} at its best rate (128 wide" in text
    pairs = [both(f"width {width}, no norm") for width in (128, 32)]
    (a, b), (c, d) = pairs
    assert f"without LayerNorm {a} and {b}, and 32 wide {c} and {d}:" in text


def test_what_is_written_of_transfer_is_that_of_its_records():
    """The table of the page, and the sentence of the first one."""
    from tests.benchmarks.training.language_transfer import (
        LINEAR,
        MUP,
        ONE,
        TUNE,
        markdown,
        summary,
    )

    records, page, text = written_of("language_transfer")
    assert markdown(records) in page
    rows = [row for row in summary(records) if row["over"].startswith("width")]
    rows = [row for row in rows if row["over"].endswith("LayerNorm")]
    rates = {row["way"]: row["log2 of the best rates"].split(", ") for row in rows}
    assert set(rates[TUNE] + rates[LINEAR]) == {"2"}
    first, last = rates[ONE][0], rates[ONE][-1]
    assert rates[MUP][0] == first
    said = f"its best rate stays 4; AdamW's falls from 2^{first} to 2^{last}, muP's to"
    assert f"{said} 2^{rates[MUP][-1]}." in text


def test_what_is_written_of_first_calls_is_that_of_its_records():
    """The lines of the page, and the sentence of the first one."""
    records, page, text = written_of("first_call")

    def over_step(way: str, when: str = "first") -> dict[str, str]:
        """By network, how many gradient steps a call takes."""
        pairs = {r["network"]: r[when] for r in records if r["way"] == way}
        return {name: f"{call / step:.2g}" for name, (step, call) in pairs.items()}

    ways = ("tune", "measure", "looks_linear")
    for when in ("first", "later"):
        columns = [", ".join(over_step(way, when).values()) for way in ways]
        assert f"| {'; '.join(columns)} |" in page
    first = over_step("tune")
    deep = first.pop("MLP 64")
    (low, high), (least, most) = (
        (min(found, key=float), max(found, key=float))
        for found in (first.values(), over_step("measure").values())
    )
    said = f"as long as {low} to {high} first gradient steps, {deep} for 64 layers"
    assert f"{said} written out, and that of `measure` {least} to {most};" in text


@pytest.mark.slow
@pytest.mark.parametrize("name", SHOWN)
def test_benchmark_runs(name, tmp_path, capsys):
    """What is written reads back as what was shown."""
    try:
        main = importlib.import_module(f"tests.benchmarks.{name}").main
    except ModuleNotFoundError as error:
        if error.name not in ELSEWHERE:
            raise
        pytest.skip(f"needs {error.name}")
    records = tmp_path / "records"
    writes = '"--out"' in SCRIPTS[name]
    main(["--tiny", *(["--out", str(records)] if writes else [])])
    shown = capsys.readouterr().out
    words = " ".join(shown.split())
    assert not [word for word in SHOWN[name] if word not in words], shown
    if writes:
        assert records.read_text().count("\n") >= 2
    if '"--read"' in SCRIPTS[name]:
        main(["--read", str(records)])
        assert capsys.readouterr().out == shown
    if '"--figure"' in SCRIPTS[name]:
        figure = tmp_path / "figure.svg"
        main(["--read", str(records), "--figure", str(figure)])
        assert "<svg" in figure.read_text()


def test_the_rewritten_decoder_is_the_decoder_at_its_base():
    """What muP and CompleteP write into it is 1 there, and elsewhere it is not."""
    import jax
    import jax.numpy as jnp

    from tests.benchmarks.training.language import Decoder
    from tests.benchmarks.training.language_transfer import (
        BASE_WIDTH,
        RewrittenDecoder,
    )

    x = jax.random.randint(jax.random.key(0), (2, 64), 0, 128)
    base = (BASE_WIDTH, True, 1.0), (BASE_WIDTH, False, 1.0)
    for width, norm, branch in (*base, (48, True, 1.0), (BASE_WIDTH, True, 0.5)):
        plain = Decoder(width, 2, norm)
        variables = jax.jit(plain.init)(jax.random.key(1), x)
        found = RewrittenDecoder(width, 2, norm, branch).apply(variables, x)
        near = jnp.allclose(found, plain.apply(variables, x), atol=1e-6)
        assert near == ((width, norm, branch) in base)
