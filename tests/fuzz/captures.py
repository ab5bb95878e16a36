"""What units put out, seen from outside: by calls back to the host while a model runs.

Nothing of the package takes part, so that this is a check of what it says. Loops,
branches, and mapped axes call back once for each time that they run.
"""

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from itertools import count
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from einit_jax.core import flatten, unboxed
from einit_jax.units import UnitKey

MARK = "fuzz_mark"
"""The attribute of a module of NNX that tells which unit it is."""


class Recorder(ABC):
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

    @abstractmethod
    def listening(self, model: Any = None) -> AbstractContextManager:
        """Meanwhile calls of units are recorded."""

    def proceed(self, key: UnitKey, call: Callable[[], Any], params: Callable) -> Any:
        """The outputs of a call, recorded if it is one of a unit.

        `params()` are the parameters of its module, by path.
        """
        if key not in self.leaves or key[0] in self.active:
            return call()
        self.active.append(key[0])
        try:
            outputs = call()
        finally:
            self.active.pop()
        own = params()
        floats = [y for y in jax.tree.leaves(outputs) if jnp.issubdtype(y, jnp.inexact)]
        sums = [jnp.sum(jnp.abs(own[leaf])) for leaf in self.leaves[key] if leaf in own]
        total = sum((s.astype(jnp.float32) for s in sums), jnp.float32(0))
        jax.debug.callback(partial(self._record, key), total, *floats)
        return outputs

    def rms(self) -> dict[UnitKey, list[float]]:
        """Of each unit the rms of each of its layers, over calls, in order of sums."""
        jax.effects_barrier()
        root = lambda squares: float(np.sqrt(np.mean(squares)))
        return {
            key: [root(layers[total]) for total in sorted(layers)]
            for key, layers in self.squares.items()
        }

    def _record(self, key: UnitKey, total: Any, *outputs: Any) -> None:
        wide = [np.asarray(y).astype(np.complex128).ravel() for y in outputs]
        with np.errstate(all="ignore"):
            mean = float(np.mean(np.abs(np.concatenate(wide)) ** 2))
        self.squares[key][float(total)].append(mean)


class LinenRecorder(Recorder):
    """Intercepts the methods of modules."""

    @contextmanager
    def listening(self, model: Any = None) -> Iterator[None]:
        """Meanwhile calls of units are recorded."""
        with nn.intercept_methods(self._intercept):
            yield

    def _intercept(
        self,
        proceed: Callable,
        args: Any,
        kwargs: Any,
        context: nn.module.InterceptorContext,
    ) -> Any:
        module, name = context.module, context.method_name
        call = partial(proceed, *args, **kwargs)
        if module.scope is None or name == "setup":
            return call()
        params = lambda: flatten(unboxed(module.variables["params"]))
        return self.proceed((tuple(module.path), name), call, params)


class NnxRecorder(Recorder):
    """Puts methods of its own into the classes of a model's modules for a while.

    A mark, which is part of a module's structure, tells which unit it is: transforms
    run copies, and what they have compiled for other marks they compile anew.
    """

    _runs = count()

    @contextmanager
    def listening(self, model: Any = None) -> Iterator[None]:
        """Meanwhile calls of units are recorded."""
        methods: dict[tuple[type, str], Any] = {}
        run = next(self._runs)
        nodes = {tuple(map(str, keys)): node for keys, node in nnx.iter_graph(model)}
        for path, name in self.leaves:
            node = nodes[path]
            setattr(node, MARK, f"{run}:{'/'.join(path)}")
            methods[type(node), name] = getattr(type(node), name)
        before = {key: vars(key[0]).get(key[1]) for key in methods}
        for (kind, name), method in methods.items():
            setattr(kind, name, self._listening_method(name, method))
        try:
            yield
        finally:
            for (kind, name), method in before.items():
                if method is None:
                    delattr(kind, name)
                else:
                    setattr(kind, name, method)

    def _listening_method(self, name: str, method: Callable) -> Callable:
        def listening(module: nnx.Module, *args: Any, **kwargs: Any) -> Any:
            call = partial(method, module, *args, **kwargs)
            mark = vars(module).get(MARK)
            if mark is None:
                return call()
            path = tuple(filter(None, mark.partition(":")[2].split("/")))

            def params() -> dict:
                flat = nnx.to_flat_state(nnx.state(module, nnx.Param))
                return {tuple(map(str, k)): leaf.get_value() for k, leaf in flat}

            return self.proceed((path, name), call, params)

        return listening
