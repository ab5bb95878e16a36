"""Published designs, written anew and small, as rows of the model table."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from tests.cases import (
    Case,
    batches,
    cross_entropy,
    integers,
    make,
    normal,
    paths,
)

zeros = nn.initializers.zeros_init()
small = nn.initializers.normal(0.02)
images = normal(16, 8, 8, 3)


def heads(name: str, **options) -> nn.MultiHeadDotProductAttention:
    return nn.MultiHeadDotProductAttention(num_heads=2, name=name, **options)


class Mlp(nn.Module):
    """The two-layer perceptron of a transformer."""

    hidden: int

    @nn.compact
    def __call__(self, x):
        h = nn.gelu(nn.Dense(self.hidden, name="up")(x))
        return nn.Dense(x.shape[-1], name="down")(h)


class EncoderBlock(nn.Module):
    """A pre-norm transformer block; `causal` hides what comes later."""

    causal: bool = False

    @nn.compact
    def __call__(self, x):
        mask = nn.make_causal_mask(x[..., 0]) if self.causal else None
        h = nn.LayerNorm(name="norm1")(x)
        x = x + heads("attention")(h, mask=mask)
        return x + Mlp(32, name="mlp")(nn.LayerNorm(name="norm2")(x))


class ViT(nn.Module):
    """Vision transformer: Dosovitskiy et al., "An Image is Worth 16x16 Words", 2021.

    The class token and the positions belong to no unit; the head starts at zero.
    """

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(16, (4, 4), strides=4, name="patches")(x)
        x = x.reshape(x.shape[0], -1, 16)
        cls = self.param("cls", zeros, (1, 1, 16))
        x = jnp.concatenate([jnp.tile(cls, (x.shape[0], 1, 1)), x], axis=1)
        x = x + self.param("pos_embedding", small, (1, *x.shape[1:]))
        for i in range(2):
            x = EncoderBlock(name=f"block{i}")(x)
        x = nn.LayerNorm(name="norm")(x)[:, 0]
        return nn.Dense(5, kernel_init=zeros, name="head")(x)


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


class Gpt2(nn.Module):
    """Radford et al., "Language Models are Unsupervised Multitask Learners", 2019.

    The head is the token embedding; the positions look up a constant.
    """

    @nn.compact
    def __call__(self, tokens):
        wte = nn.Embed(11, 16, embedding_init=small, name="wte")
        wpe = nn.Embed(8, 16, embedding_init=small, name="wpe")
        x = wte(tokens) + wpe(jnp.arange(tokens.shape[1]))
        for i in range(2):
            x = EncoderBlock(causal=True, name=f"h{i}")(x)
        return wte.attend(nn.LayerNorm(name="ln_f")(x))


class MnistCnn(nn.Module):
    """The convolutional network of flax's MNIST example."""

    @nn.compact
    def __call__(self, x):
        for features in (8, 16):
            x = nn.relu(nn.Conv(features, (3, 3))(x))
            x = nn.avg_pool(x, (2, 2), strides=(2, 2))
        x = nn.relu(nn.Dense(32)(x.reshape(x.shape[0], -1)))
        return nn.Dense(10)(x)


class DecoderCell(nn.RNNCellBase):
    """An LSTM step that feeds on its own samples, or on the teacher's words."""

    features: int
    vocabulary: int
    teacher_force: bool

    @nn.compact
    def __call__(self, carry, x):
        state, last = carry
        state, y = nn.LSTMCell(self.features, name="lstm")(
            state, x if self.teacher_force else last
        )
        logits = nn.Dense(self.vocabulary, name="projection")(y)
        word = jax.random.categorical(self.make_rng("sample"), logits)
        return (state, jax.nn.one_hot(word, self.vocabulary)), (logits, word)

    @property
    def num_feature_axes(self):
        return 1


class Seq2Seq(nn.Module):
    """The encoder and decoder LSTMs of flax's seq2seq example."""

    teacher_force: bool

    @nn.compact
    def __call__(self, source, target):
        source, target = jax.nn.one_hot(source, 7), jax.nn.one_hot(target, 7)
        encoder = nn.RNN(nn.LSTMCell(8, name="encoder"), return_carry=True)
        state, _ = encoder(source)
        cell = DecoderCell(8, 7, self.teacher_force, name="decoder")
        decoder = nn.RNN(cell, split_rngs={"params": False, "sample": True})
        logits, _ = decoder(target, initial_carry=(state, target[:, 0]))
        return logits


