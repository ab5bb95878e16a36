"""The table of models the tests run over: each row holds one trap."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import freeze

from tests import published
from tests.cases import Case as Case
from tests.cases import Job as Job
from tests.cases import (
    batches,
    constant,
    cross_entropy,
    integers,
    make,
    normal,
    paths,
    to_one,
)

lecun = nn.initializers.lecun_normal()
zeros = nn.initializers.zeros_init()
vectors = normal(16, 8)
series = normal(16, 5, 8)  # (batch, time, features)
images = normal(16, 8, 8, 3)

# Plain structure.


class CompactMlp(nn.Module):
    """No trap: the layers are named by flax."""

    dtype: Any = None

    @nn.compact
    def __call__(self, x):
        for width in (16, 16):
            x = nn.relu(nn.Dense(width, dtype=self.dtype)(x))
        return nn.Dense(4, dtype=self.dtype)(x)


class Block(nn.Module):
    """A residual block: two units on one level."""

    width: int = 8

    @nn.compact
    def __call__(self, x):
        h = nn.relu(nn.Dense(2 * self.width, name="up")(x))
        return x + nn.Dense(x.shape[-1], name="down")(h)


class SetupMlp(nn.Module):
    """Submodules held in a list by `setup`."""

    def setup(self):
        self.blocks = [Block(), Block()]
        self.head = nn.Dense(4)

    def __call__(self, x):
        for block in self.blocks:
            x = block(x)
        return self.head(x)


class Nest(nn.Module):
    """Units at unequal depths, some four levels down."""

    depth: int

    @nn.compact
    def __call__(self, x):
        x = nn.tanh(nn.Dense(8, name="own")(x))
        return Nest(self.depth - 1, name="inner")(x) if self.depth else x


class Twice(nn.Module):
    """One unit called twice in a run."""

    @nn.compact
    def __call__(self, x):
        layer = nn.Dense(8, name="layer")
        x = nn.tanh(layer(x))
        return nn.Dense(4, name="head")(nn.tanh(layer(x)))


class SwiGlu(nn.Module):
    """A product of two units: the output is quadratic in their common scale."""

    @nn.compact
    def __call__(self, x):
        x = nn.RMSNorm(name="norm")(x)
        gate = nn.silu(nn.Dense(16, use_bias=False, name="gate")(x))
        h = gate * nn.Dense(16, use_bias=False, name="up")(x)
        return nn.Dense(8, use_bias=False, name="down")(h)


# Lifted transforms.


class Layer(nn.Module):
    """A residual block shaped for `nn.scan`: carry in, carry out."""

    @nn.compact
    def __call__(self, x, _=None):
        return Block(name="block")(x), None


class Layers(nn.Module):
    """Layers under `nn.scan`, which lists no collection but the parameters."""

    axis: int = 0
    remat: bool = False

    @nn.compact
    def __call__(self, x):
        stack = nn.scan(
            nn.remat(Layer) if self.remat else Layer,
            variable_axes={"params": self.axis},
            split_rngs={"params": True},
            length=3,
        )
        x, _ = stack(name="layers")(x)
        return nn.Dense(4, name="head")(x)


class RematScan(nn.Module):
    """Two layer axes, one inside the other."""

    @nn.compact
    def __call__(self, x):
        x = nn.remat_scan(Block, lengths=(2, 2))(name="stack")(x)
        return nn.Dense(4, name="head")(x)


class Ensemble(nn.Module):
    """Members under `nn.vmap`, each with its own parameters."""

    @nn.compact
    def __call__(self, x):
        members = nn.vmap(
            CompactMlp,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=None,  # pyright: ignore[reportArgumentType]
            axis_size=3,
        )
        return members(name="members")(x)


class SharedVmap(nn.Module):
    """A block under `nn.vmap` over the inputs, with one set of parameters."""

    @nn.compact
    def __call__(self, x):
        each = nn.vmap(
            Block, variable_axes={"params": None}, split_rngs={"params": False}
        )
        return nn.Dense(4, name="head")(each(name="each")(x))


JitBlock = nn.jit(Block)


class Jitted(nn.Module):
    """Two blocks under `nn.jit`.

    Of one class, they are alike to the cache: the body of the second is not traced
    again, nor those of later runs. Otherwise each run makes new classes.
    """

    cached: bool = False

    @nn.compact
    def __call__(self, x):
        for name in ("first", "second"):
            block = JitBlock if self.cached else nn.jit(Block)
            x = block(name=name)(x)
        return nn.Dense(4, name="head")(x)


class Cond(nn.Module):
    """A branch that the inputs never take, under `nn.cond`."""

    def setup(self):
        self.left, self.right, self.head = nn.Dense(8), nn.Dense(8), nn.Dense(4)

    def __call__(self, x, pred):
        if self.is_initializing():
            self.left(x)
            self.right(x)
        x = nn.cond(pred, lambda m, x: m.left(x), lambda m, x: m.right(x), self, x)
        return self.head(nn.tanh(x))


class Switch(nn.Module):
    """Branches of different depth under `nn.switch`; one of three is taken."""

    def setup(self):
        self.stem = nn.Dense(8)
        self.experts = [
            nn.Dense(4),
            nn.Sequential([nn.Dense(16), nn.tanh, nn.Dense(4)]),
            nn.Sequential([nn.Dense(8), nn.LayerNorm(), nn.Dense(4)]),
        ]

    def __call__(self, x, index):
        x = self.stem(x)
        branches = [lambda m, x, i=i: m.experts[i](x) for i in range(3)]
        if self.is_initializing():
            for branch in branches:
                branch(self, x)
        return nn.switch(index, branches, self, x)


# Recurrence.


class Recurrent(nn.Module):
    """A cell inside `nn.RNN`: its units are called once per time step."""

    cell_type: Callable

    def setup(self):
        self.rnn = nn.RNN(self.cell_type(8))
        self.head = nn.Dense(4)

    def __call__(self, x):
        return self.head(self.rnn(x))


class CellBeside(nn.Module):
    """A cell built beside its `nn.RNN`: the parameters are not under the RNN."""

    def setup(self):
        self.cell = nn.GRUCell(8)
        self.rnn = nn.RNN(self.cell)

    def __call__(self, x):
        return self.rnn(x)


class CellPassed(nn.Module):
    """A cell that came in as an attribute, run by an RNN of another name."""

    cell: nn.RNNCellBase

    @nn.compact
    def __call__(self, x):
        return nn.Dense(4, name="head")(nn.RNN(self.cell, name="rnn")(x))


class Step(nn.Module):
    """An Elman cell."""

    @nn.compact
    def __call__(self, h, x):
        h = nn.tanh(nn.Dense(8, name="input")(x) + nn.Dense(8, name="state")(h))
        return h, nn.Dense(4, name="output")(h)


class TimeScan(nn.Module):
    """`nn.scan` over time with broadcast parameters, and only those."""

    @nn.compact
    def __call__(self, x):
        scan = nn.scan(
            Step,
            variable_broadcast="params",
            split_rngs={"params": False},
            in_axes=1,
            out_axes=1,
        )
        return scan(name="step")(jnp.zeros((x.shape[0], 8)), x)[1]


# Inputs and outputs.


class Masked(nn.Module):
    """Self-attention: four units in the attention, and a mask that is no float."""

    @nn.compact
    def __call__(self, x, mask):
        h = nn.LayerNorm(name="norm")(x)
        attention = nn.MultiHeadDotProductAttention(num_heads=2, name="attention")
        return nn.Dense(4, name="head")(x + attention(h, mask=mask[:, None]))


def masked_series(key):
    """Series, and a mask in which every step sees itself."""
    left, right = jax.random.split(key)
    mask = jax.random.bernoulli(right, 0.5, (16, 5, 5))
    return jax.random.normal(left, (16, 5, 8)), mask | jnp.eye(5, dtype=bool)


class Bilinear(nn.Module):
    """A unit of two inputs, linear in each."""

    features: int

    @nn.compact
    def __call__(self, a, b):
        shape = (a.shape[-1], b.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.normal(0.1), shape)
        return jnp.einsum("na,nb,abc->nc", a, b, kernel)


class Fusion(nn.Module):
    """Two inputs that meet in one unit; the outputs are a dict."""

    @nn.compact
    def __call__(self, image, text):
        a = nn.relu(nn.Dense(8, name="image")(image))
        b = nn.relu(nn.Dense(8, name="text")(text))
        fused = Bilinear(8, name="fuse")(a, b)
        return {"score": nn.Dense(1, name="score")(fused), "parts": (a, b)}


class Keywords(nn.Module):
    """Arguments that are no arrays steer the Python of the model."""

    @nn.compact
    def __call__(self, x, mask=None, *, train):
        assert train is True
        x = nn.tanh(nn.Dense(8, name="first")(x))
        return nn.Dense(4, name="last")(x if mask is None else x * mask)


class Bag(nn.Module):
    """The only input is of integers; the first unit looks them up."""

    @nn.compact
    def __call__(self, tokens):
        x = nn.Embed(11, 8, name="embed")(tokens).mean(1)
        return nn.Dense(4, name="head")(nn.tanh(x))


class Graph(NamedTuple):
    nodes: jax.Array
    edges: jax.Array
    senders: jax.Array
    receivers: jax.Array


class Messages(nn.Module):
    """One argument which is a named tuple, with integer arrays among its fields."""

    @nn.compact
    def __call__(self, graph):
        sent = nn.Dense(8, name="send")(graph.nodes)[graph.senders]
        sent = nn.relu(sent + nn.Dense(8, name="edge")(graph.edges))
        total = jax.ops.segment_sum(sent, graph.receivers, graph.nodes.shape[0])
        return graph._replace(nodes=nn.Dense(4, name="node")(total)).nodes


def random_graph(key):
    a, b, c, d = jax.random.split(key, 4)
    ends = (jax.random.randint(k, (24,), 0, 12) for k in (c, d))
    return Graph(jax.random.normal(a, (12, 8)), jax.random.normal(b, (24, 4)), *ends)


class TiedLm(nn.Module):
    """One embedding, entered twice: as a lookup and, by `attend`, as the head."""

    @nn.compact
    def __call__(self, tokens):
        wte = nn.Embed(11, 8, name="wte")
        x = Block(name="block")(wte(tokens))
        return wte.attend(nn.LayerNorm(name="norm")(x))


class KeyInput(nn.Module):
    """A random key among the positional inputs."""

    @nn.compact
    def __call__(self, x, key):
        x = nn.Dense(8, name="first")(x)
        x = x + 0.1 * jax.random.normal(key, x.shape)
        return nn.Dense(4, name="last")(nn.tanh(x))


class Bytes(nn.Module):
    """Images of uint8, cast in the model: no input of it is differentiable."""

    @nn.compact
    def __call__(self, x):
        x = x.astype(jnp.float32) / 127.5 - 1.0
        x = nn.relu(nn.Conv(8, (3, 3), strides=2, name="conv")(x))
        return nn.Dense(4, name="head")(x.mean((1, 2)))


# State and randomness.


class Normed(nn.Module):
    """Batch statistics are updated; one feature's mean may span a mapped axis."""

    axis_name: str | None = None

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(16, use_bias=False, name="first")(x)
        norm = partial(nn.BatchNorm, use_running_average=False)
        x = nn.relu(norm(axis_name=self.axis_name, name="norm")(x))
        return nn.Dense(4, name="last")(x)


