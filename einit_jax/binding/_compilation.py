"""Programs that most people run once, compiled with little effort.

On a CPU a first call of `tune` spends most of its time in the compiler, and half of
that on making fast what then runs for milliseconds. So a program that is called as it
is, outside of any `jax.jit`, is compiled quickly there if its arrays are small for how
many they are. That hangs on shapes alone: the same call gives the same bits at any
time. Under a `jax.jit` of the user's own, the whole is compiled as all else there.
"""

from collections.abc import Callable
from contextvars import ContextVar
from functools import cache, cached_property, update_wrapper
from typing import Any

import jax
import jax.numpy as jnp

from ..core import is_array, is_concrete
from ..graph import convolves
from ..units import ModelGraph

OLDER_WAY = "xla_cpu_use_fusion_emitters"
QUICK = {"xla_backend_optimization_level": 0, OLDER_WAY: False}
"""Options of XLA: no optimization of machine code, and the older way to make it."""
ELEMENTS_PER_ARRAY = 2**18
"""Elements per array from which on a run counts for more than its compilation: as many
arrays as a model has, so long is its program, and as many elements, so long it runs."""
SHORT = 48
"""Arrays up to which the older way is the quicker one for long programs, too."""


_quickly: ContextVar[bool] = ContextVar("compiled quickly", default=False)


class _NotQuickly(Exception):
    """Ends the trace of what is not to be compiled quickly."""


def check_convolved(graph: ModelGraph) -> bool:
    """Whether a model convolves; for functions that are `compiled_once`.

    To be called while they are traced. Those that would convolve in a loop, for the
    model does or some unit is called several times, need usual effort: they are traced
    anew.
    """
    convolved = convolves(graph.jaxpr)
    again = any(unit.calls > 1 for unit in graph.units)
    looped = convolved and (again or convolves(graph.jaxpr, in_loops=True))
    if looped and _quickly.get():
        raise _NotQuickly
    return convolved


class OnceCompiled:
    """A jitted function that is compiled quickly where that is worth it.

    `lower` and `trace` are those of the function that such a call would run.
    """

    def __init__(self, function: Callable, static: tuple[str, ...], long: bool):
        update_wrapper(self, function)
        self._function, self._static, self._long = function, static, long
        self._usual = jax.jit(function, static_argnames=static)
        self._compiled_as_usual: set[tuple] = set()
        """The static arguments of calls that are not to be compiled quickly."""

    @cached_property
    def _quick(self) -> Any:
        return self._jitted(dict(quick_options()))

    @cached_property
    def _quick_if_long(self) -> Any:
        return self._jitted({k: v for k, v in quick_options() if k != OLDER_WAY})

    def _jitted(self, how: dict[str, Any]) -> Any:
        return jax.jit(
            self._function, static_argnames=self._static, compiler_options=how
        )

    def _chosen(self, args: Any, kwargs: Any) -> Any:
        if self._static_of(kwargs) in self._compiled_as_usual:
            return self._usual
        leaves = jax.tree.leaves((args, kwargs))
        if not is_worth_it(leaves):
            return self._usual
        is_long = self._long and len(leaves) > SHORT
        return self._quick_if_long if is_long else self._quick

    def _static_of(self, kwargs: Any) -> tuple:
        return tuple(kwargs.get(name) for name in self._static)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        chosen = self._chosen(args, kwargs)
        if chosen is self._usual:
            return chosen(*args, **kwargs)
        token = _quickly.set(True)
        try:
            return chosen(*args, **kwargs)
        except _NotQuickly:
            self._compiled_as_usual.add(self._static_of(kwargs))
        finally:
            _quickly.reset(token)
        return self._usual(*args, **kwargs)

    def lower(self, *args: Any, **kwargs: Any) -> Any:
        return self._chosen(args, kwargs).lower(*args, **kwargs)

    def trace(self, *args: Any, **kwargs: Any) -> Any:
        return self._chosen(args, kwargs).trace(*args, **kwargs)


def compiled_once(
    *static: str, long: bool = False
) -> Callable[[Callable], OnceCompiled]:
    """Decorates a function whose arguments of these names are static.

    Args:
        long: its program is long for the number of its arrays.
    """
    return lambda function: OnceCompiled(function, static, long)


def is_worth_it(leaves: list[Any]) -> bool:
    """Whether what runs on such arrays is to be compiled quickly."""
    arrays = [x for x in leaves if is_array(x)]
    if jax.default_backend() != "cpu" or not all(map(is_concrete, arrays)):
        return False
    if not is_concrete(jnp.zeros(())):  # inside of a trace, though on known arrays
        return False
    return sum(x.size for x in arrays) <= ELEMENTS_PER_ARRAY * max(len(arrays), 1)


@cache
def quick_options() -> tuple[tuple[str, Any], ...]:
    """Those of `QUICK` that this version of XLA knows."""
    trivial = jax.jit(lambda: 0).lower()

    def is_known(name: str) -> bool:
        try:
            trivial.compile(compiler_options={name: QUICK[name]})
        except Exception:
            return False
        return True

    return tuple((name, value) for name, value in QUICK.items() if is_known(name))
