"""Which units cannot be measured, and what to do instead."""

from collections.abc import Iterable

from ._unit import Unit


def check_measurable(units: Iterable[Unit]) -> None:
    """Raises where a backward pass is not the one that statistics travel by.

    Raises:
        ValueError: the model differentiates some unit itself, or runs it under a lifted
            custom reverse rule.
    """
    units = tuple(units)
    inside = [unit.name for unit in units if unit.differentiated]
    if inside:
        raise ValueError(
            f"the model differentiates {', '.join(inside[:8])} itself (jax.grad or the "
            "like inside of a call): scaled gradients would make that derivative "
            "another one; pass the model, or the method, that is differentiated, with "
            "gradients='plain' and an optimizer: its factors b and c are 1, and leave "
            "derivatives true"
        )
    ruled = [unit.name for unit in units if unit.ruled]
    if ruled:
        raise ValueError(
            f"{', '.join(ruled[:8])} run inside of nn.custom_vjp, whose backward rule "
            "may do anything to what is measured; measure the model without the rule "
            "(the parameters and the scales are the same), or write the rule with "
            "jax.custom_vjp, on the arrays inside of one module"
        )
