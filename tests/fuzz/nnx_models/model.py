"""The model of an example in NNX, and the job that it stands for."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from tests.fuzz.examples import VOCABULARY, Example, drawn_inputs, loss_of
from tests.fuzz.growing import narrowed
from tests.fuzz.nnx_models import beyond_linen as _beyond_linen  # noqa: F401
from tests.fuzz.nnx_models import layers as _layers  # noqa: F401 - these have the kinds
from tests.fuzz.nnx_models import lifting as _lifting  # noqa: F401
from tests.fuzz.nnx_models import wrappers as _wrappers  # noqa: F401
from tests.fuzz.nnx_models.building import Builder, Fit, made, named
from tests.support.cases import Job


class GrownModel(nnx.Module):
    """The model of an example, for inputs like some."""

    def __init__(self, example: Example, inputs: Any, rngs: nnx.Rngs):
        b = Builder(rngs, example.dtype, example.param_dtype)
        self.dtype, self.outputs = example.dtype, example.outputs
        first, *others = inputs.args
        shape = first.shape if example.tokens else first.shape[:-1]
        shape = (*shape, example.width)
        table = lambda: nnx.Embed(VOCABULARY, example.width, **b.options)
        self.embed = table() if example.tokens else None
        self.others = nnx.List([
            table()
            if jnp.issubdtype(other.dtype, jnp.integer)
            else nnx.Linear(other.shape[-1], example.width, **b.options)
            for other in others
        ])  # fmt: skip
        self.body, features = made(b, example.body, shape)
        self.head: Any
        if self.outputs == "attend" and example.tokens:
            self.head = Fit(b, features, example.width)
        elif self.outputs != "body":
            self.head = nnx.Linear(features, 3, **b.options)

    def __call__(self, x, *more, shift=None, train=None):
        x = narrowed(self, x if self.embed is None else self.embed(x))
        for layer, other in zip(self.others, more, strict=True):
            y = layer(other)
            x = x + (y if x.ndim == 2 else y[:, None])
        if shift is not None:
            x = x + shift.astype(x.dtype)
        y = self.body(x)
        match self.outputs:
            case "body":
                return y
            case "pooled":
                return self.head(y.mean(1) if y.ndim == 3 else y)
            case "tuple":
                return self.head(y), y
            case "dict":
                return {"aux": y.mean(), "logits": self.head(y)}
            case "attend" if self.embed is not None:
                return self.embed.attend(self.head(y, x))
        return self.head(y)


def nnx_job_of(example: Example) -> Job:
    """What is passed to the verbs, with parameters as nested dicts.

    Some models draw their random numbers from keys that verbs draw for each batch, the
    others from their own streams.

    Raises:
        Exception: the model itself is not made.
    """
    input_fn = partial(drawn_inputs, example)
    inputs = input_fn(jax.random.key(example.seed + 1))
    rngs = nnx.Rngs(example.seed, params=example.seed, dropout=example.seed + 1)
    model: Any = GrownModel(example, inputs, rngs)
    power = 10.0**example.param_power
    if power != 1:
        scale = lambda p: p * power if jnp.issubdtype(p.dtype, jnp.inexact) else p
        nnx.update(model, jax.tree.map(scale, nnx.state(model, nnx.Param)))
    params = named(nnx.state(model, nnx.Param))
    tags = {n.tag for _, n in nnx.iter_graph(model) if isinstance(n, nnx.RngStream)}
    drawn = "dropout" in tags and example.seed % 2
    options = {"rngs": ("dropout",)} if drawn else {}
    return Job(model, params, input_fn, loss_of(example), options)