class Dropped(nn.Module):
    """Dropout draws from a stream of its own."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Dense(16, name="first")(x))
        return nn.Dense(4, name="last")(nn.Dropout(0.3, deterministic=False)(x))


class NoisyDense(nn.Module):
    """A unit that draws by `make_rng`, so two calls of it differ."""

    features: int

    @nn.compact
    def __call__(self, x):
        kernel = self.param("kernel", lecun, (x.shape[-1], self.features))
        noise = jax.random.normal(self.make_rng("noise"), kernel.shape)
        return x @ (kernel * (1.0 + 0.1 * noise))


class ResBlock(nn.Module):
    """The gain of the last norm starts at zero: so do the gradients below it."""

    @nn.compact
    def __call__(self, x):
        norm = partial(nn.BatchNorm, use_running_average=False)
        h = nn.Conv(8, (3, 3), use_bias=False, name="conv1")(x)
        h = nn.relu(norm(name="norm1")(h))
        h = nn.Conv(8, (3, 3), use_bias=False, name="conv2")(h)
        return nn.relu(x + norm(scale_init=zeros, name="norm2")(h))


class ZeroGain(nn.Module):
    """Residual branches whose contribution is nil at the start."""

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(8, (3, 3), strides=2, name="stem")(x)
        x = ResBlock(name="block2")(ResBlock(name="block1")(x))
        return nn.Dense(4, name="head")(x.mean((1, 2)))


class AdaLnZero(nn.Module):
    """A zero-initialized unit makes the shifts, scales and gates of a block."""

    @nn.compact
    def __call__(self, x, condition):
        ada = nn.Dense(3 * 8, kernel_init=zeros, name="ada")(nn.silu(condition))
        shift, scale, gate = jnp.split(ada[:, None], 3, -1)
        h = nn.LayerNorm(use_bias=False, use_scale=False)(x) * (1.0 + scale) + shift
        h = nn.Dense(8, name="down")(nn.gelu(nn.Dense(16, name="up")(h)))
        return nn.Dense(4, name="head")(x + gate * h)


# Types of numbers.


class Complex(nn.Module):
    """Complex parameters between a real input and a real output."""

    @nn.compact
    def __call__(self, x):
        dense = partial(nn.Dense, dtype=jnp.complex64, param_dtype=jnp.complex64)
        x = dense(16, name="first")(x)
        x = dense(8, name="second")(x * nn.sigmoid(jnp.abs(x)))
        return nn.Dense(4, name="head")(jnp.abs(x))


class Shuffle(nn.Module):
    """An int32 array among the parameters of a unit: no scale may touch it."""

    @nn.compact
    def __call__(self, x):
        width = x.shape[-1]
        order = self.param("order", lambda key: jax.random.permutation(key, width))
        kernel = self.param("kernel", lecun, (width, width))
        return x[:, order] @ kernel


class Temperature(nn.Module):
    """A unit of one scalar."""

    @nn.compact
    def __call__(self, x):
        return x * self.param("value", nn.initializers.constant(0.5), ())


class Boxed(nn.Module):
    """Parameters in boxes that hold their partitioning."""

    @nn.compact
    def __call__(self, x):
        init = nn.with_partitioning(lecun, (None, "model"))
        x = nn.tanh(nn.Dense(16, kernel_init=init, name="first")(x))
        return nn.Dense(4, kernel_init=init, name="last")(x)


# Calls and methods.


class Halved(nn.Dense):
    """A call that goes on to the parent class: one unit, not two."""

    @nn.compact
    def __call__(self, inputs):
        return 0.5 * super().__call__(inputs)


class HalvedTwice(Halved):
    """And once more."""

    @nn.compact
    def __call__(self, inputs):
        return 0.5 * super().__call__(inputs)


class Encoding(nn.Module):
    """A unit whose call goes through another public method of it."""

    features: int

    @nn.compact
    def encode(self, x):
        return x @ self.param("kernel", lecun, (x.shape[-1], self.features))

    def __call__(self, x):
        return nn.tanh(self.encode(x))


class SelfCall(nn.Module):
    """The model's call goes through its `encode`, as do the calls of its unit."""

    def setup(self):
        self.first, self.last = Encoding(8), nn.Dense(4)

    def encode(self, x):
        return self.first(x)

    def __call__(self, x):
        return self.last(self.encode(x))


