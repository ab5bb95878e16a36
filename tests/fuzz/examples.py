"""An example: plain data that says what is tuned, and the job that it stands for."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

import einit_jax as ei
from tests.fuzz import layers as _layers  # noqa: F401 - registers its kinds
from tests.fuzz import lifting as _lifting  # noqa: F401
from tests.fuzz import wrappers as _wrappers  # noqa: F401
from tests.fuzz.growing import Node, dtypes, grown, like, narrowed
from tests.support.cases import QUICK, Job

VOCABULARY = 5
OPTIMIZERS: dict[str, Any] = {
    "sgd": optax.sgd(1.0),
    "adam": optax.adam(1.0),
    "lion": optax.lion(1.0),
}


@dataclass(frozen=True)
class Example:
    """A model, its inputs, its loss, and how it is tuned.

    Its `repr` is the line that makes it again; what is as usual is left out.
    """

    body: Node = ("dense", 4, True)
    width: int = 4
    batch: int = 4
    steps: int = 0
    """0: inputs have no axis of steps."""
    tokens: bool = False
    """Whether the first input is of integers."""
    extra: tuple[str, ...] = ()
    """Further inputs: "vector", "index", "shift" (by keyword), "train" (static)."""
    outputs: str = "head"
    loss: str = "squares"
    dtype: str = "float32"
    param_dtype: str = "float32"
    input_power: int = 0
    """Inputs, parameters and the loss are multiplied by ten to these powers."""
    param_power: int = 0
    loss_power: int = 0
    options: tuple[tuple[str, Any], ...] = ()
    seed: int = 0
    library: str = "linen"
    """Or "nnx"."""

    def __repr__(self) -> str:
        told = [(f.name, getattr(self, f.name), f.default) for f in fields(self)]
        return f"Example({', '.join(f'{n}={v!r}' for n, v, d in told if v != d)})"

    @property
    def extreme(self) -> bool:
        """Whether numbers may leave the range in which squares are representable."""
        powers = self.input_power, self.param_power, self.loss_power
        return any(powers) or "'times'" in repr(self.body)


class Model(nn.Module):
    """The model of an example."""

    example: Example

    @property
    def dtype(self) -> str:
        return self.example.dtype

    @property
    def param_dtype(self) -> str:
        return self.example.param_dtype

    @nn.compact
    def __call__(self, x, *more, shift=None, train=None):
        embed = nn.Embed(VOCABULARY, self.example.width, **dtypes(self))
        if self.example.tokens:
            x = embed(x)
        x = narrowed(self, x)
        for other in more:
            if jnp.issubdtype(other.dtype, jnp.integer):
                y = nn.Embed(VOCABULARY, x.shape[-1], **dtypes(self))(other)
            else:
                y = nn.Dense(x.shape[-1], **dtypes(self))(other)
            x = x + (y if x.ndim == 2 else y[:, None])
        if shift is not None:
            x = x + shift.astype(x.dtype)
        y = grown(self, self.example.body, x)
        return self.finished(y, x, embed)

    def finished(self, y, x, embed):
        """The outputs, of one of several structures."""
        head = lambda y: nn.Dense(3, **dtypes(self), name="head")(y)
        match self.example.outputs:
            case "body":
                return y
            case "pooled":
                return head(y.mean(1) if y.ndim == 3 else y)
            case "tuple":
                return head(y), y
            case "dict":
                return {"aux": y.mean(), "logits": head(y)}
            case "attend" if self.example.tokens:
                return embed.attend(like(self, y, x))
        return head(y)


# Losses.


def floats(outputs: Any) -> list[jax.Array]:
    wide = lambda y: (
        y if jnp.iscomplexobj(y) else y.astype(jnp.promote_types(y, "float32"))
    )
    return [wide(y) for y in jax.tree.leaves(outputs)]


def squares(outputs, key):
    """The distance of all outputs to draws of the key."""
    parts = [
        jnp.square(jnp.abs(y - jax.random.normal(key, y.shape)))
        for y in floats(outputs)
    ]
    return sum(part.mean() for part in parts)


def cross_entropy(outputs, key):
    """The first output as logits; others are ignored."""
    logits, *_ = floats(outputs)
    if not logits.ndim:
        return jnp.square(logits - 1)
    labels = jax.random.randint(key, logits.shape[:-1], 0, logits.shape[-1])
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def last(outputs):
    """The last output alone, without a key."""
    return jnp.mean(jnp.square(floats(outputs)[-1] - 1))


def from_inputs(outputs, key, inputs):
    """The distance of sums to something of the inputs."""
    given = [jnp.mean(x.astype(jnp.float32)) for x in jax.tree.leaves(inputs)]
    noise = jax.random.normal(key)
    return sum(jnp.mean(jnp.square(y - given[0] - noise)) for y in floats(outputs))


def cosines(outputs, key):
    """Bounded, and not of the second order."""
    draws = [jax.random.normal(key, y.shape) for y in floats(outputs)]
    pairs = zip(floats(outputs), draws, strict=True)
    return sum(jnp.mean(jnp.cos(y + d)) for y, d in pairs)


LOSSES: dict[str, Callable] = {
    f.__name__: f for f in (squares, cross_entropy, last, from_inputs, cosines)
}


def loss_of(example: Example) -> Callable:
    """The loss times its power of ten, with the parameters of the loss."""
    loss, factor = LOSSES[example.loss], 10.0**example.loss_power
    if factor == 1:
        return loss
    if example.loss == "last":
        return lambda outputs: factor * loss(outputs)
    if example.loss == "from_inputs":
        return lambda outputs, key, inputs: factor * loss(outputs, key, inputs)
    return lambda outputs, key: factor * loss(outputs, key)


# Jobs.


def drawn_inputs(example: Example, key: jax.Array) -> ei.Inputs:
    """A batch."""
    keys = jax.random.split(key, 4)
    steps = (example.steps,) if example.steps else ()
    shape = (example.batch, *steps)
    integers = lambda i, shape: jax.random.randint(keys[i], shape, 0, VOCABULARY)
    power = 10.0**example.input_power
    normal = lambda i, *shape: power * jax.random.normal(keys[i], shape)
    first = integers(0, shape) if example.tokens else normal(0, *shape, example.width)
    args, kwargs = [first], {}
    for name in example.extra:
        match name:
            case "vector":
                args.append(normal(1, example.batch, 3))
            case "index":
                args.append(integers(2, (example.batch,)))
            case "shift":
                kwargs["shift"] = normal(3, *shape, example.width)
            case "train":
                kwargs["train"] = True
    return ei.Inputs(*args, **kwargs)


def job_of(example: Example) -> Job:
    """What is passed to the verbs, without the options of `tune` alone.

    Raises:
        Exception: the model itself does not run.
    """
    model, input_fn = Model(example), partial(drawn_inputs, example)
    inputs = input_fn(jax.random.key(example.seed + 1))
    rngs = {name: jax.random.key(example.seed) for name in ("params", "dropout")}

    @partial(jax.jit, compiler_options=QUICK)
    def start(inputs):
        variables = dict(model.init(rngs, *inputs.args, **inputs.kwargs))
        power = 10.0**example.param_power
        scale = lambda p: p * power if jnp.issubdtype(p.dtype, jnp.inexact) else p
        scaled = jax.tree.map(scale, variables.pop("params", {}))
        variables.pop("intermediates", None)
        return scaled, variables

    params, collections = start(inputs)
    options = {"collections": collections, "rngs": ("dropout",)}
    return Job(model, params, input_fn, loss_of(example), options)


def tune_options(example: Example, units: tuple[str, ...]) -> dict[str, Any]:
    """The options of `tune`; units that they choose are numbered in the example."""
    found: dict[str, Any] = {}
    for name, value in example.options:
        match name:
            case "optimizer":
                found[name] = OPTIMIZERS[value]
            case "exclude" if len(units) > 1:
                found[name] = units[value % len(units)]
            case "exclude":
                continue
            case "target_of":
                unit = units[value % len(units)] if units else "*"
                found["targets"] = {unit: 0.5, "*": 1.0}
            case _:
                found[name] = value
    return found
