"""A walk through nested jaxprs: where the features of weights go, and who reads them.

Every feature that a weight makes is a *channel*, with a number of its own. Channels are
followed through whatever treats all of them alike, up to the products in which the next
weights sum over them. What treats them otherwise is noted, too: gates, norms along
part of them, other data that is added.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jax.extend.core import Jaxpr, Literal, Var

from ..core import JaxprEqn
from ..graph import Level, open_jaxpr, scan_counts
from ._channel_rules import ChannelRules
from ._signals import Channels, Followed, Signal

ROUNDS = 4
"""How often the body of a loop is walked through at most, until carries agree."""


class ChannelWalk(ChannelRules):
    """Follows channels through nested jaxprs; what it notes is told when it has run."""

    def run(self, jaxpr: Jaxpr, ins: Sequence[Followed]) -> list[Followed]:
        """What comes out of a jaxpr."""
        env: dict[Var, Followed] = dict(zip(jaxpr.invars, ins, strict=True))
        nothing = Followed(self._uses.new(Level.CONSTANT, []))

        def read(atom: Any) -> Followed:
            if not isinstance(atom, Literal):
                return env.get(atom, nothing)
            number = float(atom.val) if np.ndim(atom.val) == 0 else None
            return nothing._replace(signal=number)

        for eqn in jaxpr.eqns:
            outs = self.equation(eqn, [read(v) for v in eqn.invars])
            env.update(zip(eqn.outvars, outs, strict=True))
        return [read(v) for v in jaxpr.outvars]

    def equation(self, eqn: JaxprEqn, ins: list[Followed]) -> list[Followed]:
        """The results of an equation."""
        name = eqn.primitive.name
        if name == "scan":
            return self._scan(eqn, ins)
        if name == "while":
            body = open_jaxpr(eqn.params["body_jaxpr"])
            ins = ins[eqn.params["cond_nconsts"] :]
            consts = eqn.params["body_nconsts"]
            return self._loop(body, ins[:consts], ins[consts:], [])
        if name == "cond":
            branches = [open_jaxpr(branch) for branch in eqn.params["branches"]]
            outs = [self.run(branch, ins[1:]) for branch in branches]
            return [self._either(column) for column in zip(*outs, strict=True)]
        inner = self._uses.body(eqn, len(ins))
        if inner is not None:
            return self.run(inner, ins)
        traced = self._uses.equation(eqn, [value.traced for value in ins])
        signals = self.signals_of(eqn, ins)
        pairs = zip(traced, signals, strict=True)
        return [Followed(value, signal) for value, signal in pairs]

    def _either(self, values: Sequence[Followed]) -> Followed:
        """What is known of one of several values."""
        traced = self._uses.either([value.traced for value in values])
        signal = values[0].signal
        for value in values[1:]:
            signal = self._join(signal, value.signal)
        return Followed(traced, signal)

    def _join(self, one: Signal, other: Signal) -> Signal:
        """What is known of a value that may be one or the other."""
        if isinstance(one, Channels) and isinstance(other, Channels):
            if one.numbers.shape == other.numbers.shape:
                self.same.append((one.numbers, other.numbers))
                return self.start(one.numbers, one.bends and other.bends)
        elif isinstance(one, Channels) and other == 0:
            return one
        elif isinstance(other, Channels) and one == 0:
            return other
        elif not isinstance(one, Channels) and not isinstance(other, Channels):
            return one if one == other else None
        self.lose(one, other)
        return None

    def _scan(self, eqn: JaxprEqn, ins: list[Followed]) -> list[Followed]:
        body = open_jaxpr(eqn.params["jaxpr"])
        consts, carries = scan_counts(eqn, body)
        first = consts + carries
        rows = [Followed(v.traced.iterated(), self._row(v.signal)) for v in ins[first:]]
        outs = self._loop(body, ins[:consts], ins[consts:first], rows)
        stack = lambda s: s._replace(numbers=s.numbers[None])
        stacked = [
            v._replace(signal=stack(v.signal)) if isinstance(v.signal, Channels) else v
            for v in outs[carries:]
        ]
        return outs[:carries] + stacked

    def _row(self, signal: Signal) -> Signal:
        """What one round of a scan sees of a value."""
        if not isinstance(signal, Channels):
            return signal
        if signal.numbers.shape[0] > 1:
            self.lose(signal)
            return None
        return signal._replace(numbers=signal.numbers[0])

    def _loop(
        self,
        body: Jaxpr,
        consts: list[Followed],
        carry: list[Followed],
        rows: list[Followed],
    ) -> list[Followed]:
        """Walks through a body until its carries are what they are after any round."""
        outs = carry
        for _ in range(ROUNDS):
            outs = self.run(body, [*consts, *carry, *rows])
            after = [
                Followed(
                    before.traced.joined(out.traced),
                    self._join(before.signal, out.signal),
                )
                for before, out in zip(carry, outs, strict=False)
            ]
            known = [_outline(value) for value in carry]
            carry = after
            if known == [_outline(value) for value in carry]:
                break
        else:
            self.lose(*(value.signal for value in carry))
        fresh = lambda v: v._replace(traced=self._uses.new(v.traced.level, [v.traced]))
        return [*map(fresh, carry), *map(fresh, outs[len(carry) :])]


def _outline(value: Followed) -> Any:
    """What of a carry has to stay the same from round to round."""
    signal = value.signal
    known = signal.numbers.shape if isinstance(signal, Channels) else signal
    return value.traced.level, known
