"""How far a model is from its pillars, a number for each."""

import numpy as np

from ..measurement import FLAGS, Measurement


def pillar_distances(measurement: Measurement) -> dict[str, float]:
    """How far the worst unit is from 1 in each pillar, in octaves; see `Trial`."""
    worst = {name: octaves for name, (_, octaves) in measurement.worst().items()}
    reached = np.asarray(measurement.flag) != FLAGS.index("unreached")
    own = np.asarray(measurement.update_rms, np.float64)[reached]
    largest = np.max(np.asarray(measurement.total_update_rms, np.float64))
    with np.errstate(divide="ignore", invalid="ignore"):
        updates = float(np.abs(np.log2(largest)))
        uneven = float(np.log2(own.max() / own.min()))
    return {
        "activations": worst.get("output_rms", float("nan")),
        "gradients": worst.get("input_grad_rms", float("nan")),
        "updates": float("inf") if np.isnan(updates) else updates,
        "uneven": float("inf") if np.isnan(uneven) else uneven,
    }
