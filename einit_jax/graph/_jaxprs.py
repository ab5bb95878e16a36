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
from jaxtyping import Array

from ..core import JaxprEqn, unforeseen

LOOPS = ("scan", "while", "cond")
"""Primitives whose bodies run several times, or not at all."""


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


def convolves(jaxpr: Jaxpr, *, in_loops: bool = False) -> bool:
    """Whether anything is convolved in a jaxpr, or if so asked in loops of it.

    On a CPU XLA convolves ten to twenty times slower in loops than outside of them.
    """

    def found(jaxpr: Jaxpr, counts: bool) -> bool:
        return any(
            (counts and eqn.primitive.name == "conv_general_dilated")
            or any(found(body, counts or _is_loop(eqn)) for body in bodies(eqn))
            for eqn in jaxpr.eqns
        )

    return found(jaxpr, not in_loops)


def _is_loop(eqn: JaxprEqn) -> bool:
    """Whether an equation is compiled as a loop or a branch."""
    name, params = eqn.primitive.name, eqn.params
    written_out = name == "scan" and params["unroll"] >= params["length"]
    return name in LOOPS and not written_out


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
    opened = _without_reverse_rules(jax.make_jaxpr(function)(*arguments))
    return _unrounded(opened) if _rounds(opened) else jaxpr_as_fun(opened)


def derivative_along(
    function: Callable, arguments: Sequence, step: Sequence
) -> tuple[list[Array], list[Array]]:
    """The results of a model, and how they move when its parameters take a step.

    Raises:
        ValueError: something in the model has no derivative in forward mode.
    """
    plainly = open_to_forward_mode(function, arguments)
    pairs = zip(step, arguments, strict=True)
    step = [unforeseen(t, x) for t, x in pairs]  # parameters at rest are no constants
    try:
        ends = jax.jvp(plainly, tuple(arguments), tuple(step))
    except Exception as error:
        raise ValueError(
            "the model has no derivative in forward mode, in which changes are found: "
            f"{type(error).__name__}: {error}; write what has none (a host "
            "callback in a custom_vjp) as a jax.custom_jvp, or tune(..., "
            "update='local') without an optimizer, which needs none"
        ) from error
    return jax.tree.map(jnp.asarray, ends)  # constants are arrays of numpy


def transposed(function: Callable, like: list[Array]) -> Callable:
    """The transpose of a function of a list of arrays that is linear, or nearly so.

    A custom reverse rule may clip cotangents and round them to 8 bits. What is
    transposed then is the derivative at zero, without rounding.

    Raises:
        ValueError: where it is called, if the function is not linear in another way.
    """

    def transpose(values: list[Array]) -> list[Array]:
        try:
            return jax.linear_transpose(function, like)(values)[0]
        except Exception as error:
            traced = jax.make_jaxpr(function)(like)
            if not _rounds(traced):
                raise ValueError(
                    "a unit has a reverse rule that is not linear in cotangents (their "
                    "sign, or a clip), so that no factor scales its gradients: "
                    f"{type(error).__name__}: {error}; take it out of the model, or "
                    "leave that unit out of tuning: tune(..., exclude=...)"
                ) from error
            smooth = _unrounded(traced)
            at_zero = [jnp.zeros_like(x) for x in like]
            _, back = jax.vjp(lambda arrays: smooth(*arrays), at_zero)
            return back(values)[0]

    return transpose


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


def _rounds(jaxpr: Any) -> bool:
    """Whether anything is rounded to 8 bits in a jaxpr."""
    return any(map(_rounds_in, open_jaxpr(jaxpr).eqns))


def _rounds_in(eqn: JaxprEqn) -> bool:
    """Whether anything is rounded to 8 bits in an equation."""
    return _has_8_bits(eqn.params.get("new_dtype")) or any(map(_rounds, bodies(eqn)))


def _has_8_bits(dtype: Any) -> bool:
    """Whether a dtype is of floats that have 8 bits or fewer."""
    floating = dtype is not None and jnp.issubdtype(dtype, jnp.floating)
    return floating and jnp.finfo(dtype).bits <= 8


def _unrounded(jaxpr: Any) -> Callable[..., list[Any]]:
    """The function of a jaxpr, but that nothing is rounded to 8 bits.

    Derivatives would be rounded as values are, and into a range that suits the values:
    of smaller ones nothing would be left.
    """
    body, consts = open_jaxpr(jaxpr), getattr(jaxpr, "consts", ())

    def run(*arguments: Any) -> list[Any]:
        known: dict[Any, Any] = dict(zip(body.constvars, consts, strict=True))
        known |= zip(body.invars, arguments, strict=True)
        read = lambda atom: atom.val if isinstance(atom, Literal) else known[atom]
        for eqn in body.eqns:
            outs = _equation_unrounded(eqn, [read(atom) for atom in eqn.invars])
            known |= zip(eqn.outvars, outs, strict=True)
        return [read(atom) for atom in body.outvars]

    return run


def _equation_unrounded(eqn: JaxprEqn, ins: list[Any]) -> list[Any]:
    """The results of an equation in which nothing is rounded to 8 bits."""
    name, params = eqn.primitive.name, dict(eqn.params)
    if _rounds_in(eqn):
        if name == "convert_element_type":
            return ins
        if name not in LOOPS:
            return _unrounded(closed_bodies(eqn)[0])(*ins)
        params = {name: _with_bodies_unrounded(p) for name, p in params.items()}
    # what was rounded outside of the jaxpr meets what was to be, and is not
    exact = [x.dtype for x, var in zip(ins, eqn.invars, strict=True) if _was(x, var)]
    if exact:
        ins = [x.astype(exact[0]) if _has_8_bits(x.dtype) else x for x in ins]
    bound = eqn.primitive.get_bind_params(params)
    outs = eqn.primitive.bind(*ins, **bound)
    return [*outs] if eqn.primitive.multiple_results else [outs]


def _was(value: Any, var: Any) -> bool:
    """Whether a value of more bits stands where the jaxpr has 8."""
    return _has_8_bits(var.aval.dtype) and not _has_8_bits(value.dtype)


def _with_bodies_unrounded(param: Any) -> Any:
    """A parameter of a loop's equation; its bodies are traced anew."""
    if isinstance(param, tuple):
        return tuple(map(_with_bodies_unrounded, param))
    if not isinstance(param, Jaxpr | ClosedJaxpr):
        return param
    jaxpr: Any = param  # the two are one class in newer versions
    kinds = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in jaxpr.in_avals]
    return jax.make_jaxpr(_unrounded(jaxpr))(*kinds)
