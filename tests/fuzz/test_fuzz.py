"""Models that nobody wrote: what holds of every model holds of them.

`python -m tests.fuzz` runs any number of them.
"""

import hashlib
import json
import random
from dataclasses import replace
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, assume, given, settings

from einit_jax.units import ones, to_tree
from tests.fuzz import properties
from tests.fuzz.__main__ import main, records
from tests.fuzz.examples import Example, Model
from tests.fuzz.growing import KINDS, NNX_KINDS, inside
from tests.fuzz.nnx_models.running import run_of
from tests.fuzz.properties import (
    PROPERTIES,
    UNMEASURED,
    Verdict,
    gradient_deviation,
    judge,
)
from tests.fuzz.rounding import sensitivity
from tests.fuzz.running import Broken, Invalid, Refused, Run, judged
from tests.fuzz.shrinking import failure_kind, shrunk
from tests.fuzz.strategies import drawn, examples, numbered

ALL_CHECKS: Any = HealthCheck
EVERY = settings(
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(ALL_CHECKS),
    print_blob=False,
)
OLD = "ff18aadd6117cecd"
"""Of the lines of the first models of Linen."""
PARTS, SIZE, WHOLE = 10, 10, 5
"""Of the models of continuous integration: each part is a test, a fifth of which has
all properties, the others those that ask nothing of `measure` (the referee is part of
`tune`)."""
LIBRARIES = pytest.mark.parametrize("library", ["linen", "nnx"])


def holds(example: Example) -> None:
    """Asserts all properties of an example, which is printed where one fails."""
    verdict = judge(example)
    assume(verdict.status != "invalid")
    assert verdict.status in ("ok", "refused"), f"{example!r}: {verdict}"


@given(examples())
@settings(EVERY, max_examples=3, phases=[Phase.generate])
def test_a_few_models(example):
    holds(example)


@given(examples(library="nnx"))
@settings(EVERY, max_examples=3, phases=[Phase.generate])
def test_a_few_models_of_nnx(example):
    holds(example)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
@LIBRARIES
def test_many_models(library, part):
    """None is shrunk here: `python -m tests.fuzz` does that."""
    failed = {}
    for number in range(part * SIZE, (part + 1) * SIZE):
        example = numbered(1, number, library=library)
        verdict = judge(example, UNMEASURED if number % WHOLE else PROPERTIES)
        if verdict.status == "failed":
            failed[repr(example)] = verdict
    jax.clear_caches()
    assert not failed, "\n".join(f"{e}: {v}" for e, v in failed.items())


