"""What courses teach of initialization, measured again.

    python -m tests.benchmarks.training.folklore [--seeds 10] [--steps 2400]

1. A classifier with two hidden layers of 256 and 128 units, ReLU, Adam at 0.001,
   batches of 50, biases 0, by how its weights are drawn: accuracy on images that it was
   not trained on. Published on Fashion-MNIST after 2 epochs, which are 2400 steps; here
   as many steps on 4/5 of scikit-learn's digits, enlarged to the same 28x28 pixels, for
   the same n; accuracy on the others.
2. The second moment of `x @ w`, all from N(0, 1): it grows as n, and ReLU halves it.
3. Fifty products with matrices from N(0, 1), 512 wide: they overflow.
4. Activations over depth, with many activation functions: AutoInit keeps them where
   defaults lose them.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import einit_jax as ei
from einit_jax._demo import cross_entropy
from tests.benchmarks.report import parser_of, show

RATE, BATCH, HELD_OUT = 1e-3, 50, 5
PUBLISHED = {  # accuracy in percent, from the worst to the best
    "all 0": "9.6",
    "all 1": "10.1",
    "uniform(0, 1)": "36.7",
    "uniform(-0.5, 0.5)": "75.8",
    "N(0, 1/n)": "84.7",
    "general rule": "85.2 to 85.8",
}
SIZES = (64, 256, 1024, 4096)
ACTS = ("relu", "tanh", "gelu", "silu", "selu", "sigmoid", "softplus")
CHANCE = 2
"""So many of them teach nothing; their order is that of noise."""


DRAWS: dict[str, Any] = {
    "all 0": 0.0,
    "all 1": 1.0,
    "uniform(0, 1)": "uniform",
    "uniform(-0.5, 0.5)": "uniform_half",
    "N(0, 1/n)": "normal_rule",
    "general rule": "general_rule",
}
"""What `ei.initialize` takes for each."""


class Classifier(nn.Module):
    """Two hidden layers."""

    @nn.compact
    def __call__(self, x):
        for width in (256, 128):
            x = nn.relu(nn.Dense(width)(x))
        return nn.Dense(10)(x)


def split() -> tuple:
    """Images with pixels from 0 to 1, and labels, to train on and to test with."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    images, labels = jnp.asarray(images[order] / 16), jnp.asarray(labels[order])
    squares = images.reshape(-1, 8, 8)
    images = jax.image.resize(squares, (len(labels), 28, 28), "linear").reshape(-1, 784)
    held = len(labels) // HELD_OUT
    return images[held:], labels[held:], images[:held], labels[:held]


def accuracies(name: str, seeds: int, steps: int) -> np.ndarray:
    """On held-out images after training, by seed."""
    images, labels, others, truth = split()
    model, tx = Classifier(), optax.adam(RATE)
    shapes = jax.eval_shape(model.init, jax.random.key(0), images[:1])["params"]
    rules = {"*/bias": 0.0, "*": DRAWS[name]}

    def trained(key):
        params = {"params": ei.initialize(shapes, rules, key)}

        def step(carry, key):
            params, state = carry
            rows = jax.random.randint(key, (BATCH,), 0, len(labels))
            loss = lambda p: cross_entropy(model.apply(p, images[rows]), labels[rows])
            change, state = tx.update(jax.grad(loss)(params), state)
            return (optax.apply_updates(params, change), state), None

        keys = jax.random.split(jax.random.fold_in(key, 1), steps)
        (params, _), _ = jax.lax.scan(step, (params, tx.init(params)), keys)
        return jnp.mean(model.apply(params, others).argmax(1) == truth)

    keys = jax.random.split(jax.random.key(5), seeds)
    return np.asarray(jax.jit(jax.vmap(trained))(keys))


