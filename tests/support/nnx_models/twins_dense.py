"""Pairs of dense networks."""

import flax.linen as nn
from flax import nnx

from tests.support.nnx_models.cases import vectors
from tests.support.nnx_models.lifted import Layers
from tests.support.nnx_models.twin import Twin, leaves


class LinenMlp(nn.Module):
    """Layers with tanh in between."""

    @nn.compact
    def __call__(self, x):
        for width in (16, 16):
            x = nn.tanh(nn.Dense(width)(x))
        return nn.Dense(4)(x)


class NnxMlp(nnx.Module):
    """Its twin."""

    def __init__(self, rngs):
        self.first = nnx.Linear(8, 16, rngs=rngs)
        self.second = nnx.Linear(16, 16, rngs=rngs)
        self.head = nnx.Linear(16, 4, rngs=rngs)

    def __call__(self, x):
        x = nnx.tanh(self.first(x))
        return self.head(nnx.tanh(self.second(x)))


class LinenNormed(nn.Module):
    """A layer and its norm, three times."""

    @nn.compact
    def __call__(self, x):
        for _ in range(3):
            x = nn.relu(nn.LayerNorm()(nn.Dense(16)(x)))
        return nn.Dense(4)(x)


class NnxNormed(nnx.Module):
    """Its twin."""

    def __init__(self, rngs):
        widths = ((8, 16), (16, 16), (16, 16))
        self.layers = nnx.List([nnx.Linear(*pair, rngs=rngs) for pair in widths])
        self.norms = nnx.List([nnx.LayerNorm(16, rngs=rngs) for _ in range(3)])
        self.head = nnx.Linear(16, 4, rngs=rngs)

    def __call__(self, x):
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x = nnx.relu(norm(layer(x)))
        return self.head(x)


class LinenBlock(nn.Module):
    """A residual block."""

    @nn.compact
    def __call__(self, x):
        h = nn.relu(nn.Dense(16, name="up")(x))
        return x + nn.Dense(8, name="down")(h)


class LinenResidual(nn.Module):
    """Three blocks of one class."""

    @nn.compact
    def __call__(self, x):
        for i in range(3):
            x = LinenBlock(name=f"block{i}")(x)
        return nn.Dense(4, name="head")(x)


class NnxBlock(nnx.Module):
    """Its twin."""

    def __init__(self, rngs):
        self.up = nnx.Linear(8, 16, rngs=rngs)
        self.down = nnx.Linear(16, 8, rngs=rngs)

    def __call__(self, x):
        return x + self.down(nnx.relu(self.up(x)))


class NnxResidual(nnx.Module):
    """Its twin."""

    def __init__(self, rngs):
        self.blocks = nnx.List([NnxBlock(rngs) for _ in range(3)])
        self.head = nnx.Linear(8, 4, rngs=rngs)

    def __call__(self, x):
        for block in self.blocks:
            x = block(x)
        return self.head(x)


class LinenLayer(nn.Module):
    """The block shaped for `nn.scan`: carry in, carry out."""

    @nn.compact
    def __call__(self, x, _):
        return LinenBlock(name="block")(x), None


class LinenLayers(nn.Module):
    """Three blocks under `nn.scan`."""

    @nn.compact
    def __call__(self, x):
        axes = {"params": 0}
        scan = nn.scan(LinenLayer, axes, split_rngs={"params": True}, length=3)
        x, _ = scan(name="layers")(x, None)
        return nn.Dense(4, name="head")(x)


RESIDUAL = {
    f"blocks/{i}/{layer}": f"block{i}/{layer}"
    for i in range(3)
    for layer in ("up", "down")
}
SCANNED = {"layers/up": "layers/block/up", "layers/down": "layers/block/down"}
TWINS: dict[str, Twin] = {
    "mlp_tanh": Twin(
        LinenMlp,
        NnxMlp,
        vectors,
        leaves({"first": "Dense_0", "second": "Dense_1", "head": "Dense_2"}),
    ),
    "mlp_layer_norm": Twin(
        LinenNormed,
        NnxNormed,
        vectors,
        leaves({f"layers/{i}": f"Dense_{i}" for i in range(3)} | {"head": "Dense_3"})
        | leaves({f"norms/{i}": f"LayerNorm_{i}" for i in range(3)}, "scale bias"),
    ),
    "residual_mlp": Twin(
        LinenResidual, NnxResidual, vectors, leaves(RESIDUAL | {"head": "head"})
    ),
    "scanned_layers": Twin(
        LinenLayers, Layers, vectors, leaves(SCANNED | {"head": "head"})
    ),
}