class VaeEncoder(nn.Module):
    """Two heads on one hidden layer."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Dense(16, name="fc1")(x))
        return nn.Dense(4, name="mean")(x), nn.Dense(4, name="logvar")(x)


class VaeDecoder(nn.Module):
    """From the latent back to the logits of the pixels."""

    @nn.compact
    def __call__(self, z):
        z = nn.relu(nn.Dense(16, name="fc1")(z))
        return nn.Dense(12, name="fc2")(z)


class Vae(nn.Module):
    """The variational autoencoder of flax's example: a random key is an input."""

    def setup(self):
        self.encoder, self.decoder = VaeEncoder(), VaeDecoder()

    def __call__(self, x, key):
        mean, logvar = self.encoder(x)
        noise = jax.random.normal(key, mean.shape)
        return self.decoder(mean + jnp.exp(0.5 * logvar) * noise), mean, logvar


def evidence_bound(outputs, key):
    """Cross entropy to pixels drawn from the key, and the divergence to N(0, 1)."""
    logits, mean, logvar = outputs
    pixels = jax.random.bernoulli(key, 0.3, logits.shape).astype(logits.dtype)
    entropy = optax.sigmoid_binary_cross_entropy(logits, pixels).sum(-1)
    divergence = -0.5 * (1.0 + logvar - mean**2 - jnp.exp(logvar)).sum(-1)
    return (entropy + divergence).mean()


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


def modulate(x, shift, scale):
    return x * (1.0 + scale[:, None]) + shift[:, None]


class DiTBlock(nn.Module):
    """A transformer block whose norms and gates come from the condition."""

    @nn.compact
    def __call__(self, x, c):
        width = x.shape[-1]
        norm = partial(nn.LayerNorm, use_bias=False, use_scale=False)
        ada = nn.Dense(6 * width, kernel_init=zeros, name="ada")(nn.silu(c))
        shift1, scale1, gate1, shift2, scale2, gate2 = jnp.split(ada, 6, -1)
        h = heads("attention")(modulate(norm()(x), shift1, scale1))
        x = x + gate1[:, None] * h
        h = Mlp(2 * width, name="mlp")(modulate(norm()(x), shift2, scale2))
        return x + gate2[:, None] * h


