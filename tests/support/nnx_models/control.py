"""Transforms around layers that are not stacked: remat, jit, branches, loops."""

import jax
import jax.numpy as jnp
from flax import nnx

from tests.support.cases import batches, constant
from tests.support.nnx_models.cases import NnxCase, row, vectors
from tests.support.nnx_models.dense import Block


class RematBlock(Block):
    """A block whose forward pass is run again for the backward pass."""

    @nnx.remat
    def __call__(self, x):
        return super().__call__(x)


class JitBlock(Block):
    """A block whose call is compiled."""

    @nnx.jit
    def __call__(self, x):
        return super().__call__(x)


class Two(nnx.Module):
    """Two blocks of one class and a head."""

    def __init__(self, rngs, block):
        self.first, self.second = block(rngs), block(rngs)
        self.head = nnx.Linear(8, 4, rngs=rngs)

    def __call__(self, x):
        return self.head(self.second(self.first(x)))


class Checkpointed(nnx.Module):
    """`nnx.remat` of a function of the block."""

    def __init__(self, rngs):
        self.block = Block(rngs)
        self.head = nnx.Linear(8, 4, rngs=rngs)

    def __call__(self, x):
        return self.head(nnx.remat(lambda block, x: block(x))(self.block, x))


class Cond(nnx.Module):
    """Two branches under `nnx.cond`, which takes the whole model."""

    def __init__(self, rngs):
        self.left = nnx.Linear(8, 8, rngs=rngs)
        self.right = nnx.Linear(8, 8, rngs=rngs)
        self.head = nnx.Linear(8, 4, rngs=rngs)

    def __call__(self, x, left):
        x = nnx.cond(left, lambda m, x: m.left(x), lambda m, x: m.right(x), self, x)
        return self.head(nnx.tanh(x))


class Switch(nnx.Module):
    """Three experts under `nnx.switch`; one is taken."""

    def __init__(self, rngs):
        self.stem = nnx.Linear(8, 8, rngs=rngs)
        self.experts = nnx.List([Block(rngs) for _ in range(3)])

    def __call__(self, x, index):
        branches = [lambda experts, x, i=i: experts[i](x) for i in range(3)]
        return nnx.switch(index, branches, self.experts, self.stem(x))


class ForiLoop(nnx.Module):
    """One block, called in an `nnx.fori_loop`."""

    def __init__(self, rngs):
        self.block = Block(rngs)
        self.head = nnx.Linear(8, 4, rngs=rngs)

    def __call__(self, x):
        step = lambda i, carry: (carry[0], carry[0](carry[1]))
        return self.head(nnx.fori_loop(0, 3, step, (self.block, x))[1])


class Equilibrium(nnx.Module):
    """Bai et al., "Deep Equilibrium Models", 2019, with gradients through one step.

    The `nnx.while_loop` towards the fixed point is run on a copy of the layer that
    gradients do not reach, since no loop of unknown length has a reverse mode.
    """

    def __init__(self, rngs):
        self.inject = nnx.Linear(8, 8, rngs=rngs)
        self.layer = nnx.Linear(8, 8, rngs=rngs)
        self.head = nnx.Linear(8, 4, rngs=rngs)

    def __call__(self, x):
        x = self.inject(x)
        graphdef, state = nnx.split(self.layer)
        held, drive = jax.lax.stop_gradient((state, x))
        step = lambda carry: (carry[0], _settle(*carry[:2], drive), carry[2] + 1)
        start = (nnx.merge(graphdef, held), jnp.zeros_like(x), 0)
        z = nnx.while_loop(lambda carry: carry[2] < 8, step, start)[1]
        return self.head(_settle(self.layer, z, x))


def _settle(layer, z, x):
    """One step towards the fixed point."""
    return nnx.tanh(0.5 * layer(z) + x)


CASES: dict[str, NnxCase] = {
    "remat_method": row(lambda rngs: Two(rngs, RematBlock), vectors, "remat"),
    "remat_function": row(Checkpointed, vectors, "remat"),
    "jit_method": row(lambda rngs: Two(rngs, JitBlock), vectors, "jit"),
    "cond": row(Cond, batches(vectors, constant(True)), "cond idle inputs"),
    "switch": row(Switch, batches(vectors, constant(1)), "cond idle inputs"),
    "fori_loop": row(ForiLoop, vectors, "loop shared"),
    "while_loop": row(Equilibrium, vectors, "loop shared"),
}
