"""Published convolutional networks, written anew and small."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from tests.support.cases import (
    Case,
    cross_entropy,
    images,
    integers,
    make,
    normal,
    paths,
)


class PreActBlock(nn.Module):
    """Norm and activation before each convolution; a shortcut where sizes change."""

    features: int
    strides: int = 1

    @nn.compact
    def __call__(self, x):
        norm = partial(nn.BatchNorm, use_running_average=False)
        conv = partial(nn.Conv, self.features, use_bias=False)
        h = nn.relu(norm(name="norm1")(x))
        if self.strides > 1:
            x = conv((1, 1), strides=self.strides, name="shortcut")(h)
        h = conv((3, 3), strides=self.strides, name="conv1")(h)
        h = nn.relu(norm(name="norm2")(h))
        return x + conv((3, 3), name="conv2")(h)


class PreActResNet(nn.Module):
    """He et al., "Identity Mappings in Deep Residual Networks", 2016."""

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(8, (3, 3), use_bias=False, name="stem")(x)
        x = PreActBlock(8, name="block1")(x)
        x = PreActBlock(16, strides=2, name="block2")(x)
        x = nn.BatchNorm(use_running_average=False, name="norm")(x)
        return nn.Dense(5, name="head")(nn.relu(x).mean((1, 2)))


class MnistCnn(nn.Module):
    """The convolutional network of flax's MNIST example."""

    @nn.compact
    def __call__(self, x):
        for features in (8, 16):
            x = nn.relu(nn.Conv(features, (3, 3))(x))
            x = nn.avg_pool(x, (2, 2), strides=(2, 2))
        x = nn.relu(nn.Dense(32)(x.reshape(x.shape[0], -1)))
        return nn.Dense(10)(x)


class ActorCritic(nn.Module):
    """The Atari network of flax's PPO example: log-probabilities and a value."""

    @nn.compact
    def __call__(self, x):
        x = x.astype(jnp.float32) / 255.0
        conv = partial(nn.Conv, padding="VALID")
        x = nn.relu(conv(8, (4, 4), strides=2, name="conv_1")(x))
        x = nn.relu(conv(16, (3, 3), strides=2, name="conv_2")(x))
        x = nn.relu(conv(16, (2, 2), name="conv_3")(x))
        x = nn.relu(nn.Dense(32, name="hidden")(x.reshape(x.shape[0], -1)))
        logits = nn.Dense(5, name="logits")(x)
        return nn.log_softmax(logits), nn.Dense(1, name="value")(x)


def actor_critic_loss(outputs, key):
    """A policy gradient, a value error and an entropy bonus, on random returns."""
    log_probs, values = outputs
    a, b, c = jax.random.split(key, 3)
    actions = jax.random.randint(a, (log_probs.shape[0], 1), 0, log_probs.shape[1])
    advantages = jax.random.normal(b, actions.shape)
    chosen = jnp.take_along_axis(log_probs, actions, 1)
    errors = (values - jax.random.normal(c, values.shape)) ** 2
    entropy = -(jnp.exp(log_probs) * log_probs).sum(-1).mean()
    return 0.5 * errors.mean() - (advantages * chosen).mean() - 0.01 * entropy


class NormedConv(nn.Module):
    """A convolution, normed over groups of channels."""

    @nn.compact
    def __call__(self, x):
        x = nn.GroupNorm(num_groups=2, name="norm")(nn.Conv(8, (3, 3), name="conv")(x))
        return nn.relu(x)


class UNet(nn.Module):
    """Ronneberger et al., "U-Net", 2015: transposed convolutions and skips."""

    @nn.compact
    def __call__(self, x):
        skips = []
        for i in range(2):
            x = NormedConv(name=f"down{i}")(x)
            skips.append(x)
            x = nn.max_pool(x, (2, 2), strides=(2, 2))
        x = NormedConv(name="bottom")(x)
        for i in (1, 0):
            x = nn.ConvTranspose(8, (2, 2), strides=(2, 2), name=f"rise{i}")(x)
            x = NormedConv(name=f"up{i}")(jnp.concatenate([skips[i], x], axis=-1))
        return nn.Conv(3, (1, 1), name="head")(x)


ROWS: tuple[Case, ...] = (
    Case(
        "preact_resnet",
        lambda: make(PreActResNet(), images, cross_entropy),
        paths("stem block{1,2}/{norm1,conv1,norm2,conv2} block2/shortcut norm head"),
    ),
    Case(
        "mnist_cnn",
        lambda: make(MnistCnn(), normal(16, 12, 12, 1), cross_entropy),
        paths("Conv_{0,1} Dense_{0,1}"),
    ),
    Case(
        "ppo_actor_critic",
        lambda: make(
            ActorCritic(),
            integers(256, 16, 16, 16, 2, dtype=jnp.uint8),
            actor_critic_loss,
        ),
        paths("conv_{1,2,3} hidden logits value"),
    ),
    Case(
        "unet",
        lambda: make(UNet(), images),
        paths("{down0,down1,bottom,up0,up1}/{conv,norm}") | paths("rise{0,1} head"),
    ),
)