class Autoencoder(nn.Module):
    """Run by `encode` alone: half the parameters are out of reach."""

    def setup(self):
        self.encoder = nn.Sequential([nn.Dense(16), nn.tanh, nn.Dense(4)])
        self.decoder = nn.Sequential([nn.Dense(16), nn.tanh, nn.Dense(8)])

    def encode(self, x):
        return self.encoder(x)

    def decode(self, z):
        return self.decoder(z)

    def __call__(self, x):
        return self.decode(self.encode(x))


class Projection(nn.Module):
    """A unit that has no `__call__`."""

    features: int

    @nn.compact
    def project(self, x):
        return x @ self.param("kernel", lecun, (x.shape[-1], self.features))


class NoCall(nn.Module):
    """No `__call__` in the model either: it is run by a function."""

    def setup(self):
        self.encoder, self.decoder = nn.Dense(8), Projection(4)

    def encode(self, x):
        return nn.tanh(self.encoder(x))

    def decode(self, z):
        return self.decoder.project(z)


def through(model, x):
    return model.decode(model.encode(x))


class Equalized(nn.Dense):
    """`Module.param` overridden: it is a method that returns a parameter."""

    def param(self, name, *args, **kwargs):
        value: Any = super().param(name, *args, **kwargs)
        return value * 1.5 if name == "kernel" else value


