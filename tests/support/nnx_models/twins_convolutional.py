"""Pairs of convolutional networks."""

from functools import partial

import flax.linen as nn
from flax import nnx

from tests.support.nnx_models.cases import images, to_labels
from tests.support.nnx_models.twin import Twin, leaves


class LinenCnn(nn.Module):
    """Convolutions, pooled, and layers."""

    @nn.compact
    def __call__(self, x):
        for features in (8, 16):
            x = nn.relu(nn.Conv(features, (3, 3))(x))
            x = nn.avg_pool(x, (2, 2), strides=(2, 2))
        x = nn.relu(nn.Dense(16)(x.reshape(x.shape[0], -1)))
        return nn.Dense(5)(x)


class NnxCnn(nnx.Module):
    """Its twin."""

    def __init__(self, rngs):
        self.conv1 = nnx.Conv(3, 8, (3, 3), rngs=rngs)
        self.conv2 = nnx.Conv(8, 16, (3, 3), rngs=rngs)
        self.hidden = nnx.Linear(64, 16, rngs=rngs)
        self.head = nnx.Linear(16, 5, rngs=rngs)

    def __call__(self, x):
        for conv in (self.conv1, self.conv2):
            x = nnx.avg_pool(nnx.relu(conv(x)), (2, 2), strides=(2, 2))
        return self.head(nnx.relu(self.hidden(x.reshape(x.shape[0], -1))))


class LinenResBlock(nn.Module):
    """He et al., "Deep Residual Learning for Image Recognition", 2016."""

    @nn.compact
    def __call__(self, x):
        norm = partial(nn.BatchNorm, use_running_average=False)
        conv = partial(nn.Conv, 8, (3, 3), use_bias=False)
        h = nn.relu(norm(name="norm1")(conv(name="conv1")(x)))
        return nn.relu(x + norm(name="norm2")(conv(name="conv2")(h)))


class LinenResNet(nn.Module):
    """Two blocks, in training."""

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(8, (3, 3), strides=2, name="stem")(x)
        for i in range(2):
            x = LinenResBlock(name=f"block{i}")(x)
        return nn.Dense(5, name="head")(x.mean((1, 2)))


class NnxResBlock(nnx.Module):
    """Its twin."""

    def __init__(self, rngs):
        conv = partial(nnx.Conv, 8, 8, (3, 3), use_bias=False, rngs=rngs)
        self.conv1, self.norm1 = conv(), nnx.BatchNorm(8, rngs=rngs)
        self.conv2, self.norm2 = conv(), nnx.BatchNorm(8, rngs=rngs)

    def __call__(self, x):
        h = nnx.relu(self.norm1(self.conv1(x)))
        return nnx.relu(x + self.norm2(self.conv2(h)))


class NnxResNet(nnx.Module):
    """Its twin."""

    def __init__(self, rngs):
        self.stem = nnx.Conv(3, 8, (3, 3), strides=2, rngs=rngs)
        self.blocks = nnx.List([NnxResBlock(rngs) for _ in range(2)])
        self.head = nnx.Linear(8, 5, rngs=rngs)

    def __call__(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean((1, 2)))


class LinenGrouped(nn.Module):
    """A convolution in groups, then one for each channel, then one by one."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(8, (3, 3))(x))
        x = nn.relu(nn.Conv(8, (3, 3), feature_group_count=2)(x))
        x = nn.relu(nn.Conv(8, (3, 3), feature_group_count=8)(x))
        return nn.Conv(5, (1, 1))(x).mean((1, 2))


class NnxGrouped(nnx.Module):
    """Its twin."""

    def __init__(self, rngs):
        conv = partial(nnx.Conv, rngs=rngs)
        self.stem = conv(3, 8, (3, 3))
        self.grouped = conv(8, 8, (3, 3), feature_group_count=2)
        self.depthwise = conv(8, 8, (3, 3), feature_group_count=8)
        self.head = conv(8, 5, (1, 1))

    def __call__(self, x):
        for conv in (self.stem, self.grouped, self.depthwise):
            x = nnx.relu(conv(x))
        return self.head(x).mean((1, 2))


def _in_blocks(*names: str) -> dict[str, str]:
    """The modules of these names in both blocks of the residual network."""
    return {
        f"blocks/{i}/{name}": f"block{i}/{name}" for i in range(2) for name in names
    }


CNN = {"conv1": "Conv_0", "conv2": "Conv_1", "hidden": "Dense_0", "head": "Dense_1"}
GROUPED = ("stem", "grouped", "depthwise", "head")
TWINS: dict[str, Twin] = {
    "cnn": Twin(LinenCnn, NnxCnn, images, leaves(CNN), to_labels),
    "resnet": Twin(
        LinenResNet,
        NnxResNet,
        images,
        leaves({"stem": "stem", "head": "head"})
        | leaves(_in_blocks("conv1", "conv2"), "kernel")
        | leaves(_in_blocks("norm1", "norm2"), "scale bias"),
        to_labels,
    ),
    "grouped_conv": Twin(
        LinenGrouped,
        NnxGrouped,
        images,
        leaves({name: f"Conv_{i}" for i, name in enumerate(GROUPED)}),
        to_labels,
    ),
}