FAILED_ONCE = {
    "a gradient that a norm takes out": Example(
        ("sequential", ("mix",), ("layer_norm",)),
        batch=1,
        extra=("vector",),
        outputs="tuple",
        loss="cosines",
        options=(("draws", 2), ("exclude", 0)),
    ),
    "biases before a norm, compared because of a tied kernel": Example(
        ("seq", ("hand_tied", 4), ("raw", "positions", ("batch_norm", False))),
        steps=1,
        tokens=True,
        outputs="tuple",
        loss="cosines",
        options=(
            ("update", "local"),
            ("optimizer", "sgd"),
            ("draws", 2),
            ("targets", 0.5),
        ),
        seed=2,
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FAILED_ONCE)
def test_what_failed_once_holds(name):
    assert judge(FAILED_ONCE[name]).status == "ok"


# The parts: examples are plain data.

MANY = [numbered(0, i) for i in range(1500)]
MANY_NNX = [numbered(0, i, library="nnx") for i in range(1500)]


def test_examples_are_plain_data():
    """The line that is printed makes the same example, and so the same model."""
    for example in (*MANY[:100], *MANY_NNX[:100]):
        again = eval(repr(example), {"Example": Example})
        assert again == example
        assert hash(Model(again)) == hash(Model(example))
    assert numbered(0, 7) == MANY[7] != numbered(1, 7)
    assert numbered(0, 7, library="nnx") == MANY_NNX[7] != MANY[7]


def test_models_of_numbers_stay_what_they_are():
    """Old records name models of Linen by their numbers."""
    lines = "".join(map(repr, MANY)).encode()
    assert hashlib.sha256(lines).hexdigest()[:16] == OLD
    assert "library" not in lines.decode()
    assert all("library='nnx'" in repr(example) for example in MANY_NNX)


@pytest.mark.parametrize(
    ("kinds", "many"), [(KINDS, MANY), (NNX_KINDS, MANY_NNX)], ids=["linen", "nnx"]
)
def test_every_kind_is_drawn(kinds, many):
    assert len(kinds) > 50
    found = {node[0] for example in many for node in inside(example.body)}
    assert found == set(kinds)


def test_kinds_can_be_left_out():
    some = frozenset({"times", "tied", "hyper"})
    without = [drawn(random.Random(i).choice, some) for i in range(300)]
    assert not {n[0] for e in without for n in inside(e.body)} & some
    assert not any(example.extreme for example in without)
    assert any(example.extreme for example in MANY)


# The properties notice.

BRANCHED = Example(("residual", ("dense", 4, True)), extra=("vector",))


@pytest.fixture(scope="module", params=["linen", "nnx"])
def tuned(request) -> Run:
    run = run_of(replace(BRANCHED, library=request.param))
    run.scales  # noqa: B018
    return run


def changed(run: Run, unit: str, **factors: float) -> Run:
    """The run, with some factors of a unit multiplied."""
    again = run_of(run.example)
    scales = jax.tree.map(lambda s: s, run.scales)
    node: Any = scales
    for name in unit.split("/"):
        node = node[name]
    node |= {name: node[name] * factor for name, factor in factors.items()}
    again.__dict__["scales"] = scales
    return again


UNIT = {"linen": "Net_0/Dense_0", "nnx": "body/net/inner"}


@pytest.mark.parametrize(
    ("name", "factors"),
    [
        ("factors_are_positive", {"output": np.nan}),
        ("factors_are_positive", {"output_grad": 0.0}),
        ("outputs_are_at_their_targets", {"output": 1.03}),
        ("rules_hold", {"output_grad": 3.0}),
        ("the_same_key_gives_the_same_bits", {"output": 1 + 1e-6}),
        ("jitted_is_eager", {"output": 1 + 1e-4}),
    ],
)
def test_what_does_not_hold_is_noticed(name, factors, tuned):
    check = getattr(properties, name)
    check(tuned)
    with pytest.raises(Broken):
        check(changed(tuned, UNIT[tuned.example.library], **factors))


def test_turned_gradients_are_noticed(tuned):
    assert gradient_deviation(tuned)[0] < 1e-5
    properties.carried_gradients_are_true(tuned)
    unit = UNIT[tuned.example.library]
    worst, path = gradient_deviation(changed(tuned, unit, input_grad=3.0))
    assert worst > 1e-3
    assert path[0] in ("Dense_0", "Embed_0", "others")


def test_outputs_of_other_functions_are_noticed(tuned, monkeypatch):
    for name in ("factors_of_one_change_nothing", "folded_is_the_same"):
        getattr(properties, name)(tuned)
    plain, ones, scaled = tuned.forward(
        tuned.job.params, tuned.probed, tuned.scales, tuned.batches()[0]
    )
    off = jax.tree.map(lambda y: 1.01 * y, ones)
    monkeypatch.setitem(tuned.__dict__, "forward", lambda *_: (plain, off, scaled))
    with pytest.raises(Broken, match="factors of 1"):
        properties.factors_of_one_change_nothing(tuned)
    with pytest.raises(Broken, match="folded"):
        properties.folded_is_the_same(tuned)


def test_errors_are_judged(tuned):
    """Only those that the package raises itself, in words that fit."""
    own = lambda error: judged(raised_inside(error), tuned)
    assert isinstance(judged(raised(ValueError("has no units")), tuned), Broken)
    assert isinstance(own(ValueError("M has no units")), Refused)
    assert isinstance(own(ValueError("something else")), Broken)
    assert isinstance(own(KeyError("has no units")), Broken)
    assert isinstance(own(FloatingPointError("non-finite")), Broken)


def test_rounding_is_told_from_what_is_known(tuned):
    """The mean over what a norm has centered is nothing but last digits."""
    assert not tuned.outputs_are_rounding
    centered = Example(("group_norm", 1), width=1, batch=8, steps=3, outputs="pooled")
    assert run_of(centered).outputs_are_rounding
    moved = sensitivity(lambda p: p, {"a": np.ones(1000, np.float32)})
    assert 1 < moved / np.finfo(np.float32).eps < 4


def raised(error: Exception) -> Exception:
    try:
        raise error
    except Exception as caught:
        return caught


def raised_inside(error: Exception) -> Exception:
    """The error as if a line of the package had raised it."""
    line = compile("raise error", f"{properties.PACKAGE}/_some.py", "exec")
    try:
        exec(line, {"error": error})
    except Exception as caught:
        return caught
    raise AssertionError


def test_models_that_do_not_run_are_no_failures():
    with pytest.raises(Invalid):
        Run(Example(("attention", 3, False)))
    assert judge(Example(("attention", 3, False))).status == "invalid"
    assert judge(Example(("act", "tanh"), outputs="body")).status == "refused"


@LIBRARIES
def test_recorder_sees_through_loops(library):
    """Three layers under a scan, and one that is called three times."""
    body = ("dense", 4, True)
    layers = ("scan", 3, 0, True, body), 3, 3
    calls = ("shared", 3, body), 1, 3
    for node, count, total in (layers, calls):
        run = run_of(Example(node, outputs="body", library=library))
        scales = to_tree(ones(run.graph.units))
        record = lambda scales, run=run: run.record(
            run.job.params, scales, run.batches()[0]
        )
        jax.jit(record)(scales)
        ((_, rms),) = run.recorder.rms().items()
        ((_, squares),) = run.recorder.squares.items()
        assert len(rms) == count
        assert sum(map(len, squares.values())) == total
        assert np.all(np.array(rms) > 0)


# Simpler examples, and the command.


def test_a_failing_example_is_made_simpler():
    fails = lambda e: any(node[0] == "scan" for node in inside(e.body))
    example = next(e for e in MANY if fails(e) and len(list(inside(e.body))) > 4)
    least = shrunk(example, fails, tries=500)
    assert fails(least)
    assert [node[0] for node in inside(least.body)] == ["scan", "act"]
    assert least == Example(least.body)
    assert shrunk(example, fails, tries=0) == example


def test_kinds_of_failures_have_no_numbers():
    same = [
        Verdict("failed", f"'a_{i}/b' has rms [0.{i}], expected 1", "p") for i in (1, 2)
    ]
    assert len({failure_kind(verdict) for verdict in same}) == 1
    other = Verdict("failed", "'a_1/b' is not called", "p")
    assert failure_kind(other) != failure_kind(same[0])


def test_the_command_resumes_and_tells(tmp_path, monkeypatch, capsys):
    """A record for each example, once; what had begun and not ended is a failure."""
    seen = []

    def fake(example: Example) -> Verdict:
        seen.append(example)
        failed = "conv" in repr(example.body)
        return Verdict("failed", "it is off", "p") if failed else Verdict("ok")

    monkeypatch.setattr(properties, "judge", fake)
    out = tmp_path / "out.jsonl"
    nnx = ["--library", "nnx", "--examples", "1", "--out", str(tmp_path / "nnx.jsonl")]
    main(nnx)
    assert seen[0] == numbered(0, 0, library="nnx")
    seen.clear()
    given = ["--seed", "3", "--out", str(out), "--tries", "30"]
    assert main(["--examples", "2", "--without", "conv,conv_transpose", *given]) == 0
    assert len(seen) == 2
    assert main(["--examples", "60", *given]) == 1
    assert seen[2] == numbered(3, 2)
    said = capsys.readouterr().out
    assert "times p: it is off" in said
    assert "Example(body=('conv" in said
    assert {r["status"] for r in records(out).values()} == {"ok", "failed"}
    with out.open("a") as file:
        print(
            json.dumps({"number": 60, "spec": "Example()", "status": "begun"}),
            file=file,
        )
    assert records(out)[60]["kind"] == "the process ended"
