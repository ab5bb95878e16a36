"""Side by side with the PyTorch original, empirical_init 0.0.2.

    python -m tests.benchmarks.cost.original [--deepest 64]

Needs `pip install torch` and `pip install --no-deps empirical_init==0.0.2`. Both tune
the network of the original's own test, and tanh networks of width 128, at batch 64. The
original's pillars are computed in float64; the gradient of the first unit's input,
which it leaves alone, is left out. It draws weights anew and has no batch of its own.
"""

import contextlib
import copy
import io
import itertools
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import torch

import einit_jax as ei
from tests.benchmarks.cost.networks import Plain
from tests.benchmarks.cost.theirs import Theirs, pillars_of_theirs, tune_theirs
from tests.benchmarks.cost.timing import medians
from tests.benchmarks.report import parser_of, show, verdict
from tests.support.cases import Job, cross_entropy, make, normal

DEPTHS = (4, 16, 64)
ROUNDS = 3
KEY = jax.random.key(0)
FRESH = range(100, 110)
PILLARS = ("activations", "gradients", "updates")
OWN = (20, 64, 128, 256, 256, 256, 128, 32, 2)  # tanh after the fourth, else relu


class Own(nn.Module):
    """The network of the original's test."""

    @nn.compact
    def __call__(self, x):
        for i, size in enumerate(OWN[1:]):
            x = nn.Dense(size, use_bias=i < 2, name=f"layer{i}")(x)
            if size > 2:
                x = jnp.tanh(x) if i == 3 else nn.relu(x)
        return nn.softmax(x)


def log_loss(probabilities, key):
    labels = jax.random.randint(key, (len(probabilities), 1), 0, 2)
    return -jnp.log(jnp.take_along_axis(probabilities, labels, 1)).mean()


def own_network() -> tuple[Job, torch.nn.Module, int]:
    between = lambda i: torch.tanh if i == 3 else torch.relu
    theirs = Theirs(OWN, 2, between, lambda x: x.softmax(-1))
    return make(Own(), normal(64, OWN[0]), log_loss), theirs, OWN[0]


def tanh_network(depth: int) -> tuple[Job, torch.nn.Module, int]:
    sizes = (*[128] * depth, 10)
    theirs = Theirs(sizes, depth, lambda i: torch.tanh, lambda x: x)
    return make(Plain(depth, 128), normal(64, 128), cross_entropy), theirs, 128


def pillars_of_ours(job: Job, scales: dict, key: jax.Array) -> np.ndarray:
    m = ei.measure(*job[:4], scales=scales, key=key)
    return np.stack([m.output_rms, m.input_grad_rms, m.update_rms])


def times(name: str, job: Job, theirs: torch.nn.Module, width: int) -> dict[str, str]:
    """A row of the wall times of both, and their ratios."""
    with contextlib.redirect_stdout(io.StringIO()):
        call = {"original": lambda: tune_theirs(copy.deepcopy(theirs), width)}
        slow = medians(call, ROUNDS)[0]["original"]
    call = {"tune": lambda: ei.tune(*job[:4], key=KEY, like="original")}
    cold = medians(call, ROUNDS, before=jax.clear_caches)[0]["tune"]
    warm = medians(call, 21)[0]["tune"]
    return {
        "network": name,
        "original s": f"{slow:.2f}",
        "cold s": f"{cold:.2f}",
        "warm s": f"{warm:.4f}",
        "cold / original <= 1": verdict(cold / slow, 1),
        "warm / original <= 1": verdict(warm / slow, 1, ".5f"),
    }


def ends(name: str, job: Job, theirs: torch.nn.Module, width: int) -> list[dict]:
    """Where both end; rms values averaged over fresh batches, and on the tuned one."""
    with contextlib.redirect_stdout(io.StringIO()):
        tune_theirs(theirs, width)
    scales = ei.tune(*job[:4], key=KEY, like="original")
    fresh = [pillars_of_ours(job, scales, jax.random.key(i)) for i in FRESH]
    by = {
        "original, fresh": np.mean(
            [pillars_of_theirs(theirs, width) for _ in FRESH], 0
        ),
        "einit_jax, fresh": np.mean(fresh, 0),
        "einit_jax, tuned": pillars_of_ours(job, scales, KEY),
    }
    return [{"network": name, "by": b} | spread(columns) for b, columns in by.items()]


def spread(columns: np.ndarray) -> dict[str, str]:
    """The least, the median and the largest rms of each pillar."""
    row = {}
    for name, rms in zip(PILLARS, columns, strict=True):
        rms = rms[1:] if name == "gradients" else rms
        row[f"{name}, 1"] = f"{rms.min():.3f} {np.median(rms):.3f} {rms.max():.3f}"
    return row


def main(words: Sequence[str] | None = None) -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--deepest", type=int, default=DEPTHS[-1])
    given = parser.parse_args(words)
    depths = [2] if given.tiny else [d for d in DEPTHS if d <= given.deepest]
    torch.manual_seed(0)
    torch.set_num_threads(1)  # at these sizes several times faster than two
    with contextlib.redirect_stdout(io.StringIO()):
        built = {"original's test": own_network()}
        built |= {f"tanh {d}": tanh_network(d) for d in depths}
    show("wall time of tuning", [times(name, *b) for name, b in built.items()])
    found = itertools.chain(*[ends(name, *b) for name, b in built.items()])
    show("rms: least, median and largest unit; fresh: mean over 10 batches", found)


if __name__ == "__main__":
    main()
