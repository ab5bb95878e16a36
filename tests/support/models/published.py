"""Other published designs: sequences, autoencoders, graphs."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from tests.support.cases import (
    Case,
    batches,
    cross_entropy,
    integers,
    make,
    normal,
    paths,
)
from tests.support.models.recurrent import LSTM
from tests.support.models.transformers import MLP, Mlp


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


ATTENTION = "attention/{query,key,value,out}"


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


ROWS: tuple[Case, ...] = (
    seq2seq(teacher_force=True),
    seq2seq(teacher_force=False),
    Case(
        "vae",
        lambda: make(Vae(), batches(normal(16, 12), lambda key: key), evidence_bound),
        paths("encoder/{fc1,mean,logvar} decoder/{fc1,fc2}"),
    ),
    Case(
        "graph_network",
        lambda: make(GraphNetwork(), random_graph),
        paths("core{1,2}/{edge_in,node_in,global_in}")
        | paths(f"core{{1,2}}/{{edge,node,global}}/{MLP}"),
    ),
)