class NormInside(nn.Module):
    """`nn.WeightNorm` undoes a scale of the kernel within; its own is loose."""

    def setup(self):
        self.norm, self.head = nn.WeightNorm(nn.Dense(8)), nn.Dense(4)

    def __call__(self, x):
        return self.head(nn.tanh(self.norm(x)))


class NormBeside(nn.Module):
    """The same, with the wrapped layer beside its wrapper."""

    @nn.compact
    def __call__(self, x):
        x = nn.WeightNorm(nn.Dense(8, name="inner"), name="norm")(x)
        return nn.Dense(4, name="head")(nn.tanh(x))


class Spectral(nn.Module):
    """`nn.SpectralNorm` undoes a scale of the kernel, and keeps state."""

    @nn.compact
    def __call__(self, x, update_stats):
        norm = nn.SpectralNorm(nn.Dense(8, name="inner"), name="norm")
        x = norm(x, update_stats=update_stats)
        return nn.Dense(4, name="head")(nn.tanh(x))


# Insides of units.


@jax.custom_vjp
def bounded(x):
    return jnp.tanh(x)


def _bounded_forward(x):
    y = jnp.tanh(x)
    return y, y


bounded.defvjp(_bounded_forward, lambda y, g: (g * (1.0 - y * y),))


def straight_sign(x):
    return x + jax.lax.stop_gradient(jnp.sign(x) - x)


