"""What equations of jaxprs hold: bodies, the parts of a scan, custom reverse rules."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import (
    ClosedJaxpr,
    Jaxpr,
    Literal,
    Var,
    jaxpr_as_fun,
    primitives,
)

from ..core import JaxprEqn


def open_jaxpr(jaxpr: Jaxpr | ClosedJaxpr) -> Jaxpr:
    """The jaxpr without its constants."""
    return jaxpr.jaxpr if isinstance(jaxpr, ClosedJaxpr) else jaxpr


def bodies(eqn: JaxprEqn) -> list[Jaxpr]:
    """The jaxprs among an equation's parameters, in order, without constants."""
    return [open_jaxpr(body) for body in closed_bodies(eqn)]


def closed_bodies(eqn: JaxprEqn) -> list[Jaxpr | ClosedJaxpr]:
    """The jaxprs among an equation's parameters, with the constants that they have."""
    return [body for param in eqn.params.values() for body in _inner_jaxprs(param)]


def _inner_jaxprs(param: Any) -> list[Jaxpr | ClosedJaxpr]:
    """The jaxprs in one parameter of an equation."""
    if isinstance(param, Jaxpr | ClosedJaxpr):
        return [param]
    if isinstance(param, tuple | list):
        return [body for entry in param for body in _inner_jaxprs(entry)]
    return []


def has_cotangent(atom: Var | Literal) -> bool:
    """Whether an operand or a result is of a real or complex floating dtype."""
    return jnp.issubdtype(getattr(atom.aval, "dtype", jnp.int32), jnp.inexact)


def shape_of(atom: Var | Literal) -> tuple[int, ...]:
    """The shape of an operand or a result that is an array."""
    aval: Any = atom.aval  # known as an `AbstractValue` only, which has no shape
    return aval.shape


def scan_counts(eqn: JaxprEqn, body: Jaxpr) -> tuple[int, int]:
    """The numbers of constants and of carries of a scan.

    They are read off the shapes, as what a scan slices or stacks gains an axis. The
    equation's parameters tell them too, but under names that differ between versions.
    """
    ndim = lambda atom: len(shape_of(atom))
    whole = lambda pair: ndim(pair[0]) == ndim(pair[1])
    carries = sum(map(whole, zip(eqn.outvars, body.outvars, strict=True)))
    unsliced = sum(map(whole, zip(eqn.invars, body.invars, strict=True)))
    return unsliced - carries, carries


def open_to_forward_mode(function: Callable, arguments: Sequence) -> Callable:
    """The function of such arguments, without the custom reverse rules in it.

    Forward mode cannot go through a `custom_vjp`, but it can go through the function
    that the `custom_vjp` wraps, and the derivative of that tells what a step changes.
    """
    return jaxpr_as_fun(_without_reverse_rules(jax.make_jaxpr(function)(*arguments)))


def _without_reverse_rules(param: Any) -> Any:
    """A jaxpr, or any parameter of an equation, with each `custom_vjp` laid open."""
    if isinstance(param, ClosedJaxpr) and param.jaxpr is not param:
        return param.replace(jaxpr=_without_reverse_rules(param.jaxpr))
    if isinstance(param, Jaxpr | ClosedJaxpr):
        jaxpr: Any = param  # the two are one class in newer versions
        return jaxpr.replace(eqns=[_without_reverse_rule(eqn) for eqn in jaxpr.eqns])
    if type(param) in (tuple, list):
        return type(param)(_without_reverse_rules(entry) for entry in param)
    return param


def _without_reverse_rule(eqn: JaxprEqn) -> JaxprEqn:
    """An equation without the custom reverse rules in it."""
    if eqn.primitive is primitives.custom_vjp_call_p:
        body = _without_reverse_rules(eqn.params["call_jaxpr"])
        call = primitives.closed_call_p
        return eqn.replace(primitive=call, params={"call_jaxpr": body})
    params = {name: _without_reverse_rules(p) for name, p in eqn.params.items()}
    return eqn.replace(params=params)
