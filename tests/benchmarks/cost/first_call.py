"""What a first call costs, over the first gradient step of the same model, in CPU time.

    python -m tests.benchmarks.cost.first_call [--out runs.jsonl] [--read runs.jsonl]

Each row is a process of its own, in which a small network was tuned and trained first,
so that nothing else is new. "tune" is compiled as it is outside of `jax.jit`, "full
effort" as if its arrays were large, "jit(tune)" by `jax.jit`. Later calls are
medians of five, over the medians of later steps. CPU time counts all threads.
"""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any
from unittest import mock

import jax

import einit_jax as ei
from einit_jax.binding import _compilation
from tests.benchmarks.cost import networks
from tests.benchmarks.cost.networks import Plain, Scanned, dense, gradient_step, vision
from tests.benchmarks.cost.speed import step_arguments
from tests.benchmarks.report import parser_of, read_records, show, verdict, written
from tests.support.cases import Job

NETWORKS: dict[str, Callable[[], Job]] = {
    "MLP 16": lambda: dense(Plain(16)),
    "MLP 64": lambda: dense(Plain(64)),
    "scanned MLP 64": lambda: dense(Scanned(64)),
    "ViT": lambda: vision(networks.ViT()),
    "ResNet": lambda: vision(networks.ResNet()),
}
TINY: dict[str, Callable[[], Job]] = {"MLP 3": lambda: dense(Plain(3, 16), 8)}
VERBS = {"measure": ei.measure, "looks_linear": ei.looks_linear}
WAYS = ("tune", "tune, full effort", "jit(tune)", *VERBS, "looks_linear, full effort")
AIM = 2.0
"""How many first steps a first call of `tune` is to take at most."""


def calls_of(job: Job, way: str) -> tuple[Callable, Callable]:
    """A gradient step, and what is compared with it."""
    params, _, x, key = given = step_arguments(job)
    verb = VERBS.get(way.partition(",")[0], ei.tune)
    run = partial(verb, loss_fn=job.loss_fn, key=key, **job.options)
    call = lambda params, x: run(job.model, params, x)
    call = jax.jit(call) if way.startswith("jit") else call
    step = gradient_step(job)
    return lambda: step(*given), lambda: call(params, x)


def cpu_seconds(call: Callable) -> float:
    """The CPU time of a call, of all threads."""
    start = time.process_time()
    jax.block_until_ready(call())
    return time.process_time() - start


def row(name: str, way: str) -> dict[str, Any]:
    """The numbers of one network and way; in a process that has run neither."""
    full = mock.patch.object(_compilation, "is_worth_it", lambda _: False)
    for call in calls_of(dense(Plain(2, 8), 4), way):
        cpu_seconds(call)
    with full if "full" in way else nullcontext():
        calls = calls_of({**NETWORKS, **TINY}[name](), way)
        first = list(map(cpu_seconds, calls))
        later = [statistics.median(cpu_seconds(c) for _ in range(5)) for c in calls]
    return {"network": name, "way": way, "first": first, "later": later}


def in_a_process(name: str, way: str) -> dict[str, Any]:
    """The same, in a process of its own."""
    code = "import json; from tests.benchmarks.cost.first_call import row; "
    code += f"print(json.dumps(row({name!r}, {way!r})))"
    run = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    )
    return json.loads(run.stdout.splitlines()[-1])


def shown(record: dict[str, Any]) -> dict[str, str]:
    (step, call), (later_step, later) = record["first"], record["later"]
    ratio = call / step
    aimed = record["way"] == "tune"
    return {
        "network": record["network"],
        "call": record["way"],
        "first, s": f"{call:.2f}",
        f"over first step <= {AIM}": verdict(ratio, AIM) if aimed else f"{ratio:.2f}",
        "later over step": f"{later / later_step:.2f}",
    }


def main(words: Sequence[str] | None = None) -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--out", type=Path, help="a line for each row, as it is there")
    parser.add_argument("--read", type=Path, help="shows what was written")
    given = parser.parse_args(words)
    if given.read:
        records = read_records(given.read)
    else:
        ways = WAYS[:2] if given.tiny else WAYS
        runs = product(TINY if given.tiny else NETWORKS, ways)
        found = (in_a_process(name, way) for name, way in runs)
        records = list(written(found, given.out))
    show("first calls, CPU time", map(shown, records))


if __name__ == "__main__":
    main()
