"""What tests ask of a tuned NNX model: outputs, gradients, and how these compare."""

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

import einit_jax as ei
from tests.support.nnx_models.cases import NnxCase

NOISE = 1e-5
"""A gradient that is smaller than the largest one by this is rounding: that of the bias
of attention's keys, or of a layer before a normalization."""


class Judged(NamedTuple):
    """One case, and what runs it."""

    case: NnxCase

    def model(self) -> nnx.Module:
        """The model, in the same state at each call."""
        return self.case.build(nnx.Rngs(0))

    def inputs(self) -> ei.Inputs:
        return ei.Inputs(*self.case.args(jax.random.key(1)), **self.case.kwargs)

    def tune(self, **options: Any) -> dict:
        model = self.model()
        return ei.tune(model, None, self.inputs(), self.case.loss, **options)

    def outputs_and_gradients(
        self, model: nnx.Module
    ) -> tuple[Any, dict[tuple, np.ndarray]]:
        """What the model returns, and the gradients of its parameters by path."""
        args = self.case.args(jax.random.key(1))
        outputs, gradients = _run(self.case, model, args)
        flat = nnx.to_flat_state(gradients)
        return outputs, {p: np.asarray(v.get_value()) for p, v in flat}


@partial(nnx.jit, static_argnums=0)
def _run(case: NnxCase, model: nnx.Module, args: tuple) -> tuple[Any, nnx.State]:
    def loss(model: nnx.Module, args: tuple) -> tuple[jax.Array, Any]:
        outputs = model(*args, **case.kwargs)
        return case.loss(outputs), outputs

    gradient, outputs = nnx.grad(loss, has_aux=True)(model, args)
    return outputs, gradient


def factors_along(scales: Mapping, path: tuple) -> Any:
    """The factors of whatever a parameter belongs to, None where nothing is."""
    node: Any = scales
    for name in (None, *map(str, path)):
        node = node if name is None else node.get(name, {})
        if not isinstance(node, Mapping):
            return None
        if any(not isinstance(value, Mapping) for value in node.values()):
            return node
    return None


def by_layer(array: np.ndarray, factor: np.ndarray) -> Iterator[np.ndarray]:
    """The parts of an array that have factors of their own."""
    axes = [i for i, n in enumerate(np.shape(factor)) if n > 1]
    front = np.moveaxis(array, axes, range(len(axes)))
    layers = np.shape(factor)
    count = int(np.prod([layers[i] for i in axes], dtype=int))
    yield from front.reshape(count, -1)


def least_cosine(
    scales: Mapping, carried: Mapping[tuple, np.ndarray], true: Mapping[tuple, Any]
) -> float:
    """The least cosine of any layer's gradient, beside the true one."""
    largest = max(np.abs(g).max() for g in true.values())
    worst = 1.0
    for path, gradient in carried.items():
        own = factors_along(scales, path)
        factor = (
            np.ones(())
            if own is None
            else next(v for v in own.values() if not isinstance(v, Mapping))
        )
        parts = zip(
            by_layer(gradient.astype(complex), factor),
            by_layer(true[path].astype(complex), factor),
            strict=True,
        )
        for a, b in parts:
            sizes = np.linalg.norm(a) * np.linalg.norm(b)
            if np.abs(b).max() > NOISE * largest and sizes > 0:
                worst = min(worst, float((a.conj() @ b).real / sizes))
    return worst
