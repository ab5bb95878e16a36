"""How far each unit's step moves its own output, and a raw parameter's what reads it.

A raw parameter (a class token, a table of positions) has no unit whose output would
tell. What it moves at once are the inputs of the units that it gets to without passing
through another one, the outputs of those whose parameters it takes part in (the scale
of a weight norm), or the model's outputs. One forward-mode pass for each of them, at
which units stop all tangents; they run side by side under `vmap`, and with them that
of all units' own steps.
"""

from collections.abc import Mapping, Sequence
from functools import reduce
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..core import (
    ModelArgs,
    Partition,
    Path,
    anchor,
    broadcast_per_layer,
    float_leaves,
    multiply,
    plain,
    rms,
    rms_of_calls,
    type_of,
    varies,
    vary_with,
    zeros_of,
)
from ..graph import derivative_along
from ..units import (
    Interception,
    Objective,
    RawParameter,
    Unit,
    UnitCall,
    UnitKey,
)
from ._output_changes import Types, empty_changes, with_calls

SIDE_BY_SIDE = 8
"""Passes that run at once: they share what does not depend on the step."""


def own_changes(
    objective: Objective,
    units: tuple[Unit, ...],
    args: ModelArgs,
    *,
    outputs: Mapping[UnitKey, Array],
    step: list[Array],
    movers: Sequence[Unit | RawParameter | None],
) -> tuple[dict[UnitKey, Array], dict[Path, Array]]:
    """What each unit's step changes of its output, and each raw parameter's at once.

    The latter is the largest change of a unit's input, of the output of a unit whose
    inputs are held, or of an output of the model. By their rms, to first order, for
    each layer; over calls by mean squares.

    Args:
        objective: the model; the loss is not used.
        units: all of its units.
        args: what the model runs on.
        outputs: the factor a of each unit.
        step: how each floating leaf of params moves, in their order.
        movers: the unit of each of them, or the raw parameter that it is; None of what
            does not move.
    """
    raw = [mover for mover in movers if isinstance(mover, RawParameter)]
    leaves = Partition(plain(args.params))
    zeros = {u.key: empty_changes(u, outputs[u.key], wide=True) for u in units}
    zeros = vary_with(zeros, args)

    def changed(turn: _Turns) -> tuple[dict[UnitKey, Array], Float[Array, ""]]:
        """What all units change, or one layer of a raw parameter."""
        by_raw = dict(zip(raw, turn.of_raw, strict=True))

        def masked(t: Array, mover: Unit | RawParameter | None) -> Array:
            if mover is None:
                return jnp.zeros_like(t)
            if isinstance(mover, Unit):
                return multiply(t, turn.of_units)
            mask = by_raw[mover]
            return multiply(t, broadcast_per_layer(mask, t.shape, mover.lifted_axes))

        tangents = [masked(t, mover) for t, mover in zip(step, movers, strict=True)]

        def moved(sums: Any) -> tuple[Array, Array]:
            def forward(*floats: Array) -> list[Array]:
                entries = {k: {"output": outputs[k], **own} for k, own in sums.items()}
                taps = Interception("reads", entries, _read_inputs)
                filled = args._replace(params=leaves.build(list(floats)))
                return float_leaves(objective.run(filled, taps)[0])

            _, changes = derivative_along(forward, leaves.floats, tangents)
            sizes = [rms([jax.lax.stop_gradient(t)]) for t in changes]
            return anchor(changes), reduce(jnp.maximum, sizes, jnp.float32(0))

        run = lambda: jax.grad(moved, has_aux=True)(zeros)
        sums, of_outputs = objective.over_axis(run)
        of_units = {k: rms_of_calls(s["size"], s["calls"]) for k, s in sums.items()}
        return of_units, of_outputs

    turns = _turns(raw, any(isinstance(mover, Unit) for mover in movers))
    count = len(turns.of_units)
    if varies(args):
        found = jax.lax.map(changed, turns)
    elif count <= SIDE_BY_SIDE:
        found = jax.vmap(changed)(turns)
    else:
        found = jax.lax.map(changed, turns, batch_size=SIDE_BY_SIDE)
    of_units, of_outputs = found
    each = [jnp.max(own.reshape(count, -1), 1) for own in of_units.values()]
    largest = reduce(jnp.maximum, each, of_outputs)[int(turns.of_units[0]) :]
    starts = np.cumsum([0, *(each.size for each in raw)])
    return {key: own[0] for key, own in of_units.items()}, {
        each.path: largest[start : start + each.size].reshape(each.carried_shape)
        for each, start in zip(raw, starts, strict=False)
    }


class _Turns(NamedTuple):
    """Turn by turn, what moves: 1, or 0."""

    of_units: Any
    """All units; in the first turn, if at all."""
    of_raw: list[Any]
    """Each raw parameter, by layer."""


def _turns(raw: Sequence[RawParameter], with_units: bool) -> _Turns:
    """One turn for the units, then one for each layer of each raw parameter.

    Of many a whole number of rounds, for the last ones would be compiled apart.
    """
    count = with_units + sum(each.size for each in raw)
    rounds = -(-count // SIDE_BY_SIDE) if count > SIDE_BY_SIDE else 0
    every = np.zeros((max(count, rounds * SIDE_BY_SIDE), count), np.float32)
    np.fill_diagonal(every, 1)
    of_units = every[:, 0] if with_units else 0 * every[:, 0]
    ends = np.cumsum([with_units, *(each.size for each in raw)])
    parts = [every[:, a:b] for a, b in pairwise(ends)]
    shaped = zip(parts, raw, strict=True)
    return _Turns(of_units, [p.reshape(-1, *r.carried_shape) for p, r in shaped])


def _read_inputs(call: UnitCall, entry: Mapping[str, Any]) -> Any:
    """The call's outputs times a, which do not move on; how far they would, and its
    inputs do, is noted."""
    raw = call.proceed([jax.lax.stop_gradient(x) for x in call.inputs])
    outputs = [multiply(t, entry["output"].reshape(())) for t in raw]
    sums = {name: t for name, t in entry.items() if name in ("calls", "size")}
    return call.finish(_stop_changes(outputs, call.inputs, sums))


@jax.custom_jvp
def _stop_changes(outputs, inputs, sums):
    """The outputs, without tangents; the cotangents of `sums` tell those of inputs."""
    return outputs


@_stop_changes.defjvp
def _stop_jvp(primals, tangents):
    moved, along, _ = tangents
    return primals[0], _note_reads([*moved], [*along], primals[2])


@jax.custom_vjp
def _note_reads(moved, along, sums):
    """Zeros for the tangents of the outputs; `along`, of the inputs, leads to more."""
    return list(map(jnp.zeros_like, moved))


def _reads_forward(moved, along, sums):
    sizes = [rms([t]) for t in along] + [rms(moved)]
    size = reduce(jnp.maximum, sizes, jnp.zeros((), jnp.float32))
    types = Types(tuple(map(type_of, along)))
    return list(map(jnp.zeros_like, moved)), (with_calls({"size": size}, sums), types)


def _reads_backward(residual, cotangents):
    statistics, types = residual
    still = [jnp.zeros_like(t) for t in cotangents]
    return still, [zeros_of(kind) for kind in types.known], statistics


_note_reads.defvjp(_reads_forward, _reads_backward)
