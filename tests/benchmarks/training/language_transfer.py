"""One learning rate for a language model of any width and depth: three ways to get it.

    python -m tests.benchmarks.training.language_transfer [--out FILE]
    python -m tests.benchmarks.training.language_transfer --read FILE [--markdown FILE]

The decoder and the text of `language`, trained by Adam with 10% of warm-up, a cosine
and gradients clipped at norm 1, at a grid of powers of two:

- "one rate": the model as it is, AdamW with decay 0.1 and one rate for all parameters;
- "muP": the same, rewritten by hand after Yang et al. (2022, arXiv 2203.03466): logits
  times 1/m, attention by the reciprocal of a head's size, rates of hidden matrices
  times 1/m, where m is the width over that of the base model, 32;
- "CompleteP": that, and after Dey et al. (2025, arXiv 2505.01618) branches times 1/n,
  where n is the depth over that of the base model, 4;
- "tune": the model as it is, `tune`, no decay;
- "looks_linear, tune": the same from weights that `looks_linear` draws.

Of the base model the first three are the same training.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial, wraps
from itertools import product
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import optax

import einit_jax as ei
from einit_jax._demo import cross_entropy
from tests.benchmarks.report import ruled, show
from tests.benchmarks.training import language
from tests.benchmarks.training.kinds import SMALL, WINDOW
from tests.benchmarks.training.language import (
    ALPHABET,
    EVERY,
    RUN,
    Decoder,
    options_of,
    records_of,
)

BASE_WIDTH, BASE_DEPTH, HEADS, DECAY = 32, 4, 2, 0.1
ONE, MUP, COMPLETE = "one rate", "muP", "CompleteP"
TUNE, LINEAR = "tune", "looks_linear, tune"
WAYS = {
    ONE: (-11, -4),
    MUP: (-9, -3),
    COMPLETE: (-9, -3),
    TUNE: (-1, 3),
    LINEAR: (-1, 3),
}
"""log2 of the rates that each tries."""
OVER = {"width": (ONE, MUP, TUNE, LINEAR), "depth": (ONE, COMPLETE, TUNE, LINEAR)}
"""Along each axis, those that differ."""


class RewrittenBlock(nn.Module):
    """The block of `kinds`, with the factors that muP and CompleteP write into it."""

    width: int
    norm: bool
    branch: float

    @nn.compact
    def __call__(self, x):
        sharper = (BASE_WIDTH / self.width) ** 0.5

        @wraps(nn.dot_product_attention)  # Flax passes a mask to who names one
        def attention(query, *rest, **options):
            return nn.dot_product_attention(sharper * query, *rest, **options)

        norm: Callable = lambda name: (
            nn.LayerNorm(name=name) if self.norm else lambda x: x
        )
        attend = nn.MultiHeadDotProductAttention(
            HEADS, attention_fn=attention, name="attention"
        )
        mask = nn.make_causal_mask(x[..., 0])
        x = x + self.branch * attend(norm("norm_a")(x), mask=mask)
        h = nn.gelu(nn.Dense(2 * self.width, name="up")(norm("norm_b")(x)))
        return x + self.branch * nn.Dense(self.width, name="down")(h)


class RewrittenDecoder(nn.Module):
    """`Decoder`, rewritten: equal to it where width and `branch` are the base's."""

    width: int
    depth: int
    norm: bool
    branch: float = 1.0

    @nn.compact
    def __call__(self, x):
        embed = nn.Embed(ALPHABET, self.width, embedding_init=SMALL, name="characters")
        y = embed(x)
        y = y + self.param("positions", SMALL, (WINDOW, self.width))
        for i in range(self.depth):
            block = RewrittenBlock(self.width, self.norm, self.branch, name=f"block{i}")
            y = block(y)
        y = nn.LayerNorm(name="norm")(y) if self.norm else y
        return BASE_WIDTH / self.width * embed.attend(y)


def by_hand(
    model: RewrittenDecoder, _: str, rate: Any, steps: int, __: Any
) -> optax.GradientTransformation:
    """AdamW with rates of hidden matrices that fall with the width."""

    def own(path: tuple, update: jax.Array) -> jax.Array:
        names = jax.tree_util.keystr(path)
        hidden = "block" in names and "kernel" in names
        return update * (BASE_WIDTH / model.width if hidden else 1)

    eps = 1e-8 * BASE_WIDTH / model.width * model.branch
    shape = optax.warmup_cosine_decay_schedule(0.0, 1.0, steps // 10, steps)
    slowed = lambda updates, params=None: jax.tree.map_with_path(own, updates)
    return optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.scale_by_adam(b2=0.95, eps=eps),
        optax.stateless(slowed),
        optax.add_decayed_weights(DECAY),
        optax.scale_by_learning_rate(lambda count: rate * shape(count)),
    )


