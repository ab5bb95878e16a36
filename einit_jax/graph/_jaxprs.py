"""What equations of jaxprs hold: bodies, the parts of a scan, custom reverse rules."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, jaxpr_as_fun, primitives


def open_jaxpr(jaxpr: Jaxpr | ClosedJaxpr) -> Jaxpr:
    """The jaxpr without its constants."""
    return jaxpr.jaxpr if isinstance(jaxpr, ClosedJaxpr) else jaxpr


def bodies(eqn: Any) -> list[Jaxpr]:
    """The jaxprs among an equation's parameters, in order."""
    return [open_jaxpr(j) for j in closed_bodies(eqn)]


def closed_bodies(eqn: Any) -> list[Jaxpr | ClosedJaxpr]:
    """The same, with their constants where they have some."""
    return [j for param in eqn.params.values() for j in _inner_jaxprs(param)]


def _inner_jaxprs(param: Any) -> list[Jaxpr | ClosedJaxpr]:
    if isinstance(param, Jaxpr | ClosedJaxpr):
        return [param]
    if isinstance(param, tuple | list):
        return [j for p in param for j in _inner_jaxprs(p)]
    return []


def has_cotangent(atom: Any) -> bool:
    """Whether a variable of a jaxpr is of a real or complex floating dtype."""
    return jnp.issubdtype(getattr(atom.aval, "dtype", jnp.int32), jnp.inexact)


def scan_counts(eqn: Any, body: Jaxpr) -> tuple[int, int]:
    """The numbers of constants and of carries of a scan.

    Read off the shapes: what a scan slices or stacks gains an axis. The counts among
    the equation's parameters have other names from version to version.
    """
    whole = lambda pair: pair[0].aval.ndim == pair[1].aval.ndim
    carries = sum(map(whole, zip(eqn.outvars, body.outvars, strict=True)))
    return sum(map(whole, zip(eqn.invars, body.invars, strict=True))) - carries, carries


def open_to_forward_mode(function: Callable, arguments: Sequence) -> Callable:
    """The function of such arguments, without the custom reverse rules in it.

    Forward mode has no way through a `custom_vjp`; but what a step changes is given by
    the derivative of the function that it wraps.
    """
    return jaxpr_as_fun(_without_reverse_rules(jax.make_jaxpr(function)(*arguments)))


def _without_reverse_rules(jaxpr: Any) -> Any:
    """The jaxpr (or what else a parameter is) with each `custom_vjp` laid open."""
    if isinstance(jaxpr, ClosedJaxpr) and jaxpr.jaxpr is not jaxpr:
        return jaxpr.replace(jaxpr=_without_reverse_rules(jaxpr.jaxpr))
    if isinstance(jaxpr, Jaxpr | ClosedJaxpr):
        either: Any = jaxpr  # the two are one class in newer versions
        return either.replace(eqns=[_without_reverse_rule(eqn) for eqn in jaxpr.eqns])
    if type(jaxpr) in (tuple, list):
        return type(jaxpr)(_without_reverse_rules(j) for j in jaxpr)
    return jaxpr


def _without_reverse_rule(eqn: Any) -> Any:
    if eqn.primitive is primitives.custom_vjp_call_p:
        body = _without_reverse_rules(eqn.params["call_jaxpr"])
        call = primitives.closed_call_p
        return eqn.replace(primitive=call, params={"call_jaxpr": body})
    params = {name: _without_reverse_rules(p) for name, p in eqn.params.items()}
    return eqn.replace(params=params)
