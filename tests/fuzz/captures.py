"""What units put out, seen from outside: by calls back to the host while a model runs.

Nothing of the package takes part, so that this is a check of what it says. Loops,
branches, and mapped axes call back once for each time that they run.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from einit_jax.core import flatten, unboxed
from einit_jax.units import UnitKey


class Recorder:
    """The mean squares of the outputs of units, call by call.

    Layers under a lifted transform share a path: they are told apart by what their
    parameters add up to.
    """

    def __init__(self, units: Iterable[UnitKey], params: Mapping):
        own = list(flatten(unboxed(params)))
        self.leaves = {
            key: [p[len(key[0]) :] for p in own if p[: len(key[0])] == key[0]]
            for key in units
        }
        self.squares: dict[UnitKey, dict[float, list[float]]] = {}
        self.active: list[tuple] = []
        self.clear()

    def clear(self) -> None:
        """Forgets what was seen."""
        self.squares = {key: defaultdict(list) for key in self.leaves}

    def run(self, function: Callable, *args: Any) -> Any:
        """A function's result, with all calls of units in it recorded."""
        with nn.intercept_methods(self._intercept):
            return function(*args)

    def rms(self) -> dict[UnitKey, list[float]]:
        """Of each unit the rms of each of its layers, over calls, in order of sums."""
        jax.effects_barrier()
        root = lambda squares: float(np.sqrt(np.mean(squares)))
        return {
            key: [root(layers[total]) for total in sorted(layers)]
            for key, layers in self.squares.items()
        }

    def _intercept(
        self,
        proceed: Callable,
        args: Any,
        kwargs: Any,
        context: nn.module.InterceptorContext,
    ) -> Any:
        module = context.module
        if module.scope is None or context.method_name == "setup":
            return proceed(*args, **kwargs)
        key = (tuple(module.path), context.method_name)
        if key not in self.leaves or key[0] in self.active:
            return proceed(*args, **kwargs)
        self.active.append(key[0])
        try:
            outputs = proceed(*args, **kwargs)
        finally:
            self.active.pop()
        floats = [y for y in jax.tree.leaves(outputs) if jnp.issubdtype(y, jnp.inexact)]
        own = flatten(unboxed(module.variables["params"]))
        sums = [jnp.sum(jnp.abs(own[leaf])) for leaf in self.leaves[key] if leaf in own]
        total = sum((s.astype(jnp.float32) for s in sums), jnp.float32(0))
        jax.debug.callback(partial(self._record, key), total, *floats)
        return outputs

    def _record(self, key: UnitKey, total: Any, *outputs: Any) -> None:
        wide = [np.asarray(y).astype(np.complex128).ravel() for y in outputs]
        with np.errstate(all="ignore"):
            mean = float(np.mean(np.abs(np.concatenate(wide)) ** 2))
        self.squares[key][float(total)].append(mean)
