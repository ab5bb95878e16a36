"""Empirical initialization for Flax: run the network, measure, scale.

`tune` returns scale factors, `scaled` a model that takes them, `measure` the rms of
activations, gradients and updates in every layer; `plot`, `activation_stats`,
`coordinate_check` and `report` show what was measured.

Names are imported at the first use of one: `import einit_jax` itself takes no time.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .binding import load as load
    from .binding import save as save
    from .binding import scaled as scaled
    from .core import Batch as Batch
    from .core import Inputs as Inputs
    from .distinctness import distinct_targets as distinct_targets
    from .experiments import Comparison as Comparison
    from .experiments import CoordinateCheck as CoordinateCheck
    from .experiments import LearningRates as LearningRates
    from .experiments import compare as compare
    from .experiments import coordinate_check as coordinate_check
    from .experiments import find_learning_rate as find_learning_rate
    from .initializers import LinearStart as LinearStart
    from .initializers import autoinit as autoinit
    from .initializers import fans as fans
    from .initializers import gain as gain
    from .initializers import general_relu as general_relu
    from .initializers import gradinit as gradinit
    from .initializers import initialize as initialize
    from .initializers import looks_linear as looks_linear
    from .initializers import lsuv as lsuv
    from .initializers import metainit as metainit
    from .initializers import unit_params as unit_params
    from .linen import HyperCubes as HyperCubes
    from .linen import TrainState as TrainState
    from .measurement import ActivationStats as ActivationStats
    from .measurement import History as History
    from .measurement import Measurement as Measurement
    from .measurement import activation_stats as activation_stats
    from .measurement import measure as measure
    from .measurement import plot as plot
    from .pages import report as report
    from .reporting import __version__ as __version__
    from .tuning import fold as fold
    from .tuning import scale_updates as scale_updates
    from .tuning import tune as tune

__all__ = [
    "ActivationStats",
    "Batch",
    "Comparison",
    "CoordinateCheck",
    "History",
    "HyperCubes",
    "Inputs",
    "LearningRates",
    "LinearStart",
    "Measurement",
    "TrainState",
    "__version__",
    "activation_stats",
    "autoinit",
    "compare",
    "coordinate_check",
    "distinct_targets",
    "fans",
    "find_learning_rate",
    "fold",
    "gain",
    "general_relu",
    "gradinit",
    "initialize",
    "load",
    "looks_linear",
    "lsuv",
    "measure",
    "metainit",
    "plot",
    "report",
    "save",
    "scale_updates",
    "scaled",
    "tune",
    "unit_params",
]

if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module

        for room in ("binding", "core", "distinctness", "experiments",
                     "initializers", "linen", "measurement", "pages",
                     "reporting", "tuning"):  # fmt: skip
            door = import_module(f".{room}", __name__)
            names = vars(door).keys() & set(__all__)
            globals().update({n: getattr(door, n) for n in names})
        return globals()[name]

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
