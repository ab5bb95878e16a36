"""How close to 1 the three pillars end, on the tuned batch and on fresh ones.

    python -m tests.benchmarks.accuracy.pillars [--deepest 64]

Plain networks of width 256 on random inputs and labels, batch 256. A fresh batch has
fresh labels too; a unit's rms is averaged over ten of them.
"""

from collections.abc import Iterator, Sequence

import jax
import numpy as np

import einit_jax as ei
from tests.benchmarks.cost.networks import ACTIVATIONS, Plain, dense
from tests.benchmarks.cost.timing import compilations
from tests.benchmarks.report import parser_of, show, verdict
from tests.support.cases import Job

DEPTHS = (4, 16, 64)
PILLARS = {
    "activations": "output_rms",
    "gradients": "input_grad_rms",
    "updates": "update_rms",
}
SAME = dict.fromkeys(PILLARS, 0.01)
FRESH = {"activations": 0.05, "gradients": 0.15, "updates": 0.15}
DRAWS = dict.fromkeys(PILLARS, 0.10)
KEY = jax.random.key(0)
ORIGINAL = {"like": "original"}  # each unit's own update is then 1
FRESH_KEYS = [jax.random.key(100 + i) for i in range(10)]

Columns = dict[str, np.ndarray]


def measured(job: Job, scales: dict, key: jax.Array) -> Columns:
    """Each pillar's rms, one entry a unit, on the batch that the key draws."""
    found = ei.measure(*job[:4], scales=scales, key=key)
    return {pillar: np.asarray(getattr(found, f)) for pillar, f in PILLARS.items()}


def averaged(job: Job, scales: dict) -> Columns:
    """Each pillar's rms, averaged over ten fresh batches."""
    found = [measured(job, scales, key) for key in FRESH_KEYS]
    return {pillar: np.mean([f[pillar] for f in found], 0) for pillar in PILLARS}


def far(rms: np.ndarray) -> float:
    """How far from 1 the worst unit is."""
    return float(np.max(np.abs(rms - 1)))


def same_row(columns: Columns) -> dict[str, str]:
    return {
        f"{p} <= {SAME[p]:.0%}": verdict(far(columns[p]), SAME[p], ".1e")
        for p in PILLARS
    }


def fresh_row(columns: Columns) -> dict[str, str]:
    row = {}
    for p in PILLARS:
        middle = float(np.median(columns[p]))
        grade = "ok" if abs(middle - 1) <= FRESH[p] else "MISS"
        row[f"{p}: median, 1 ± {FRESH[p]:.0%}"] = f"{middle:.3f} {grade}"
        row[f"{p}: worst"] = f"{columns[p][np.argmax(np.abs(columns[p] - 1))]:.3f}"
    return row


def draws_row(columns: Columns) -> dict[str, str]:
    return {
        f"{p}: worst |rms - 1| <= {DRAWS[p]:.0%}": verdict(
            far(columns[p]), DRAWS[p], ".3f"
        )
        for p in PILLARS
    }


def networks(deepest: int) -> Iterator[tuple[str, Job]]:
    for activation in ACTIVATIONS:
        for depth in DEPTHS:
            if depth <= deepest:
                model = Plain(depth, activation=activation)
                yield f"{activation} {depth}", dense(model, batch=256)


def main(words: Sequence[str] | None = None) -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--deepest", type=int, default=DEPTHS[-1])
    same, fresh, draws, compiled = [], [], [], 0
    given = parser.parse_args(words)
    tiny = [("tanh 3", dense(Plain(3, 16), batch=8))]
    for name, job in tiny if given.tiny else networks(given.deepest):
        model = {"network": name}
        scales = ei.tune(*job[:4], key=KEY, **ORIGINAL)
        same.append(model | same_row(measured(job, scales, KEY)))
        fresh.append(model | fresh_row(averaged(job, scales)))
        call = lambda job=job, s=scales: measured(job, s, FRESH_KEYS[0])
        compiled += compilations(call)
        scales = ei.tune(*job[:4], key=KEY, draws=16, **ORIGINAL)
        draws.append(model | draws_row(averaged(job, scales)))
    show("worst |rms - 1| on the batch that was tuned", same)
    show("mean rms over 10 fresh batches: median unit and worst unit", fresh)
    show("tuned with draws=16: worst unit of the mean over 10 fresh batches", draws)
    print(f"compilations of further calls of measure <= 0: {verdict(compiled, 0, 'd')}")


if __name__ == "__main__":
    main()