class BoundedDense(nn.Dense):
    """A unit with its activation inside, which has a reverse rule only."""

    @nn.compact
    def __call__(self, inputs):
        return bounded(super().__call__(inputs))


class Binary(nn.Module):
    """A straight-through estimator: the gradient is not that of the formula."""

    @nn.compact
    def __call__(self, x):
        x = straight_sign(nn.Dense(16, name="first")(x))
        return nn.Dense(4, name="last")(x)


class Halves(nn.Module):
    """A unit of two outputs."""

    @nn.compact
    def __call__(self, x):
        kernel = self.param("kernel", lecun, (x.shape[-1], 16))
        a, b = jnp.split(x @ kernel, 2, axis=-1)
        return a, jnp.exp(0.1 * b)


class TwoOutputs(nn.Module):
    """Both outputs of a unit are used, differently."""

    @nn.compact
    def __call__(self, x):
        a, b = Halves(name="halves")(x)
        return nn.Dense(4, name="head")(nn.tanh(a) * b)


class Moments(nn.Module):
    """A unit that returns a dict."""

    @nn.compact
    def __call__(self, x):
        kernel = self.param("kernel", lecun, (x.shape[-1], 2, 4))
        y = jnp.einsum("ni,iko->kno", x, kernel)
        return {"mean": y[0], "log_var": y[1]}


class DictOutput(nn.Module):
    """The output of the last unit is the output of the model: a dict."""

    @nn.compact
    def __call__(self, x):
        return Moments(name="moments")(nn.tanh(nn.Dense(8, name="first")(x)))


class Tensors(nn.Module):
    """Kernels of more than two axes, whose fan is not the first axis."""

    @nn.compact
    def __call__(self, x):
        x = nn.DenseGeneral((2, 4), name="split")(x)
        x = nn.tanh(nn.Einsum((2, 4, 6), "nthd,hde->nthe", name="heads")(x))
        return nn.DenseGeneral(8, axis=(-2, -1), name="merge")(x)


class LayerScale(nn.Module):
    """A parameter beside units, in the same module: it belongs to none."""

    @nn.compact
    def __call__(self, x):
        gain = self.param("gain", nn.initializers.constant(0.1), (x.shape[-1],))
        return x + gain * Block(name="block")(x)


GRU = "{ir,iz,in,hr,hz,hn}"
LSTM = "{ii,if,ig,io,hi,hf,hg,ho}"
BLOCK = "{up,down}"

