"""A language model of Python's own source: `tune` at its rate, and the usual recipe.

    python -m tests.benchmarks.training.language [--widths 32 64 128] [--out FILE]
    python -m tests.benchmarks.training.language --read FILE [--figure FILE.svg]

A decoder of 4 blocks, with LayerNorm or without any, learned positions and embeddings
that are the head as well, reads 64 characters of the standard library of the Python
that runs it (its licence: PSF-2.0); every tenth file is held out. All ways train for
the same steps on the same batches:

- "Adam": weights as GPT-2 draws embeddings (normal, 0.02), all others as Flax does; a
  rate that falls by a cosine;
- "AdamW, warm-up": with what is customary: 10% of warm-up, gradients clipped at norm 1,
  b2 = 0.95, decay 0.1;
- "tuned": `looks_linear`, then `tune`; Adam at a rate that falls by a cosine, without
  warm-up and clipping;
- "tuned, warm-up": that with the same warm-up and clipping.

Each tries a grid of powers of two. A record is one way, network and seed: the held-out
loss in nats per character at the end, and the training loss on the way.
"""

import argparse
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache, lru_cache
from itertools import product
from pathlib import Path
from sysconfig import get_path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import einit_jax as ei
from einit_jax._demo import cross_entropy
from tests.benchmarks.report import parser_of, read_records, ruled, show, written
from tests.benchmarks.training.curves import training_figure
from tests.benchmarks.training.kinds import SMALL, WINDOW, Block, Examples, windows

ALPHABET, BATCH, EVERY = 128, 16, 10
"""Characters that are told apart, windows in a batch, steps between kept losses."""
HELD_OUT = 64
"""Windows on which the end is judged, of files that were not trained on."""
CUSTOMARY = -11
"""log2 of the rate that GPT-2's size is trained at: 6e-4, to a fifth."""
PLAIN, USUAL, TUNED, WARM = "Adam", "AdamW, warm-up", "tuned", "tuned, warm-up"
RATES = {PLAIN: (-11, -3), USUAL: (-11, -3), TUNED: (-2, 4), WARM: (-2, 4)}
ADVISED = {PLAIN: CUSTOMARY, USUAL: CUSTOMARY, TUNED: 0, WARM: 0}
"""log2 of the rate that one takes who does not search."""
RUN = ("way", "norm", "width", "depth", "steps", "seed")


class Decoder(nn.Module):
    """Tells each next character."""

    width: int
    depth: int = 4
    norm: bool = True

    @nn.compact
    def __call__(self, x):
        embed = nn.Embed(ALPHABET, self.width, embedding_init=SMALL, name="characters")
        y = embed(x)
        y = y + self.param("positions", SMALL, (WINDOW, self.width))
        for i in range(self.depth):
            y = Block(self.width, causal=True, norm=self.norm, name=f"block{i}")(y)
        return embed.attend(nn.LayerNorm(name="norm")(y) if self.norm else y)


@cache
def source() -> tuple[Examples, Examples]:
    """Windows of the standard library's modules, and of those that are held out."""
    files = sorted(Path(get_path("stdlib")).glob("*.py"))
    texts = [file.read_bytes() for file in files]
    return examples(texts, held_out=False), examples(texts, held_out=True)


def examples(texts: Sequence[bytes], *, held_out: bool) -> Examples:
    """Of every tenth text, or of all others."""
    chosen = [t for i, t in enumerate(texts) if (i % 10 == 9) == held_out]
    codes = np.minimum(np.frombuffer(b"".join(chosen), np.uint8), ALPHABET - 1)
    return Examples(*windows(codes.astype(np.int32)))