def prepared(run: Mapping[str, Any]) -> tuple[Any, Any, Callable]:
    """Parameters of a run, factors if any, and its training."""
    width, depth, norm, way = (run[name] for name in ("width", "depth", "norm", "way"))
    if way in (MUP, COMPLETE):
        branch = BASE_DEPTH / depth if way == COMPLETE else 1.0
        model = RewrittenDecoder(width, depth, norm, branch)
        params, _ = language.drawn(model, run["seed"])
        train = language.training(way, model, run["steps"], partial(by_hand, model))
        return params, None, train
    model = Decoder(width, depth, norm)
    known = language.USUAL if way == ONE else language.WARM
    if way == TUNE:
        params, batch = language.drawn(model, run["seed"])
        scales = ei.tune(model, params, batch, cross_entropy, optimizer=optax.adam)
    else:
        params, scales = language.started(known, model, run["seed"])
    return params, scales, language.training(known, model, run["steps"])


def record_of(run: Mapping[str, Any], rates: Sequence[int]) -> dict[str, Any]:
    """One way, size and seed at all rates."""
    params, scales, train = prepared(run)
    return {**run, **language.losses(train(params, scales, run["seed"], rates), rates)}


def measured(given: Any, known: Sequence[Mapping]) -> Iterator[dict]:
    """The records that are not known yet."""
    done = {tuple(r[name] for name in RUN) for r in known}
    norms = [which == "with" for which in given.norm]
    sizes = [(width, given.depth, OVER["width"]) for width in given.widths]
    sizes += [(BASE_WIDTH, depth, OVER["depth"]) for depth in given.depths]
    for norm, (width, depth, ways), seed in product(norms, sizes, range(given.seeds)):
        for way in (way for way in ways if way in given.ways):
            run = (way, norm, width, depth, given.steps, seed)
            if run not in done:
                done.add(run)
                low, high = (0, 1) if given.tiny else WAYS[way]
                yield record_of(dict(zip(RUN, run, strict=True)), range(low, high + 1))


def summary(records: Sequence[Mapping]) -> Iterator[dict[str, str]]:
    """A line for each way, over widths and over depths, with and without LayerNorm."""
    for norm, axis in product((True, False), ("width", "depth")):
        other = "depth" if axis == "width" else "width"
        own = [r for r in records if r["norm"] == norm]
        usual = Counter(r[other] for r in own).most_common(1)
        for way in OVER[axis]:
            sizes: dict[int, list[Mapping]] = {}
            for r in own:
                if r["way"] == way and r[other] == usual[0][0]:
                    sizes.setdefault(r[axis], []).append(r)
            if len(sizes) > 1:
                names = ", ".join(map(str, sorted(sizes)))
                over = f"{axis} {names}, {'LayerNorm' if norm else 'no norm'}"
                yield {"over": over, "way": way, **line_of(sizes)}


def line_of(sizes: Mapping[int, Sequence[Mapping]]) -> dict[str, str]:
    """Best rates of all sizes, and what the smallest one's does to the largest."""
    told, bests, losses = [], [], {}
    for size in sorted(sizes):
        rates = sizes[size][0]["log2_rates"]
        ends = np.mean([r["held_out"] for r in sizes[size]], 0)
        losses = dict(zip(rates, ends, strict=True))
        bests.append(min(losses, key=losses.__getitem__))
        told.append(f"{bests[-1]}{'*' if bests[-1] in (rates[0], rates[-1]) else ''}")
    return {
        "log2 of the best rates": ", ".join(told),
        "octaves": str(max(bests) - min(bests)),
        "largest, best rate": f"{losses[bests[-1]]:.2f}",
        "at the smallest's": f"{losses.get(bests[0], np.nan):.2f}",
        "seeds": str(len(sizes[max(sizes)])),
    }


def markdown(records: Sequence[Mapping]) -> str:
    """The table of the benchmarks' page."""
    rows = list(summary(records))
    return ruled(rows[0], (row.values() for row in rows))


def main(words: Sequence[str] | None = None) -> None:
    parser = options_of(__doc__, WAYS)
    parser.add_argument("--widths", type=int, nargs="*", default=[32, 64, 128, 256])
    parser.add_argument("--depths", type=int, nargs="*", default=[2, 4, 8, 16])
    given = parser.parse_args(words)
    if given.tiny:
        given.widths, given.depths, given.depth = [8, 16], [], 1
        given.norm, given.seeds, given.steps = ["with"], 1, EVERY
        given.ways = [MUP, LINEAR]
    records = records_of(given, measured)
    show("best rates; * at an end of those tried; held-out nats", summary(records))
    if given.markdown:
        given.markdown.write_text(markdown(records) + "\n")


if __name__ == "__main__":
    main()
