"""`activation_stats`: activations and gradients, all through training."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from operator import index
from typing import Any, Literal, SupportsIndex

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..binding import (
    Model,
    call_with_taps,
    check_model,
    is_nnx,
    params_of_call,
    trace_user_call,
)
from ..core import (
    as_patterns,
    by_value,
    usual_rules,
)
from ..units import check_measurable
from ._history import History, SignalHistory
from ._tap_layout import TapLayout, tap_layout, taps_by_unit, watched_units
from ._taps import SIGNALS, TAP_FACTS, TapSpec, check_stats_options, tapping


def activation_stats(
    model: Model,
    *,
    of: Literal["output", "input"] = "output",
    every: SupportsIndex = 1,
    slots: SupportsIndex = 128,
    octaves: Sequence[SupportsIndex] = (-48, 8),
    near: float = 2.0**-7,
    sample: SupportsIndex | None = 2048,
    include: str | Sequence[str] = "*",
    exclude: str | Sequence[str] = (),
) -> "ActivationStats":
    r"""Statistics of every unit's activations and gradients, inside a training step.

    A pure accumulator: `init` makes an empty history, `apply` is the model's own with
    taps in it, whose cotangents are the readings, `update` adds them to the history,
    `value` gives means, standard deviations, histograms and dead shares over steps:

        stats = ei.activation_stats(model)
        state = stats.init(variables, x)
        grads, seen = jax.grad(loss, argnums=(0, 1))(params, state.taps)
        state = stats.update(state, seen)        # loss calls stats.apply
        stats.value(state).plot()

    Readings are sums over elements: the calls of a shared unit add up (one of more
    elements counts more; in `measure` all calls count the same), the layers of
    `nn.scan` and `nn.vmap` have a row each, and over a mesh they are those of the whole
    batch. (Under `pmap` or `shard_map` sum `seen` over the devices, as gradients are.)
    A unit from whose output no gradient reaches the loss (`stop_gradient`) is not read.

    Args:
        model: any Linen module, or `scaled(model)`.
        of: "output", what units return and the gradients that reach them there; or
            "input", what units read, which is behind the activation function, and the
            gradients that they send back.
        every: steps between readings; in the others taps cost next to nothing.
        slots: length of the history, even. When it is full neighbours are pooled, and
            a slot covers twice as many steps: any number of steps fits.
        octaves: (low, high), the histogram's range: a bin for each octave of positive
            and of negative values in `2^low ... 2^high`, the outermost ones with all
            beyond, and one of all that is nearer to zero, which is dead.
        near: an element is dead where it is at most so many times the rms of its unit,
            by the histogram, as if values were even inside of each bin.
        sample: most elements that are read off an array, evenly; a standard deviation
            is then known to `1 / sqrt(2 sample)` of itself, 1.6% by default. None
            reads all.
        include, exclude: glob patterns of the units to watch.

    Returns:
        An `ActivationStats`, hashable and without state of its own.

    Raises:
        TypeError, ValueError: model is no Linen module, or an option is out of range.

    Example:
        >>> import flax.linen as nn, jax, jax.numpy as jnp, einit_jax as ei
        >>> model = nn.Sequential([nn.Dense(32), nn.relu, nn.Dense(4)])
        >>> x = jax.random.normal(jax.random.key(1), (64, 8))
        >>> variables = model.init(jax.random.key(0), x)
        >>> stats = ei.activation_stats(model)
        >>> state = stats.init(variables, x)
        >>> @jax.jit
        ... def train_step(params, state):
        ...     def loss(params, taps):
        ...         y = stats.apply({"params": params, "taps": taps}, x)
        ...         return jnp.mean(jnp.square(y - 1))
        ...     grads, seen = jax.grad(loss, argnums=(0, 1))(params, state.taps)
        ...     params = jax.tree.map(lambda p, g: p - 0.1 * g, params, grads)
        ...     return params, stats.update(state, seen)
        >>> params = variables["params"]
        >>> for _ in range(3):
        ...     params, state = train_step(params, state)
        >>> history = stats.value(state)
        >>> history.paths, history.steps[:3].tolist()
        (('layers_0', 'layers_2'), [0, 1, 2])
        >>> share = history.gradients.dead[0, 0]  # units of the ReLU that are shut
        >>> bool(0.3 < share < 0.7)
        True

    Source: the four charts are those of J. Howard's fast.ai lessons (ActivationStats);
    bins by octave, gradients, and readings as cotangents are ours.
    """
    check_model(model)
    check_stats_options(
        of, every, slots=slots, octaves=octaves, near=near, sample=sample
    )
    every, slots = index(every), index(slots)
    sample = None if sample is None else index(sample)
    low, high = map(index, octaves)
    return ActivationStats(
        type(model) if is_nnx(model) else model,  # which comes with each call
        spec=TapSpec(of, (low, high), sample, switched=every > 1),
        every=every,
        slots=slots,
        near=float(near),
        include=as_patterns(include, "include"),
        exclude=as_patterns(exclude, "exclude"),
    )


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["taps", "sums", "count", "stride"],
    meta_fields=["layout"],
)
@dataclass(frozen=True)
class StatsState:
    """A history while it grows; differentiate the loss with respect to `taps`."""

    taps: dict[str, Any]
    """One for each unit, zero where it is not to be read in the coming step."""
    sums: Any
    """Float[Array, "*seeds slots signals rows facts"]; `nnx.jit` puts other things in
    the place of arrays."""
    count: Any
    """Int[Array, "*seeds"], updates so far."""
    stride: Any
    """Int[Array, "*seeds"], readings in a slot."""
    layout: TapLayout


@dataclass(frozen=True)
class ActivationStats:
    """An accumulator of statistics; see `activation_stats`."""

    model: Any
    spec: TapSpec
    every: int
    slots: int
    near: float
    include: tuple[str, ...]
    exclude: tuple[str, ...]

    @usual_rules()
    def init(
        self,
        variables: Any,
        *args: Any,
        rngs: Any = None,
        method: Any = None,
        **kwargs: Any,
    ) -> StatsState:
        """An empty history of the units of one call; nothing runs.

        Args:
            variables: the model's, `{"params": ...}`; `scales` may be among them. Of
                NNX the module itself, which may be a tuned one.
            args, rngs, method, kwargs: what `apply` will be called with; arrays may be
                `jax.ShapeDtypeStruct`.

        Raises:
            TypeError, ValueError: variables have no params, a pattern matches no unit,
                or no unit is left.
        """
        params = params_of_call(variables)
        how = {"rngs": rngs, "method": method, **kwargs}
        graph = trace_user_call(self.model, variables, args, how)
        check_measurable(graph.units)
        layout = tap_layout(
            watched_units(graph.units, self.include, self.exclude), params
        )
        size = self.spec.size
        shape = self.slots, len(SIGNALS), len(layout.paths), size // len(SIGNALS)
        return StatsState(
            taps={t.name: jnp.ones(t.shape(size), jnp.float32) for t in layout.units},
            sums=jnp.zeros(shape, jnp.float32),
            count=jnp.zeros((), jnp.int32),
            stride=jnp.ones((), jnp.int32),
            layout=layout,
        )

    @by_value
    def apply(self, variables: Any, *args: Any, **kwargs: Any) -> Any:
        """The model's own `apply`, of variables with `taps` among them.

        Outputs, gradients of parameters and what is written are the model's. A module
        of NNX comes in the place of variables: `stats.apply(model, x, taps=taps)`.

        Raises:
            TypeError, ValueError: taps are missing, or of no module of the parameters.
        """
        tapped = lambda taps, params: tapping(
            self.spec, taps_by_unit(taps, params, self.spec.size)
        )
        return call_with_taps(self.model, variables, tapped, *args, **kwargs)

    @usual_rules()
    def update(self, state: StatsState, seen: Mapping[str, Array]) -> StatsState:
        """The history with the readings of one more step.

        Args:
            seen: the gradient of the loss with respect to `state.taps`.

        Raises:
            ValueError: `seen` is of other units.
        """
        if set(seen) != set(state.taps):
            raise ValueError(
                f"seen has entries {sorted(seen)[:6]}, expected the gradient of the "
                f"loss with respect to state.taps, {sorted(state.taps)[:6]}"
            )
        reading = state.layout.in_order(seen)
        reading = reading.reshape(len(reading), len(SIGNALS), -1).swapaxes(0, 1)
        taken = state.count // self.every
        at = taken // state.stride
        full = at >= self.slots
        # a loop of no or one turn: a branch of `cond` would copy the whole history
        sums = jax.lax.fori_loop(
            0, full * 1, lambda _, sums: _pool_neighbours(sums), state.sums
        )
        stride = jnp.where(full, 2 * state.stride, state.stride)
        at = taken // stride
        count = state.count + 1
        taps = state.taps
        if self.every > 1:
            on = jnp.asarray(count % self.every == 0, jnp.float32)
            taps = {name: jnp.full_like(tap, on) for name, tap in taps.items()}
        sums = sums.at[at].add(reading)
        return replace(state, taps=taps, sums=sums, count=count, stride=stride)

    @usual_rules()
    def value(self, state: StatsState) -> History:
        """The history so far, as means, deviations, dead shares and histograms."""
        readings = state.sums[..., TAP_FACTS.index("count")].sum((1, 2))
        readings = readings + state.sums[..., TAP_FACTS.index("nonfinite")].sum((1, 2))
        starts = jnp.arange(self.slots) * state.stride * self.every
        return History(
            steps=jnp.where(readings > 0, starts, -1),
            activations=self._signal(state.sums[:, 0]),
            gradients=self._signal(state.sums[:, 1]),
            edges=jnp.asarray(self.spec.edges(), jnp.float32),
            paths=state.layout.paths,
            of=self.spec.of,
            near=self.near,
        )

    def _signal(self, sums: Float[Array, "slots rows facts"]) -> SignalHistory:
        """Moments and shares, NaN where nothing was read."""
        facts = {name: sums[..., i] for i, name in enumerate(TAP_FACTS)}
        over = jnp.where(facts["count"] > 0, facts["count"], jnp.nan)
        every = facts["count"] + facts["nonfinite"]
        mean = facts["sum"] / over
        square = facts["squares"] / over
        shares = sums[..., len(TAP_FACTS) :] / over[..., None]
        known = jnp.isfinite(square)
        strength = jnp.sqrt(jnp.where(known, square, jnp.nan))
        variance = jnp.where(known, square - jnp.square(mean), square)
        return SignalHistory(
            mean=mean,
            std=jnp.sqrt(jnp.maximum(variance, 0)),
            rms=jnp.sqrt(square),
            dead=self.spec.within(shares, self.near * strength),
            nonfinite=facts["nonfinite"] / jnp.where(every > 0, every, jnp.nan),
            histogram=shares,
        )


def _pool_neighbours(sums: Array) -> Array:
    """Neighbouring slots added up, in the first half."""
    pairs = sums.reshape(-1, 2, *sums.shape[1:]).sum(1)
    return jnp.concatenate([pairs, jnp.zeros_like(pairs)])
