"""What the columns of tables mean, and which of them belong together."""

from collections.abc import Iterable, Sequence

GLOSSARY = {
    # of a measurement
    "path": "the unit, a module with parameters, by its place in the model",
    "kind": "the class of the module",
    "shape": "of the unit's output",
    "calls": "how often the unit is called in one run of the model",
    "region": "the part of the graph between units in which its input gradient lies",
    "output_rms": "root mean square of the unit's output; the aim is 1",
    "output_target": "what the rms of the output is to be",
    "output_mean": "mean of the output over its rms",
    "output_spread": "share of the output that differs between inputs: 0 where all "
    "look alike",
    "input_grad_rms": "root mean square of the gradient that leaves the unit toward "
    "its inputs; the aim is 1",
    "update_rms": "change of the unit's output by one step of its own parameters at "
    "learning rate 1; the aim is the same for all",
    "total_update_rms": "change of the unit's output when all units take that step; "
    "the aim is a largest one of 1",
    "amplification": "how much more differences between inputs have grown than the "
    "signal; 1 in a linear network",
    "epsilon_share": "what the optimizer's epsilon takes off the unit's first step",
    "cosine": "between the carried and the true gradient of the parameters; 1 is exact",
    "potential": "carried over true input gradient, equal all over a region",
    "loose_update_rms": "change by all that the total update leaves out",
    "param_rms": "root mean square of the unit's parameters",
    "param_grad_rms": "root mean square of their gradients",
    "output_factor": "a: multiplies the output, forward",
    "input_grad_factor": "b: multiplies the gradient that leaves toward the inputs",
    "output_grad_factor": "c: multiplies the gradient that enters from the output",
    "update_factor": "multiplies the optimizer's updates",
    "nonfinite": "number of elements that are not finite",
    "flag": "ok, or what is wrong with the unit",
    "output_deviation": "of log rms over draws: output",
    "input_grad_deviation": "of log rms over draws: input gradient",
    "update_deviation": "of log rms over draws: update",
    "trouble": "what is wrong with the unit, and what its value is to be",
    # of training and of comparisons
    "start": "the parameters and scales that training begins with",
    "strategy": "the way to initialize",
    "loss_before": "before the first step",
    "start_loss": "the loss before the first step",
    "loss_after": "mean over the last steps",
    "loss": "mean over the last steps, at the best learning rate",
    "learning_rate": "at which the loss ends lowest",
    "at_end": "whether that is the first or last of the rates tried",
    "seconds": "of one call of the strategy",
    "first_seconds": "of the first call, which compiles",
    "gradient_steps": "what a call costs, in gradient steps of the model",
    "activations": "octaves of the worst output's rms from 1",
    "gradients": "octaves of the worst input gradient's rms from 1",
    "updates": "octaves of the largest total update from 1",
    "uneven": "octaves between the largest and the least update of a unit's own",
    "spread": "standard deviation over seeds",
    # of histories and widths
    "size_exponent": "power of the width by which the size grows, before training",
    "last_size_exponent": "the same after the last step",
    "change_exponent": "power of the width by which the first change grows",
    "last_change_exponent": "the same of the last change",
    "verdict": "flat, grows or shrinks with the width",
}
"""Each column of the package's own tables, in one sentence."""


COLUMN_GROUPS = {
    "pillars": (
        *("kind", "shape", "calls", "output_rms", "output_mean", "output_spread"),
        *("input_grad_rms", "update_rms", "total_update_rms", "amplification", "flag"),
    ),
    "factors": (
        *("output_factor", "input_grad_factor", "output_grad_factor", "update_factor"),
        *("output_target", "cosine", "potential", "region"),
    ),
}
"""Columns of a wide table that are shown together; the others follow as "more"."""
WIDE_TABLE = 14
"""A table of more columns is shown in groups."""


def column_groups(names: Sequence[str]) -> dict[str, list[str]]:
    """The columns of a table by the heading of their group, each after the first one.

    One group without a heading where there are few columns, or none that is known.
    """
    first, *rest = names or [""]
    known = {title: _wanted_of(rest, group) for title, group in COLUMN_GROUPS.items()}
    grouped = {name for group in known.values() for name in group}
    if len(names) <= WIDE_TABLE or not grouped:
        return {"": list(names)}
    known["more"] = [name for name in rest if name not in grouped]
    return {title: [first, *group] for title, group in known.items() if group}


def _wanted_of(names: Iterable[str], wanted: Sequence[str]) -> list[str]:
    """The wanted names that there are, in the order wanted."""
    there = set(names)
    return [name for name in wanted if name in there]
