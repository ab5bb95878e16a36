"""What tuning costs, in gradient steps of the same model.

    python -m tests.benchmarks.cost.speed [--deepest 256] [--skip-cold]

The sweep is the jitted function inside `tune(like="original")`: one forward and one
backward pass. `tune` is the whole call with its defaults, exact gradients and total
updates. The step is `jax.value_and_grad` of the plain model's loss. Ratios are of
medians of calls that take turns; `least` is the ratio of the least times, which other
users of the machine disturb less.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any
from unittest import mock

import jax

import einit_jax as ei
from einit_jax.graph import find_regions
from einit_jax.tuning import _tune
from einit_jax.units import ModelGraph
from tests.benchmarks.cost import networks
from tests.benchmarks.cost.networks import Plain, Scanned, dense, vision
from tests.benchmarks.cost.timing import compilations, medians, seconds
from tests.benchmarks.report import parser_of, show, verdict
from tests.benchmarks.training.families import Residual
from tests.support.cases import Job, cross_entropy
from tests.support.checks import traced

DEPTHS = (4, 16, 64, 256)
KEY = jax.random.key(2)
SWEEP, TUNE, DEEP, COLD, MEMORY, REGIONS = 1.5, 3.0, 1.3, 4.0, 1.25, 0.2
SCANS = {"scanned MLP 64": False, "scanned residual 64": True}


def jobs(deepest: int) -> Iterator[tuple[str, Job]]:
    for depth in DEPTHS:
        if depth <= deepest:
            yield f"MLP {depth}", dense(Plain(depth))
    for name, residual in SCANS.items():
        yield name, dense(Scanned(64, residual=residual))
    yield "ViT", vision(networks.ViT())
    yield "ResNet", vision(networks.ResNet())


def tiny_jobs() -> Iterator[tuple[str, Job]]:
    yield "MLP 3", dense(Plain(3, 16), 8)
    yield "scanned MLP 3", dense(Scanned(3), 8)


def step_arguments(job: Job) -> tuple:
    x = job.input_fn(jax.random.key(1))
    return job.params, job.options.get("collections", {}), x, KEY


def tuning(job: Job, like: str | None = None) -> Callable:
    """A call of `tune` as users write it, with a batch at hand."""
    params, _, x, key = step_arguments(job)
    options = {"key": key, "like": like, **job.options}
    return lambda: ei.tune(job.model, params, x, job.loss_fn, **options)


def arguments_of(module: Any, name: str, run: Callable) -> Any:
    """What `run()` passes to a function that a module has jitted."""
    with mock.patch.object(module, name, wraps=getattr(module, name)) as jitted:
        run()
    return jitted.call_args


def sweep_arguments(job: Job, like: str | None) -> Any:
    """What `tune` passes to the function it has jitted."""
    return arguments_of(_tune, "_tune_compiled", tuning(job, like))


def contenders(job: Job) -> dict[str, Callable]:
    """The step, the sweep and `tune`, ready to run."""
    step, of_step = networks.gradient_step(job), step_arguments(job)
    of_sweep = sweep_arguments(job, "original")
    return {
        "step": lambda: step(*of_step),
        "sweep": lambda: _tune._tune_compiled(*of_sweep.args, **of_sweep.kwargs),
        "tune": tuning(job),
    }


def memory(jitted: Callable, *arguments: Any, **static: Any) -> int:
    """Bytes that the compiled program holds at once."""
    m = jitted.lower(*arguments, **static).compile().memory_analysis()
    return m.temp_size_in_bytes + m.argument_size_in_bytes + m.output_size_in_bytes


def warm(
    name: str, job: Job, ratios: dict[str, float], rounds: tuple[int, int]
) -> dict[str, str]:
    """A row on second calls; notes the ratio of `tune` to the step."""
    calls = contenders(job)
    for call in calls.values():
        jax.block_until_ready(call())
    slowest = max(seconds(call) for call in calls.values())
    fewest, most = rounds
    middle, least = medians(calls, max(fewest, min(most, int(6 / slowest))))
    of_sweep = sweep_arguments(job, None)
    used = memory(_tune._tune_compiled, *of_sweep.args, **of_sweep.kwargs)
    used /= memory(networks.gradient_step(job), *step_arguments(job))
    compiled = compilations(calls["tune"])
    ratio = middle["sweep"] / middle["step"]
    ratios[name] = middle["tune"] / middle["step"]
    return {
        "model": name,
        "step ms": f"{1e3 * middle['step']:.2f}",
        f"sweep <= {SWEEP}": verdict(ratio, SWEEP),
        "least": f"{least['sweep'] / least['step']:.2f}",
        f"tune <= {TUNE}": verdict(ratios[name], TUNE),
        "least ": f"{least['tune'] / least['step']:.2f}",
        f"memory <= {MEMORY}": verdict(used, MEMORY),
        "compiled, 0": f"{compiled} {'MISS' if compiled else 'ok'}",
    }


def cold(name: str, job: Job) -> dict[str, str]:
    """A row on first calls: trace, compilation and run together."""
    middle, _ = medians(contenders(job), rounds=3, before=jax.clear_caches)
    return {
        "model": name,
        **{f"{k} s": f"{middle[k]:.2f}" for k in middle},
        "sweep / step": f"{middle['sweep'] / middle['step']:.2f}",
        f"tune / step <= {COLD}": verdict(middle["tune"] / middle["step"], COLD),
    }


def region_seconds(units: int) -> float:
    """The median time to find the regions of a residual MLP."""
    model, x = Residual(units // 2 - 1, 8), jax.random.normal(KEY, (4, 64))
    params = jax.eval_shape(model.init, KEY, x)["params"]
    graph = traced(Job(model, params, x, cross_entropy))
    assert len(graph.units) == units
    middle, _ = medians({"regions": lambda: _regions(graph)}, rounds=11)
    return middle["regions"]


def _regions(graph: ModelGraph) -> int:
    return find_regions(graph, graph.units).count


def main(words: Sequence[str] | None = None) -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--deepest", type=int, default=DEPTHS[-1])
    parser.add_argument("--skip-cold", action="store_true")
    given = parser.parse_args(words)
    built = list(tiny_jobs() if given.tiny else jobs(given.deepest))
    rounds, units = ((1, 2), 4) if given.tiny else ((11, 201), 300)
    if not given.skip_cold:
        slow = [job for job in built if given.tiny or job[0] in ("MLP 64", *SCANS)]
        show("first call", [cold(*job) for job in slow])
    ratios: dict[str, float] = {}
    rows = [warm(name, job, ratios, rounds) for name, job in built]
    show("second call, over a gradient step", rows)
    if "MLP 256" in ratios:
        grown = verdict(ratios["MLP 256"] / ratios["MLP 16"], DEEP)
        print(f"tune at 256 layers over tune at 16 <= {DEEP}: {grown}")
    found = verdict(region_seconds(units), REGIONS)
    print(f"regions of {units} units, s <= {REGIONS}: {found}")


if __name__ == "__main__":
    main()