class DiT(nn.Module):
    """Peebles and Xie, "Scalable Diffusion Models with Transformers", 2023.

    The blocks start as the identity and the output at zero.
    """

    @nn.compact
    def __call__(self, x, times, labels):
        n, height, width, channels = x.shape
        angles = times[:, None] * jnp.exp(-jnp.arange(4.0))
        waves = jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], -1)
        c = nn.silu(nn.Dense(16, kernel_init=small, name="time_in")(waves))
        c = nn.Dense(16, kernel_init=small, name="time_out")(c)
        c = c + nn.Embed(5, 16, embedding_init=small, name="label")(labels)
        x = nn.Conv(16, (4, 4), strides=4, name="patches")(x).reshape(n, -1, 16)
        x = x + jnp.sin(jnp.arange(x.shape[1])[:, None] / 10.0 ** jnp.arange(16))
        for i in range(2):
            x = DiTBlock(name=f"block{i}")(x, c)
        shift, scale = jnp.split(
            nn.Dense(32, kernel_init=zeros, name="ada")(nn.silu(c)), 2, -1
        )
        x = modulate(nn.LayerNorm(use_bias=False, use_scale=False)(x), shift, scale)
        x = nn.Dense(16 * channels, kernel_init=zeros, name="head")(x)
        x = x.reshape(n, height // 4, width // 4, 4, 4, channels)
        return x.swapaxes(2, 3).reshape(n, height, width, channels)


class MixerBlock(nn.Module):
    """A perceptron across the patches, then one across the channels."""

    @nn.compact
    def __call__(self, x):
        h = nn.LayerNorm(name="norm1")(x).swapaxes(1, 2)
        x = x + Mlp(8, name="tokens")(h).swapaxes(1, 2)
        return x + Mlp(32, name="channels")(nn.LayerNorm(name="norm2")(x))


class Mixer(nn.Module):
    """Tolstikhin et al., "MLP-Mixer: An all-MLP Architecture for Vision", 2021."""

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(16, (2, 2), strides=2, name="stem")(x)
        x = x.reshape(x.shape[0], -1, 16)
        for i in range(2):
            x = MixerBlock(name=f"block{i}")(x)
        x = nn.LayerNorm(name="norm")(x).mean(1)
        return nn.Dense(5, kernel_init=zeros, name="head")(x)


class GraphBlock(nn.Module):
    """Update the edges, then the nodes, then the global vector."""

    @nn.compact
    def __call__(self, graph):
        nodes, edges, whole = graph["nodes"], graph["edges"], graph["globals"]
        sent, received = nodes[graph["senders"]], nodes[graph["receivers"]]
        spread = jnp.broadcast_to(whole, (len(edges), whole.shape[-1]))
        edges = jnp.concatenate([edges, sent, received, spread], -1)
        edges = Mlp(16, name="edge")(nn.Dense(8, name="edge_in")(edges))
        total = jax.ops.segment_sum(edges, graph["receivers"], len(nodes))
        spread = jnp.broadcast_to(whole, (len(nodes), whole.shape[-1]))
        nodes = jnp.concatenate([nodes, total, spread], -1)
        nodes = Mlp(16, name="node")(nn.Dense(8, name="node_in")(nodes))
        whole = jnp.concatenate([whole, nodes.mean(0), edges.mean(0)], -1)
        whole = Mlp(16, name="global")(nn.Dense(8, name="global_in")(whole))
        return {**graph, "nodes": nodes, "edges": edges, "globals": whole}


class GraphNetwork(nn.Module):
    """Battaglia et al., "Relational inductive biases, deep learning, and graph
    networks", 2018: a dict of arrays with no common batch axis."""

    @nn.compact
    def __call__(self, graph):
        graph = GraphBlock(name="core1")(graph)
        graph = GraphBlock(name="core2")(graph)
        return {name: graph[name] for name in ("nodes", "edges", "globals")}


def random_graph(key):
    a, b, c, d, e = jax.random.split(key, 5)
    return {
        "nodes": jax.random.normal(a, (12, 6)),
        "edges": jax.random.normal(b, (24, 4)),
        "globals": jax.random.normal(c, (5,)),
        "senders": jax.random.randint(d, (24,), 0, 12),
        "receivers": jax.random.randint(e, (24,), 0, 12),
    }


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


MLP = "{up,down}"
ATTENTION = "attention/{query,key,value,out}"
LSTM = "{ii,if,ig,io,hi,hf,hg,ho}"


def encoder(block: str) -> str:
    parts = ("norm1", "norm2", ATTENTION, f"mlp/{MLP}")
    return " ".join(f"{block}/{part}" for part in parts)


def seq2seq(teacher_force: bool) -> Case:
    cells = f"encoder/{LSTM} decoder/lstm/{LSTM} decoder/projection"
    return Case(
        "seq2seq" if teacher_force else "seq2seq_sampled",
        lambda: make(
            Seq2Seq(teacher_force),
            batches(integers(7, 16, 4), integers(7, 16, 5)),
            cross_entropy,
            rngs=("sample",),
        ),
        paths(cells),
        shared=paths(cells),
    )


TABLE: tuple[Case, ...] = (
    Case(
        "vit",
        lambda: make(ViT(), images, cross_entropy),
        paths(f"patches {encoder('block{0,1}')} norm head"),
        loose=paths("cls pos_embedding"),
        zeros=paths("cls head/kernel"),
    ),
    Case(
        "preact_resnet",
        lambda: make(PreActResNet(), images, cross_entropy),
        paths("stem block{1,2}/{norm1,conv1,norm2,conv2} block2/shortcut norm head"),
    ),
    Case(
        "gpt2",
        lambda: make(Gpt2(), integers(11, 16, 8), cross_entropy),
        paths(f"wte wte/attend wpe {encoder('h{0,1}')} ln_f"),
    ),
    Case(
        "mnist_cnn",
        lambda: make(MnistCnn(), normal(16, 12, 12, 1), cross_entropy),
        paths("Conv_{0,1} Dense_{0,1}"),
    ),
    seq2seq(teacher_force=True),
    seq2seq(teacher_force=False),
    Case(
        "vae",
        lambda: make(Vae(), batches(normal(16, 12), lambda key: key), evidence_bound),
        paths("encoder/{fc1,mean,logvar} decoder/{fc1,fc2}"),
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
        "dit",
        lambda: make(
            DiT(),
            batches(
                images,
                lambda key: jax.random.uniform(key, (16,), maxval=100.0),
                integers(5, 16),
            ),
        ),
        paths("time_in time_out label patches block{0,1}/{ada,mlp/up,mlp/down}")
        | paths(f"block{{0,1}}/{ATTENTION} ada head"),
        zeros=paths("block{0,1}/ada/kernel ada/kernel head/kernel"),
    ),
    Case(
        "mlp_mixer",
        lambda: make(Mixer(), images, cross_entropy),
        paths(f"stem block{{0,1}}/{{norm1,norm2}} block{{0,1}}/tokens/{MLP}")
        | paths(f"block{{0,1}}/channels/{MLP} norm head"),
        zeros=paths("head/kernel"),
    ),
    Case(
        "graph_network",
        lambda: make(GraphNetwork(), random_graph),
        paths("core{1,2}/{edge_in,node_in,global_in}")
        | paths(f"core{{1,2}}/{{edge,node,global}}/{MLP}"),
    ),
    Case(
        "unet",
        lambda: make(UNet(), images),
        paths("{down0,down1,bottom,up0,up1}/{conv,norm}") | paths("rise{0,1} head"),
    ),
)
