"""An example as it runs: what the verbs make of it, and what their errors mean.

An error in the package's own words is a refusal, and no failure, where `REFUSALS` has
the words.
"""

import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

import einit_jax as ei
from einit_jax.core import (
    Draw,
    ModelArgs,
    draw_batches,
    is_float,
    unboxed,
)
from einit_jax.units import (
    ModelGraph,
    Objective,
    UnitKey,
    from_tree,
    put_probes,
    zero_candidates,
)
from tests.fuzz.captures import LinenRecorder, Recorder
from tests.fuzz.examples import Example, job_of, tune_options
from tests.fuzz.rounding import sensitivity
from tests.support.cases import QUICK, Job
from tests.support.checks import objective_of

KEY = jax.random.key(0)
PACKAGE = str(Path(ei.__file__).parent)
DOCUMENTED = (TypeError, ValueError, FloatingPointError, NotImplementedError)
REFUSALS = (
    "has no units",
    "params are empty",
    "has no parameters",
    "does not depend on the model's outputs",
    "first step moves no parameter",
    "derivative",
    "no gradient of the loss reaches",
    "run inside of nn.custom_vjp",
    "computes with all parameters of the model",
)
"""Words of errors that tell of what the package does not take."""
UNSETTLED = "are not as large as they were tuned to be"
"""What is also said of units that are called several times and do not settle, as may be
where inputs jump."""
UNTRUE = "are not the true ones times a positive number"
"""What is also said where carried gradients, but no true ones, leave the range."""
JUMPING = ("'lookup'", "'tied'")
"""Kinds whose inputs are rounded to whole numbers."""
ROUNDING = {"float32": 1e-5, "bfloat16": 0.03, "float16": 0.01}


class Broken(AssertionError):
    """A property that does not hold."""


class Invalid(Exception):
    """The plain model does not run, or not in finite numbers."""


class Refused(Exception):
    """The package says that it does not take this."""


def expect(holds: Any, words: str) -> None:
    """Raises where something does not hold."""
    if not holds:
        raise Broken(words)


