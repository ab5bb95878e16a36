"""The same network in Linen and in NNX, and how parameters go from one to the other."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
from flax import nnx
from flax.traverse_util import flatten_dict

from tests.support.nnx_models.cases import as_args, to_ones


@dataclass(frozen=True)
class Twin:
    """One pair: equal functions of equal parameters, of equal shapes."""

    linen: Callable[[], nn.Module]
    nnx: Callable[[nnx.Rngs], nnx.Module]
    inputs: Callable[[jax.Array], Any]  # inputs(key) -> array | positional arguments
    paths: dict[str, str]  # of each parameter: its path in NNX, and that in Linen
    loss: Callable[[Any], jax.Array] = to_ones

    def args(self, key: jax.Array) -> tuple:
        """The positional arguments of a call."""
        return as_args(self.inputs(key))


def leaves(modules: dict[str, str], names: str = "kernel bias") -> dict[str, str]:
    """The paths of the parameters called `names` in each of the modules."""
    return {
        f"{own}/{name}": f"{linen}/{name}"
        for own, linen in modules.items()
        for name in names.split()
    }


def copy_params(twin: Twin, linen_params: Any) -> nnx.Module:
    """The NNX model of the pair, with the parameters of the Linen one."""
    model = twin.nnx(nnx.Rngs(0))
    values = flatten_dict(linen_params, sep="/")
    own = {
        "/".join(map(str, path)): (path, variable)
        for path, variable in nnx.to_flat_state(nnx.state(model, nnx.Param))
    }
    assert own.keys() == twin.paths.keys(), own.keys() ^ twin.paths.keys()
    left = values.keys() ^ set(twin.paths.values())
    assert not left and len(own) == len(values), left
    copied = []
    for name, (path, variable) in own.items():
        value = values[twin.paths[name]]
        assert value.shape == variable.shape, (name, value.shape, variable.shape)
        copied.append((path, variable.replace(value)))
    nnx.update(model, nnx.from_flat_state(copied))
    return model
