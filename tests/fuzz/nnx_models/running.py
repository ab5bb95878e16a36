"""An example of NNX as it runs."""

from functools import cached_property
from typing import Any

import jax
from flax import nnx

import einit_jax as ei
from einit_jax.binding import as_function, bind
from einit_jax.core import Draw
from einit_jax.units import Objective
from tests.fuzz.captures import NnxRecorder
from tests.fuzz.examples import Example
from tests.fuzz.nnx_models.building import by_names, named, raw_value
from tests.fuzz.nnx_models.model import nnx_job_of
from tests.fuzz.running import Run
from tests.support.cases import Job


class NnxRun(Run):
    """The same verbs, given a module and, as nested dicts, its parameters."""

    def make_job(self) -> Job:
        return nnx_job_of(self.example)

    @property
    def collections(self) -> dict:
        return as_function(self.job.model)[2]

    @cached_property
    def objective(self) -> Objective:
        return bind(as_function(self.job.model)[0], self.job.loss_fn)

    def plain(self, params: Any, batch: Draw) -> Any:
        return self._called(self._filled(params), batch)

    def scaled(self, params: Any, scales: Any, batch: Draw) -> Any:
        return self._called(ei.scaled(self._filled(params), scales), batch)

    def record(self, params: Any, scales: Any, batch: Draw) -> None:
        module = ei.scaled(self._filled(params), scales)
        with self.recorder.listening(module):
            self._called(module, batch)

    def fold(self) -> Any:
        job = self.job
        folded = ei.fold(
            job.model, job.params, self.scales, job.input_fn, **job.options
        )
        assert type(folded) is type(job.model)
        return named(nnx.state(folded, nnx.Param))

    @cached_property
    def recorder(self) -> NnxRecorder:
        return NnxRecorder([u.key for u in self.graph.units], self.job.params)

    def _filled(self, params: Any) -> Any:
        """A module of the trace that runs, with these parameters."""
        graphdef, own, rest = nnx.split(self.job.model, nnx.Param, ...)
        copied = jax.tree.map(lambda x: x, rest)
        return nnx.merge(graphdef, by_names(params, own), copied)

    def _called(self, module: Any, batch: Draw) -> Any:
        """The outputs, and what a call leaves in the module besides random keys."""
        inputs = batch.inputs
        if batch.rngs:
            keys: Any = dict(batch.rngs)
            nnx.reseed(module, policy="match_shape", **keys)
        outputs = module(*inputs.args, **inputs.kwargs)
        left = {
            "/".join(map(str, keys)): raw_value(leaf)
            for keys, leaf in nnx.to_flat_state(nnx.state(module))
            if not str(keys[-1]).startswith("einit:")
        }
        is_key = lambda x: jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)
        plain = {
            name: value
            for name, value in left.items()
            if not any(map(is_key, jax.tree.leaves(value)))
        }
        return outputs, plain


def run_of(example: Example) -> Run:
    """An example, by the library of its model."""
    return NnxRun(example) if example.library == "nnx" else Run(example)