def classifiers(names: list[str], seeds: int, steps: int) -> Iterator[dict[str, str]]:
    """A line a draw, and whether it is where it is meant to be among the others."""
    found = {name: 100 * accuracies(name, seeds, steps) for name in names}
    means = {name: float(a.mean()) for name, a in found.items()}
    spread = {name: float(a.std()) / seeds**0.5 for name, a in found.items()}
    for i, name in enumerate(names):
        below = names[i - 1] if i >= CHANCE else ""
        gap = means[name] - means.get(below, 0.0)
        error = (spread[name] ** 2 + spread.get(below, 0.0) ** 2) ** 0.5
        yield {
            "weights": name,
            "published": PUBLISHED[name],
            "accuracy": f"{means[name]:.1f}",
            "over the line above": f"{gap:+.1f} ± {error:.1f}" if below else "",
            "order": _verdict(gap, error) if below else "",
        }


def _verdict(gap: float, error: float) -> str:
    """Within two standard errors nothing is known."""
    if abs(gap) <= 2 * error:
        return "tied"
    return "same" if gap > 0 else "OTHER"


def moments(sizes: Sequence[int]) -> Iterator[dict[str, str]]:
    for n in sizes:
        keys = jax.random.split(jax.random.key(n))
        x = jax.random.normal(keys[0], (512, n))
        w = jax.random.normal(keys[1], (n, 512))
        y = x @ w
        full, half = (float(jnp.mean(jnp.square(t))) for t in (y, nn.relu(y)))
        yield {
            "n": str(n),
            "E y^2": f"{full:.0f}",
            "over n": f"{full / n:.3f}",
            "after ReLU, over n": f"{half / n:.3f}",
        }


def products(wide: int, count: int) -> Iterator[dict[str, str]]:
    for name, scale in {"1": 1.0, "0.01": 0.01, "1/sqrt(n)": wide**-0.5}.items():
        keys = jax.random.split(jax.random.key(1), count + 1)
        y = jax.random.normal(keys[0], (wide,))
        sizes = []
        for key in keys[1:]:
            y = (scale * jax.random.normal(key, (wide, wide))) @ y
            sizes.append(float(jnp.max(jnp.abs(y))))
        lost = [i + 1 for i, size in enumerate(sizes) if not np.isfinite(size)]
        gone = [i + 1 for i, size in enumerate(sizes) if size == 0]
        what = f"overflows at product {lost[0]}" if lost else ""
        what = f"zero from product {gone[0]}" if gone else what
        yield {"weights times": name, f"after {count}": what or f"{sizes[-1]:.2g}"}


def depths(names: Sequence[str], sizes: Sequence[int]) -> Iterator[dict[str, str]]:
    """The rms of the last activations of chains, as Flax draws them and by AutoInit."""
    x = jax.random.normal(jax.random.key(0), (64, 64))
    for act in names:
        for depth in sizes:
            model = Chain(getattr(nn, act), depth)
            params = model.init(jax.random.key(1), x)["params"]
            size = lambda p, model=model: float(jnp.sqrt(jnp.mean(jnp.square(
                model.apply({"params": p}, x)))))  # fmt: skip
            scaled = ei.autoinit(model, params, x, key=jax.random.key(2))
            yield {
                "network": f"{act} {depth}",
                "Flax": f"{size(params):.2g}",
                "AutoInit": f"{size(scaled):.2g}",
            }


class Chain(nn.Module):
    """Layers of one activation function; the last output is a preactivation."""

    act: Callable
    depth: int

    @nn.compact
    def __call__(self, x):
        for _ in range(self.depth):
            x = self.act(nn.Dense(256)(x))
        return nn.Dense(256)(x)


def main(words: Sequence[str] | None = None) -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--steps", type=int, default=2400)
    given = parser.parse_args(words)
    if given.tiny:
        given.seeds, given.steps = 1, 2
    acts, deep = (ACTS[:1], (2,)) if given.tiny else (ACTS, (5, 20, 50))
    wide, count = (64, 50) if given.tiny else (512, 50)
    names = list(PUBLISHED)[: 3 if given.tiny else None]
    show("second moment of x @ w", moments([64] if given.tiny else SIZES))
    show(f"products with N(0, 1) matrices of {wide} x {wide}", products(wide, count))
    show("rms of the last outputs over depth", depths(acts, deep))
    title = f"accuracy on held-out digits, {given.steps} steps, {given.seeds} seeds"
    show(title, classifiers(names, given.seeds, given.steps))


if __name__ == "__main__":
    main()
