"""What the trainings of an example come to: each start at its best learning rate."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..pages import TrainingCurves


def curves_at_best(found: Mapping[str, Any], advised: str) -> "TrainingCurves":
    """The training of each start at the rate at which it ends lowest.

    Args:
        found: `LearningRates` by start, all of the same rates and steps.
        advised: the start whose rate is advised.
    """
    from ..pages import TrainingCurves
    from ..reporting import power_of_two

    least = {name: int(each.final.mean(0).argmin()) for name, each in found.items()}
    rates = found[advised].rates
    span = f"{power_of_two(rates[0])} to {power_of_two(rates[-1])}"
    about = [f"each at the best for it of {len(rates)} learning rates of Adam, {span}"]
    ends = [name for name, i in least.items() if i in (0, len(rates) - 1)]
    if ends:
        about.append(f"best at an end of these rates: {', '.join(ends)}")
    try:
        rate = power_of_two(found[advised].best)
        about.append(
            f"advised learning rate, {advised}: {rate} if it is held, 1 if it falls to "
            "0, by ei.scale_updates(scales) after the optimizer"
        )
    except ValueError as error:  # it learns at none
        about.append(str(error))
    return TrainingCurves(
        {name: each.losses[0, least[name]] for name, each in found.items()},
        {name: rates[i] for name, i in least.items()},
        tuple(about),
    )
