"""What `tune` costs on a model of NNX, beside the same network in Linen.

    python -m tests.benchmarks.cost.bindings

`step` is the first, or a later, jitted gradient of the plain model's loss; `tune` the
whole call with its defaults. First calls are with empty caches: trace, compilation and
run together. All take turns; ratios are of medians.
"""

import itertools
from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx

import einit_jax as ei
from tests.benchmarks.cost.networks import Plain
from tests.benchmarks.cost.timing import medians
from tests.benchmarks.report import parser_of, show, verdict

COLD, WARM = 1.5, 1.2
KEY = jax.random.key(0)


class PlainNnx(nnx.Module):
    """Dense layers with an activation between: the twin of `networks.Plain`."""

    def __init__(self, depth: int, width: int, rngs: nnx.Rngs):
        sizes = [64, *[width] * (depth - 1), 10]
        pairs = itertools.pairwise(sizes)
        self.layers = nnx.List([nnx.Linear(a, b, rngs=rngs) for a, b in pairs])

    def __call__(self, x: jax.Array) -> jax.Array:
        *hidden, head = self.layers
        for layer in hidden:
            x = nnx.relu(layer(x))
        return head(x)


class Block(nn.Module):
    """A transformer's block before whose parts a norm is."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = nn.LayerNorm()(x)
        x = x + nn.MultiHeadDotProductAttention(4)(y, y)
        y = nn.Dense(4 * x.shape[-1])(nn.LayerNorm()(x))
        return x + nn.Dense(x.shape[-1])(nn.gelu(y))


class Blocks(nn.Module):
    depth: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for _ in range(self.depth):
            x = Block()(x)
        return nn.Dense(10)(nn.LayerNorm()(x)).mean(1)


class BlockNnx(nnx.Module):
    """The twin of `Block`."""

    def __init__(self, width: int, rngs: nnx.Rngs):
        self.norms = nnx.List([nnx.LayerNorm(width, rngs=rngs) for _ in range(2)])
        self.attention = nnx.MultiHeadAttention(4, width, decode=False, rngs=rngs)
        self.up = nnx.Linear(width, 4 * width, rngs=rngs)
        self.down = nnx.Linear(4 * width, width, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        first, second = self.norms
        y = first(x)
        x = x + self.attention(y, y)
        return x + self.down(nnx.gelu(self.up(second(x))))


class BlocksNnx(nnx.Module):
    def __init__(self, depth: int, rngs: nnx.Rngs):
        self.blocks = nnx.List([BlockNnx(64, rngs) for _ in range(depth)])
        self.norm = nnx.LayerNorm(64, rngs=rngs)
        self.head = nnx.Linear(64, 10, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)).mean(1)


def loss_fn(outputs: jax.Array) -> jax.Array:
    labels = jnp.arange(len(outputs)) % 10
    return -jnp.mean(jax.nn.log_softmax(outputs)[jnp.arange(len(outputs)), labels])


def pairs(tiny: bool) -> dict[str, tuple[nn.Module, nnx.Module, jax.Array]]:
    """The networks: in Linen, in NNX, and what they are run on."""
    rngs, flat = nnx.Rngs(0), jax.random.normal(KEY, (256, 64))
    if tiny:
        return {"MLP 3": (Plain(3, 16), PlainNnx(3, 16, rngs), flat[:8])}
    series = jax.random.normal(KEY, (32, 16, 64))
    both = lambda n: (Plain(n), PlainNnx(n, Plain(n).width, rngs))
    blocks = (Blocks(6), BlocksNnx(6, rngs), series)
    return {f"MLP {n}": (*both(n), flat) for n in (4, 16, 64)} | {"blocks 6": blocks}


def contenders(linen: nn.Module, own: nnx.Module, x: jax.Array) -> dict[str, Callable]:
    """A gradient step and `tune`, in both libraries."""
    params = linen.init(KEY, x)["params"]
    graphdef, state = nnx.split(own)
    of_linen = lambda params: loss_fn(jnp.asarray(linen.apply({"params": params}, x)))
    of_nnx = lambda state: loss_fn(nnx.merge(graphdef, state)(x))
    steps = [jax.jit(jax.value_and_grad(loss)) for loss in (of_linen, of_nnx)]
    return {
        "step": lambda: steps[0](params),
        "step, NNX": lambda: steps[1](state),
        "tune": lambda: ei.tune(linen, params, x, loss_fn),
        "tune, NNX": lambda: ei.tune(own, None, x, loss_fn),
    }


def row(name: str, calls: dict[str, Callable], rounds: int, **how: Callable) -> dict:
    middle, _ = medians(calls, rounds, **how)
    over = middle["tune"] / middle["step"]
    over_nnx = middle["tune, NNX"] / middle["step, NNX"]
    return {
        "model": name,
        **{f"{key} ms": f"{1e3 * time:.1f}" for key, time in middle.items()},
        "tune / step": f"{over:.2f}",
        "NNX": f"{over_nnx:.2f}",
        "NNX / Linen": verdict(over_nnx / over, COLD if how else WARM),
    }


def main(words: Sequence[str] | None = None) -> None:
    given = parser_of(__doc__).parse_args(words)
    cold, warm = [], []
    for name, models in pairs(given.tiny).items():
        calls = contenders(*models)
        cold.append(row(name, calls, 1 if given.tiny else 3, before=jax.clear_caches))
        for call in calls.values():
            jax.block_until_ready(call())
        warm.append(row(name, calls, 3 if given.tiny else 31))
    show(f"first calls, NNX / Linen <= {COLD}", cold)
    show(f"later calls, NNX / Linen <= {WARM}", warm)


if __name__ == "__main__":
    main()