TRAPS = (
    Case(
        "compact_mlp",
        lambda: make(CompactMlp(), vectors),
        paths("Dense_{0,1,2}"),
    ),
    Case(
        "setup_list",
        lambda: make(SetupMlp(), vectors),
        paths(f"blocks_{{0,1}}/{BLOCK} head"),
    ),
    Case(
        "deep_nesting",
        lambda: make(Nest(3), vectors, to_one),
        paths("own inner/own inner/inner/own inner/inner/inner/own"),
    ),
    Case(
        "used_twice",
        lambda: make(Twice(), vectors),
        paths("layer head"),
        shared=paths("layer"),
    ),
    Case("swiglu", lambda: make(SwiGlu(), vectors), paths("norm gate up down")),
    Case(
        "scan_layers",
        lambda: make(Layers(), vectors),
        paths(f"layers/block/{BLOCK} head"),
    ),
    Case(
        "scan_remat",
        lambda: make(Layers(remat=True), vectors),
        paths(f"layers/block/{BLOCK} head"),
    ),
    Case(
        "scan_axis_1",
        lambda: make(Layers(axis=1), vectors),
        paths(f"layers/block/{BLOCK} head"),
    ),
    Case(
        "remat_scan",
        lambda: make(RematScan(), vectors),
        paths(f"stack/{BLOCK} head"),
    ),
    Case(
        "vmap_ensemble",
        lambda: make(Ensemble(), vectors),
        paths("members/Dense_{0,1,2}"),
    ),
    Case(
        "vmap_shared",
        lambda: make(SharedVmap(), vectors),
        paths(f"each/{BLOCK} head"),
        shared=paths(f"each/{BLOCK}"),
    ),
    Case(
        "nn_jit",
        lambda: make(Jitted(), vectors),
        paths(f"{{first,second}}/{BLOCK} head"),
    ),
    Case(
        "nn_jit_cached",
        lambda: make(Jitted(cached=True), vectors),
        paths(f"{{first,second}}/{BLOCK} head"),
    ),
    Case(
        "cond",
        lambda: make(Cond(), batches(vectors, constant(True))),
        paths("left right head"),
        idle=paths("right"),
    ),
    Case(
        "switch",
        lambda: make(Switch(), batches(vectors, constant(1))),
        paths("stem experts_0 experts_{1,2}/layers_{0,2} experts_2/layers_1"),
        idle=paths("experts_0 experts_2/layers_{0,1,2}"),
    ),
    Case(
        "rnn_lstm",
        lambda: make(Recurrent(nn.LSTMCell), series),
        paths(f"rnn/cell/{LSTM} head"),
        shared=paths(f"rnn/cell/{LSTM}"),
    ),
    Case(
        "rnn_gru",
        lambda: make(Recurrent(nn.GRUCell), series),
        paths(f"rnn/cell/{GRU} head"),
        shared=paths(f"rnn/cell/{GRU}"),
    ),
    Case(
        "rnn_optimized_lstm",
        lambda: make(Recurrent(nn.OptimizedLSTMCell), series),
        paths("rnn/cell head"),
        shared=paths("rnn/cell"),
    ),
    Case(
        "cell_beside_rnn",
        lambda: make(CellBeside(), series),
        paths(f"cell/{GRU}"),
        shared=paths(f"cell/{GRU}"),
    ),
    Case(
        "cell_passed_in",
        lambda: make(CellPassed(nn.OptimizedLSTMCell(8)), series),
        paths("cell head"),
        shared=paths("cell"),
    ),
    Case(
        "time_scan",
        lambda: make(TimeScan(), series),
        paths("step/{input,state,output}"),
        shared=paths("step/{input,state,output}"),
    ),
    Case(
        "masked_attention",
        lambda: make(Masked(), masked_series),
        paths("norm attention/{query,key,value,out} head"),
    ),
    Case(
        "fusion",
        lambda: make(Fusion(), batches(vectors, normal(16, 6))),
        paths("image text fuse score"),
    ),
    Case(
        "keywords",
        lambda: make(Keywords(), batches(vectors, mask=None, train=True)),
        paths("first last"),
    ),
    Case(
        "embed",
        lambda: make(Bag(), integers(11, 16, 5), cross_entropy),
        paths("embed head"),
    ),
    Case(
        "named_tuple",
        lambda: make(Messages(), random_graph),
        paths("send edge node"),
    ),
    Case(
        "tied_lm",
        lambda: make(TiedLm(), integers(11, 16, 5), cross_entropy),
        paths(f"wte wte/attend block/{BLOCK} norm"),
    ),
    Case(
        "key_input",
        lambda: make(KeyInput(), batches(vectors, lambda key: key)),
        paths("first last"),
    ),
    Case(
        "uint8_images",
        lambda: make(
            Bytes(), integers(256, 16, 8, 8, 3, dtype=jnp.uint8), cross_entropy
        ),
        paths("conv head"),
    ),
    Case(
        "batch_norm",
        lambda: make(Normed(), vectors),
        paths("first norm last"),
    ),
    Case(
        "batch_norm_axis_name",
        lambda: make(Normed("batch"), vectors, axis_name="batch"),
        paths("first norm last"),
    ),
    Case(
        "dropout",
        lambda: make(Dropped(), vectors, rngs=("dropout",)),
        paths("first last"),
    ),
    Case(
        "unit_rng",
        lambda: make(
            nn.Sequential([NoisyDense(8), nn.tanh, NoisyDense(4)]),
            vectors,
            rngs=("noise",),
        ),
        paths("layers_{0,2}"),
    ),
    Case(
        "zero_gain_resnet",
        lambda: make(ZeroGain(), images, cross_entropy),
        paths("stem block{1,2}/{conv1,norm1,conv2,norm2} head"),
        zeros=paths("block{1,2}/norm2/scale"),
    ),
    Case(
        "adaln_zero",
        lambda: make(AdaLnZero(), batches(series, vectors)),
        paths("ada up down head"),
        zeros=paths("ada/kernel"),
    ),
    Case(
        "complex",
        lambda: make(Complex(), vectors),
        paths("first second head"),
    ),
    Case(
        "bfloat16",
        lambda: make(CompactMlp(jnp.bfloat16), vectors),
        paths("Dense_{0,1,2}"),
    ),
    Case(
        "float16",
        lambda: make(CompactMlp(jnp.float16), vectors),
        paths("Dense_{0,1,2}"),
    ),
    Case(
        "integer_parameter",
        lambda: make(nn.Sequential([Shuffle(), nn.tanh, Shuffle()]), vectors),
        paths("layers_{0,2}"),
    ),
    Case(
        "scalar_parameter",
        lambda: make(
            nn.Sequential([nn.Dense(8), nn.tanh, nn.Dense(4), Temperature()]),
            vectors,
            cross_entropy,
        ),
        paths("layers_{0,2,3}"),
    ),
    Case("boxed", lambda: make(Boxed(), vectors), paths("first last")),
    Case(
        "frozen_dict",
        lambda: frozen(make(CompactMlp(), vectors)),
        paths("Dense_{0,1,2}"),
    ),
    Case(
        "super_call",
        lambda: make(nn.Sequential([HalvedTwice(8), nn.tanh, Halved(4)]), vectors),
        paths("layers_{0,2}"),
    ),
    Case("self_call", lambda: make(SelfCall(), vectors), paths("first last")),
    Case(
        "method_encode",
        lambda: make(Autoencoder(), vectors, init="__call__", method="encode"),
        paths("encoder/layers_{0,2}"),
        unreached=paths("decoder/layers_{0,2}"),
    ),
    Case(
        "method_function",
        lambda: make(NoCall(), vectors, method=through),
        paths("encoder decoder/project"),
    ),
    Case(
        "param_overridden",
        lambda: make(nn.Sequential([Equalized(8), nn.tanh, Equalized(4)]), vectors),
        paths("layers_{0,2}"),
    ),
    Case(
        "weight_norm",
        lambda: make(NormInside(), vectors),
        paths("norm/layer_instance head"),
        loose=paths("norm/layer_instance/kernel/scale"),
    ),
    Case(
        "weight_norm_beside",
        lambda: make(NormBeside(), vectors),
        paths("inner head"),
        loose=paths("norm/inner/kernel/scale"),
    ),
    Case(
        "spectral_norm",
        lambda: make(Spectral(), batches(vectors, update_stats=True)),
        paths("inner head"),
    ),
    Case(
        "custom_vjp",
        lambda: make(nn.Sequential([BoundedDense(16), nn.Dense(4)]), vectors),
        paths("layers_{0,1}"),
    ),
    Case(
        "straight_through",
        lambda: make(Binary(), vectors),
        paths("first last"),
    ),
    Case(
        "two_outputs",
        lambda: make(TwoOutputs(), vectors),
        paths("halves head"),
    ),
    Case(
        "dict_output",
        lambda: make(DictOutput(), vectors),
        paths("first moments"),
    ),
    Case("tensors", lambda: make(Tensors(), series), paths("split heads merge")),
    Case(
        "layer_scale",
        lambda: make(nn.Sequential([LayerScale(), LayerScale()]), vectors),
        paths(f"layers_{{0,1}}/block/{BLOCK}"),
        loose=paths("layers_{0,1}/gain"),
    ),
)


def frozen(job: Job) -> Job:
    return job._replace(params=freeze(job.params))


TABLE: tuple[Case, ...] = TRAPS + published.TABLE
CASES: dict[str, Case] = {case.name: case for case in TABLE}