def recipe(
    way: str, rate: Any, steps: int, scales: Any
) -> optax.GradientTransformation:
    """The optimizer of a way at a peak rate."""
    warm = way in (USUAL, WARM)
    shape = optax.cosine_decay_schedule(1.0, steps)
    if warm:
        shape = optax.warmup_cosine_decay_schedule(0.0, 1.0, steps // 10, steps)
    schedule = lambda count: rate * shape(count)
    own = optax.adam(schedule)
    if way == USUAL:
        own = optax.adamw(schedule, b2=0.95, weight_decay=0.1)
    clip = [optax.clip_by_global_norm(1.0)] if warm else []
    behind = [] if scales is None else [ei.scale_updates(scales)]
    return optax.chain(*clip, own, *behind)


@lru_cache(1)
def training(
    way: str, model: nn.Module, steps: int, recipe: Callable = recipe
) -> Callable:
    """A function of variables, rows and rates: losses on the way, and held out."""
    learn, rest = source()
    chosen = np.random.default_rng(1).permutation(len(rest.labels))[:HELD_OUT]
    test = Examples(*(jnp.asarray(x[chosen]) for x in rest))

    def loss(params, scales, batch):
        applied = model if scales is None else ei.scaled(model)
        own = {} if scales is None else {"scales": scales}
        return cross_entropy(
            applied.apply({"params": params, **own}, batch.inputs), batch.labels
        )

    def train(params, scales, batches, rate):
        tx = recipe(way, rate, steps, scales)

        def step(carry, batch):
            params, state = carry
            value, gradient = jax.value_and_grad(loss)(params, scales, batch)
            change, state = tx.update(gradient, state, params)
            return (optax.apply_updates(params, change), state), value

        (params, _), seen = jax.lax.scan(step, (params, tx.init(params)), batches)
        return jnp.mean(seen.reshape(-1, EVERY), 1), loss(params, scales, test)

    run = jax.jit(train)

    def over(params: Any, scales: Any, seed: int, rates: Sequence[int]) -> list[tuple]:
        rows = np.random.default_rng(seed).integers(
            len(learn.labels), size=(steps, BATCH)
        )
        batches = Examples(*(jnp.asarray(x[rows]) for x in learn))
        return [run(params, scales, batches, 2.0**rate) for rate in rates]

    return over


def drawn(model: nn.Module, seed: int) -> tuple[Any, ei.Batch]:
    """Parameters as Flax draws them, and a batch of its own."""
    learn, _ = source()
    rows = np.random.default_rng(1000 + seed).integers(len(learn.labels), size=BATCH)
    batch = ei.Batch(learn.inputs[rows], learn.labels[rows])
    return model.init(jax.random.key(seed), batch.inputs)["params"], batch


def started(way: str, model: Decoder, seed: int) -> tuple[Any, Any]:
    """Parameters, and factors where the way has them."""
    params, batch = drawn(model, seed)
    if way in (PLAIN, USUAL):
        return params, None
    params, found = ei.looks_linear(model, params, batch, with_report=True)
    options = {"optimizer": optax.adam, "targets": found.targets()}
    return params, ei.tune(model, params, batch, cross_entropy, **options)


def record_of(run: Mapping[str, Any], rates: Sequence[int]) -> dict[str, Any]:
    """One way, width and seed at all rates."""
    model = Decoder(run["width"], run["depth"], run["norm"])
    params, scales = started(run["way"], model, run["seed"])
    train = training(run["way"], model, run["steps"])
    return {**run, **losses(train(params, scales, run["seed"], rates), rates)}


def losses(found: Sequence[tuple], rates: Sequence[int]) -> dict[str, Any]:
    """What a record says of them: where training diverged, infinity."""
    curves, ends = zip(*found, strict=True)
    finite = lambda x: np.where(np.isfinite(x), x, np.inf).round(5).tolist()
    both = {"training": [finite(c) for c in curves], "held_out": finite(np.array(ends))}
    return {"log2_rates": list(rates), **both}


def measured(given: Any, known: Sequence[Mapping]) -> Iterator[dict]:
    """The records that are not known yet."""
    done = {tuple(r[name] for name in RUN) for r in known}
    norms = [which == "with" for which in given.norm]
    runs = product(norms, given.widths, range(given.seeds), given.ways)
    for norm, width, seed, way in runs:
        run = (way, norm, width, given.depth, given.steps, seed)
        if run not in done:
            low, high = (0, 1) if given.tiny else RATES[way]
            yield record_of(dict(zip(RUN, run, strict=True)), range(low, high + 1))


def summary(records: Sequence[Mapping]) -> Iterator[dict[str, str]]:
    """A line for each network and way: held-out losses, the mean over seeds."""
    groups: dict[tuple, list[Mapping]] = {}
    for r in records:
        groups.setdefault((not r["norm"], r["width"], r["way"]), []).append(r)
    order = [*RATES]
    place = lambda pair: (*pair[0][:2], order.index(pair[0][2]))
    for (plain, width, way), own in sorted(groups.items(), key=place):
        rates = own[0]["log2_rates"]
        losses = np.mean([r["held_out"] for r in own], 0)
        best = int(np.argmin(losses))
        at = dict(zip(rates, losses, strict=True))
        end = "*" if best in (0, len(rates) - 1) else ""
        yield {
            "network": f"width {width}, {'no norm' if plain else 'LayerNorm'}",
            "way": way,
            "without a search": f"{at.get(ADVISED[way], np.nan):.2f}, 2^{ADVISED[way]}",
            "at its best rate": f"{losses[best]:.2f}, 2^{rates[best]}{end}",
            "seeds": str(len(own)),
        }


def markdown(records: Sequence[Mapping]) -> str:
    """The table of the benchmarks' page: a line for each network, a column a way."""
    lines: dict[str, dict[str, str]] = {}
    for row in summary(records):
        both = f"{row['without a search']}; {row['at its best rate']}"
        lines.setdefault(row["network"], {})[row["way"]] = both
    rows = [[name, *(own.get(way, "") for way in RATES)] for name, own in lines.items()]
    return ruled(["", *RATES], rows)


def options_of(doc: str | None, ways: Iterable[str]) -> argparse.ArgumentParser:
    """The command line of trainings of the decoder by such ways."""
    parser = parser_of(doc)
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--ways", nargs="*", choices=ways, default=[*ways])
    both = ["with", "without"]
    parser.add_argument("--norm", nargs="*", choices=both, default=both)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--out", type=Path, help="append records as JSON lines")
    parser.add_argument("--read", type=Path, nargs="*", help="show records of --out")
    parser.add_argument("--markdown", type=Path, help="write the table of the page")
    return parser


def records_of(given: Any, measured: Callable) -> list[dict]:
    """Those that are read, or those that are known and those measured now."""
    files = given.read or [f for f in [given.out] if f and f.exists()]
    records = read_records(*files)
    if not given.read:
        records += written(measured(given, records), given.out)
    return records


def main(words: Sequence[str] | None = None) -> None:
    parser = options_of(__doc__, RATES)
    parser.add_argument("--widths", type=int, nargs="*", default=[32, 64, 128])
    parser.add_argument("--figure", type=Path, help="write training curves as a figure")
    given = parser.parse_args(words)
    if given.tiny:
        given.widths, given.depth, given.ways = [8], 1, [USUAL, TUNED]
        given.norm, given.seeds, given.steps = ["with"], 1, EVERY
    records = records_of(given, measured)
    show("nats per held-out character; * at an end of the rates", summary(records))
    if given.markdown:
        given.markdown.write_text(markdown(records) + "\n")
    if given.figure:
        training_figure(records, ADVISED).savefig(given.figure)


if __name__ == "__main__":
    main()
