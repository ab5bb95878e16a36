"""Any number of examples: `python -m tests.fuzz --examples 10000 --out runs.jsonl`.

Writes a line for each as it goes, and goes on where an earlier run of the same file
ended. At the end it tells each kind of failure once, with an example made simpler, and
the exit code is 1 if there is one. `--example "Example(...)"` runs that one. Models are
of Linen, or with `--library nnx` of NNX: of these in a file of their own.
"""

import argparse
import gc
import json
import os
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

FLAGS = (
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
    "--xla_cpu_use_fusion_emitters=false",
    "--xla_cpu_parallel_codegen_split_count=1",
)
FORGET = 20
"""After so many examples compiled programs are forgotten."""


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--examples", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("fuzz.jsonl"))
    parser.add_argument("--library", choices=("linen", "nnx"), default="linen")
    parser.add_argument("--without", default="", help="kinds to leave out, by commas")
    parser.add_argument("--tries", type=int, default=40, help="to make one simpler")
    parser.add_argument("--example", help="one example, as it was printed")
    return parser.parse_args(given)


def records(path: Path) -> dict[int, dict[str, Any]]:
    """The last record of each number; what was begun and not ended has crashed."""
    found: dict[int, dict[str, Any]] = {}
    if path.exists():
        for line in path.read_text().splitlines():
            try:
                record = json.loads(line)
            except json.JSONDecodeError:  # cut off while it was written
                continue
            found[record["number"]] = record
    for record in found.values():
        if record["status"] == "begun":
            record |= {"status": "failed", "kind": "the process ended", "message": ""}
    return found


def run_all(options: argparse.Namespace) -> dict[int, dict[str, Any]]:
    """Runs what is not yet recorded, and records it."""
    import jax

    from tests.fuzz.properties import judge
    from tests.fuzz.shrinking import failure_kind
    from tests.fuzz.strategies import numbered

    without = frozenset(filter(None, options.without.split(",")))
    done = records(options.out)
    with options.out.open("a") as file:
        for number in range(options.examples):
            if number in done:
                continue
            example = numbered(options.seed, number, without, options.library)
            record = {"number": number, "spec": repr(example), "status": "begun"}
            print(json.dumps(record), file=file, flush=True)
            start = time.monotonic()
            verdict = judge(example)
            record |= {"status": verdict.status, "message": verdict.message[:2000]}
            record |= {"seconds": round(time.monotonic() - start, 2)}
            if verdict.status == "failed":
                record["kind"] = failure_kind(verdict)
                print(f"{number}: {record['kind']}\n    {example}", flush=True)
            done[number] = record
            print(json.dumps(record), file=file, flush=True)
            if number % FORGET == FORGET - 1:
                jax.clear_caches()
                gc.collect()
    return done


def told(done: dict[int, dict[str, Any]], tries: int) -> int:
    """Tells each kind of failure once; the number of kinds."""
    from tests.fuzz.examples import Example
    from tests.fuzz.properties import judge
    from tests.fuzz.shrinking import failure_kind, shrunk

    print(dict(Counter(record["status"] for record in done.values())))
    kinds: dict[str, list[dict]] = {}
    for record in done.values():
        if record["status"] == "failed":
            kinds.setdefault(record["kind"], []).append(record)
    for kind, group in sorted(kinds.items(), key=lambda pair: -len(pair[1])):
        shortest = min(group, key=lambda record: len(record["spec"]))
        example = eval(shortest["spec"], {"Example": Example})
        fails = lambda e, kind=kind: failure_kind(judge(e)) == kind
        if kind != "the process ended":
            example = shrunk(example, fails, tries)
        print(
            f"{len(group)} times {kind}\n    {shortest['message'][:300]}\n    {example}"
        )
    return len(kinds)


def main(given: list[str] | None = None) -> int:
    """The exit code: 1 where something failed."""
    options = arguments(given)
    if options.example:
        from tests.fuzz.examples import Example
        from tests.fuzz.properties import judge

        verdict = judge(eval(options.example, {"Example": Example}))
        print(verdict)
        return int(verdict.status == "failed")
    return int(told(run_all(options), options.tries) > 0)


if __name__ == "__main__":
    os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *FLAGS])
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ["JAX_TRACEBACK_FILTERING"] = "off"
    gc.set_threshold(50_000, 20, 1_000_000)
    sys.exit(main())
