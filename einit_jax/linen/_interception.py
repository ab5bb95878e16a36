"""The one hook into Flax: calls of modules that carry a reserved entry in `params`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from flax import linen as nn

from ..core import Partition, Path


@dataclass(frozen=True)
class Call:
    """One call of a module's method, about to run."""

    module: nn.Module
    method: str
    ride: Mapping[str, Any]
    function: Callable
    proceed: Callable
    args: tuple
    kwargs: Mapping[str, Any]

    @property
    def path(self) -> Path:
        return tuple(self.module.path)


def intercept_calls(
    read: Callable[[nn.Module], Mapping[str, Any] | None], act: Callable[[Call], Any]
) -> Callable:
    """An interceptor that hands `act` the outermost call of each module at a time.

    `read` returns the module's ride or None. `super().__call__`, `__call__` that calls
    `self.encode`, and the clones that lifted transforms make run the interceptor again
    for a path that is being handled already: those calls pass.
    """
    active: list[Path] = []

    def intercept(proceed, args, kwargs, context):
        module, method = context.module, context.method_name
        if module.scope is None or method == "setup" or module.path in active:
            return proceed(*args, **kwargs)
        if not hasattr(type(module), method):  # a function that Flax lifts, not ours
            return proceed(*args, **kwargs)
        ride = read(module)
        if ride is None:
            return proceed(*args, **kwargs)
        function = context.orig_method.func
        call = Call(module, method, ride, function, proceed, args, kwargs)
        active.append(module.path)
        try:
            return act(call)
        finally:
            active.pop()

    return intercept


def intercept_units(
    name: str,
    act: Callable[[Call, Mapping[str, Any]], Any],
    other: Callable[[Call], Any] = lambda call: None,
) -> Callable:
    """An interceptor for the units that carry the entry `name` beside their parameters.

    `act` gets the call and what rides for its method. Where nothing rides for a method,
    the call runs as it is, after `other` has seen it.
    """

    def read(module: nn.Module) -> Mapping[str, Any] | None:
        if not module.has_variable("params", name):
            return None
        return module.get_variable("params", name)

    def dispatch(call: Call) -> Any:
        if call.method in call.ride:
            return act(call, call.ride[call.method])
        other(call)
        return call.proceed(*call.args, **call.kwargs)

    return intercept_calls(read, dispatch)


class PureCall:
    """A call as a function of its module and its floating inputs alone."""

    def __init__(self, call: Call):
        self._call = call
        self._inputs = Partition((call.args, dict(call.kwargs)))
        self._outputs: Partition | None = None
        self.floats = self._inputs.floats
        compact = hasattr(call.function, "compact")
        self.run = nn.compact(self._run) if compact else self._run

    def build(self, floats: list, arrays: list) -> Any:
        """The call's result with other arrays in it, once it has run."""
        assert self._outputs is not None
        return self._outputs.build(floats, arrays)

    @property
    def _run(self) -> Callable[..., tuple[list, list]]:
        def run(module: nn.Module, *floats: Any) -> tuple[list, list]:
            args, kwargs = self._inputs.build(list(floats))
            self._outputs = Partition(self._call.function(module, *args, **kwargs))
            return self._outputs.floats, self._outputs.arrays

        return run
