"""Wrappers around modules made elsewhere, and parameters used in several places."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from tests.support.cases import Case, make, paths, series, vectors

normal = nn.initializers.normal(0.5)


class Gate(nn.Module):
    """A parameter of its own around a module that is made by its parent."""

    fn: nn.Module

    @nn.compact
    def __call__(self, x):
        return x + self.param("gate", nn.initializers.ones, ()) * self.fn(x)


class Flip(nn.Module):
    """A mixer without parameters."""

    def __call__(self, x):
        return jnp.flip(x, -1)


class Gates(nn.Module):
    """The gate around a layer is a raw parameter; around a mixer it makes a unit."""

    @nn.compact
    def __call__(self, x):
        x = Gate(nn.Dense(8, name="inner"), name="around")(x)
        x = Gate(Flip(), name="mix")(jnp.tanh(x))
        return nn.Dense(4, name="head")(x)


class LowRank(nn.Module):
    """An adapter that has one scope in common with the layer it is around."""

    base: nn.Module
    rank: int = 2

    def setup(self):
        nn.share_scope(self, self.base)

    @nn.compact
    def __call__(self, x):
        down = self.param("down", normal, (x.shape[-1], self.rank))
        up = self.param("up", normal, (self.rank, self.base.features))
        return self.base(x) + x @ down @ up


class Transparent(nn.Module):
    """A module whose layers lie where it lies itself."""

    def setup(self):
        self.inner = nn.Sequential([nn.Dense(8), jnp.tanh, nn.Dense(6)])
        nn.share_scope(self, self.inner)

    def __call__(self, x):
        return self.inner(x)


class SharedScopes(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = jnp.tanh(LowRank(nn.Dense(8, name="adapted"))(x))
        return nn.Dense(4, name="head")(Transparent(name="below")(x))


class TwoSizes(nn.Module):
    """A head on all tokens, and once more on the pooled one."""

    @nn.compact
    def __call__(self, x):
        h = nn.Dense(8, name="body")(x)
        head = nn.Dense(10, name="head")
        return head(3 * h), head(h.mean(1))


class HandTied(nn.Module):
    """A decoder that reads the kernel of another layer raw."""

    def setup(self):
        self.first, self.up, self.last = nn.Dense(8), nn.Dense(16), nn.Dense(4)

    def __call__(self, x):
        hidden = jnp.tanh(self.up(self.first(x)))
        return self.last(hidden @ self.up.variables["params"]["kernel"].T)


class Clipped(nn.Module):
    """Layers whose variables a function maps, all at once."""

    @nn.compact
    def __call__(self, x):
        first = self.is_initializing()
        clip = lambda tree: jax.tree.map(lambda w: jnp.clip(w, -0.3, 0.3), tree)
        dense = nn.map_variables(nn.Dense, "params", clip, init=first, mutable=first)
        return dense(4, name="last")(nn.tanh(dense(8, name="first")(x)))


class Pair(nn.Module):
    """A parameter that is a tuple of arrays."""

    @nn.compact
    def __call__(self, x):
        draw = lambda key: (normal(key, (x.shape[-1], 8)), normal(key, (8,)))
        kernel, bias = self.param("pair", draw)
        return nn.Dense(4, name="head")(jnp.tanh(x @ kernel + bias))


class Detached(nn.Module):
    """A layer behind which gradients stop."""

    @nn.compact
    def __call__(self, x):
        held = jax.lax.stop_gradient(nn.Dense(8, name="held")(0.1 * x))
        return nn.Dense(4, name="head")(jnp.tanh(held))


ROWS: tuple[Case, ...] = (
    Case(
        "gates",
        lambda: make(Gates(), vectors),
        paths("inner mix head"),
        loose=paths("around/gate"),
    ),
    Case(
        "shared_scopes",
        lambda: make(SharedScopes(), vectors),
        paths("adapted below/layers_{0,2} head"),
    ),
    Case(
        "two_sizes",
        lambda: make(TwoSizes(), series),
        paths("body head"),
        shared=paths("head"),
    ),
    Case("hand_tied", lambda: make(HandTied(), vectors), paths("first up last")),
    Case("clipped", lambda: make(Clipped(), vectors), paths("first last")),
)