@dataclass
class Run:
    """One example and what the verbs make of it, each computed once."""

    example: Example
    job: Job = field(init=False)

    def __post_init__(self):
        try:
            self.job = self.make_job()
            jax.eval_shape(self.plain_step, self.job.params)
        except Exception as error:
            raise Invalid(f"{type(error).__name__}: {error}") from error

    # What hangs on the library of the model: of Linen here.

    def make_job(self) -> Job:
        return job_of(self.example)

    @property
    def collections(self) -> dict:
        return self.job.options["collections"]

    @cached_property
    def objective(self) -> Objective:
        return objective_of(self.job)

    def plain(self, params: Any, batch: Draw) -> Any:
        """The model's outputs, and whatever is sown."""
        return self._applied(self.job.model, {"params": params}, batch)

    def scaled(self, params: Any, scales: Any, batch: Draw) -> Any:
        """The same of the scaled model."""
        variables = {"params": params, "scales": scales}
        return self._applied(ei.scaled(self.job.model), variables, batch)

    def _applied(self, model: Any, variables: dict, batch: Draw) -> Any:
        return model.apply(
            {**variables, **self.collections},
            *batch.inputs.args,
            rngs=dict(batch.rngs),
            mutable=[*self.collections, "intermediates"],
            **batch.inputs.kwargs,
        )

    def record(self, params: Any, scales: Any, batch: Draw) -> None:
        """Runs the scaled model for the recorder."""
        with self.recorder.listening():
            self.scaled(params, scales, batch)

    def fold(self) -> Any:
        """The folded parameters."""
        job = self.job
        return ei.fold(job.model, job.params, self.scales, job.input_fn, **job.options)

    @cached_property
    def recorder(self) -> Recorder:
        return LinenRecorder([u.key for u in self.graph.units], self.job.params)

    # The model, without the package.

    def batches(self, draws: int = 1) -> tuple[Draw, ...]:
        rngs = self.job.options.get("rngs", ())
        return draw_batches(self.job.input_fn, KEY, rngs=rngs, draws=draws)

    @cached_property
    def plain_step(self) -> Callable:
        """Loss and gradient of the plain model, a function of its parameters."""

        def loss(params):
            (batch,) = self.batches()
            outputs, _ = self.plain(params, batch)
            return self.objective.loss(outputs, batch)

        step = jax.value_and_grad(loss, allow_int=True)
        return jax.jit(step, compiler_options=QUICK)

    @cached_property
    def plain_finite(self) -> bool:
        """Whether all numbers of the plain step are finite."""
        found = self.plain_step(self.job.params)
        floats = [x for x in jax.tree.leaves(found) if is_float(x)]
        return all(bool(jnp.isfinite(x).all()) for x in floats)

    @property
    def outputs_are_rounding(self) -> bool:
        """Whether the plain model's outputs are not known to a percent."""
        (batch,) = self.batches()
        outputs = jax.jit(lambda p: self.plain(p, batch)[0], compiler_options=QUICK)
        return sensitivity(outputs, self.job.params) > 0.01

    # The verbs.

    def called(self, verb: Callable, *args: Any, **keywords: Any) -> Any:
        """A verb's result; errors of the package's own words are refusals."""
        try:
            return verb(*args, **keywords)
        except (Broken, Invalid, Refused):
            raise
        except Exception as error:
            raise judged(error, self) from error

    @cached_property
    def graph(self) -> ModelGraph:
        (batch,) = self.batches()
        args = ModelArgs(self.job.params, self.collections, batch)
        return self.called(self.objective.trace, args)

    @cached_property
    def options(self) -> dict[str, Any]:
        return tune_options(self.example, tuple(u.name for u in self.graph.units))

    @property
    def draws(self) -> int:
        return self.options.get("draws", 1)

    def tune(self, params: Any) -> dict:
        return ei.tune(
            self.job.model,
            params,
            self.job.input_fn,
            self.job.loss_fn,
            **self.job.options,
            **self.options,
        )

    @cached_property
    def scales(self) -> dict:
        return self.called(self.tune, self.job.params)

    def measure(self) -> ei.Measurement:
        return ei.measure(
            *self.job[:4],
            **self.job.options,
            scales=self.scales,
            draws=self.draws,
            optimizer=self.options.get("optimizer"),
        )

    @cached_property
    def table(self) -> ei.Measurement:
        return self.called(self.measure)

    @cached_property
    def rows(self) -> dict[UnitKey, list[dict]]:
        """The rows of each unit."""
        names = {u.name: u.key for u in self.graph.units}
        found: dict[UnitKey, list[dict]] = {u.key: [] for u in self.graph.units}
        for row in self.table.rows():
            found[names[row["path"].partition("[")[0]]].append(row)
        return found

    @cached_property
    def factors(self) -> dict[UnitKey, dict]:
        return from_tree(self.scales, unboxed(self.job.params))

    @cached_property
    def probed(self) -> Any:
        """The parameters that were measured: zeros may have given way to draws."""
        params = self.job.params
        return put_probes(params, self.graph, KEY, zero_candidates(params))[0]

    @cached_property
    def ones(self) -> dict:
        return jax.tree.map(jnp.ones_like, self.scales)

    # What is known of how exact numbers are.

    @property
    def shared(self) -> bool:
        return any(u.calls > 1 for u in self.graph.units)

    @property
    def eps(self) -> float:
        """What rounding may do to a statistic."""
        kinds = (self.example.dtype, self.example.param_dtype)
        return max(ROUNDING[kind] for kind in kinds)

    @property
    def kinds(self) -> str:
        return repr(self.example.body)

    # Functions of parameters and factors, each compiled once.

    @cached_property
    def forward(self) -> Callable:
        """Outputs of the plain model, with factors of 1, and with those given."""

        def run(params, probed, scales, batch):
            ones = jax.tree.map(jnp.ones_like, scales)
            plain = self.plain(params, batch)
            tuned = self.scaled(params, scales, batch)
            self.record(probed, scales, batch)
            return plain, self.scaled(params, ones, batch), tuned

        return jax.jit(run, compiler_options=QUICK)

    @cached_property
    def gradient(self) -> Callable:
        """Of the loss of the scaled model, a function of its factors."""
        (batch,) = self.batches()

        def loss(params, scales):
            outputs, _ = self.scaled(params, scales, batch)
            return self.objective.loss(outputs, batch)

        return jax.jit(jax.grad(loss, allow_int=True), compiler_options=QUICK)


def judged(error: Exception, run: Run) -> Exception:
    """Whether an error is the package's own, and one that fits the example."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    text = f"{type(error).__name__}: {error}"
    try:
        run.plain_finite  # noqa: B018 - what follows is of models that run
    except Exception as own:
        return Invalid(f"{type(own).__name__}: {own}")
    if not isinstance(error, DOCUMENTED) or not last.filename.startswith(PACKAGE):
        where = f"{Path(last.filename).name}:{last.name}"
        return Broken(f"undocumented error in {where}: {text}")
    if isinstance(error, FloatingPointError):
        if run.plain_finite and not run.example.extreme and run.eps < 0.01:
            return Broken(f"finite numbers are refused: {text}")
        return Refused(text)
    if any(words in str(error) for words in REFUSALS):
        return Refused(text)
    jumps = run.shared and any(k in run.kinds for k in JUMPING)
    if UNSETTLED in text and (jumps or run.outputs_are_rounding):
        return Refused(text)
    if UNTRUE in text and run.example.extreme and run.eps > 1e-3:
        return Refused(text)
    return Broken(f"an error that does not fit: {text}")
