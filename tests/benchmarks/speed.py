"""What tuning costs, in gradient steps of the same model.

    JAX_PLATFORMS=cpu python -m tests.benchmarks.speed [--deepest 256] [--skip-cold]

The sweep is the jitted function inside `tune(like="original")`: one forward and one
backward pass. `tune` is the whole call with its defaults, exact gradients and total
updates. The step is `jax.value_and_grad` of the plain model's loss. Ratios are of
medians of calls that take turns; `least` is the ratio of the least times, which other
users of the machine disturb less.
"""

import argparse
from collections.abc import Callable, Iterator
from unittest import mock

import jax

import einit_jax as ei
from einit_jax import _tune
from einit_jax.core import draw_batches
from einit_jax.graph import find_regions
from einit_jax.linen import make_objective, trace_model
from einit_jax.units import ModelGraph
from tests.benchmarks import networks
from tests.benchmarks.families import Residual
from tests.benchmarks.networks import Plain, Scanned, dense, vision
from tests.benchmarks.report import show, verdict
from tests.benchmarks.timing import compilations, medians, seconds
from tests.cases import Job, cross_entropy

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


def step_arguments(job: Job) -> tuple:
    x = job.input_fn(jax.random.key(1))
    return job.params, job.options.get("collections", {}), x, KEY


def tuning(job: Job, like: str | None = None) -> Callable:
    """A call of `tune` as users write it, with a batch at hand."""
    params, _, x, key = step_arguments(job)
    options = {"key": key, "like": like, **job.options}
    return lambda: ei.tune(job.model, params, x, job.loss_fn, **options)


def sweep_arguments(job: Job, like: str | None) -> tuple:
    """What `tune` passes to the function it has jitted."""
    with mock.patch.object(_tune, "_tune", wraps=_tune._tune) as sweep:
        tuning(job, like)()
    return sweep.call_args.args


def contenders(job: Job) -> dict[str, Callable]:
    """The step, the sweep and `tune`, ready to run."""
    step, of_step = networks.gradient_step(job), step_arguments(job)
    of_sweep = sweep_arguments(job, "original")
    return {
        "step": lambda: step(*of_step),
        "sweep": lambda: _tune._tune(*of_sweep),
        "tune": tuning(job),
    }


def memory(jitted: Callable, arguments: tuple) -> int:
    """Bytes that the compiled program holds at once."""
    m = jitted.lower(*arguments).compile().memory_analysis()
    return m.temp_size_in_bytes + m.argument_size_in_bytes + m.output_size_in_bytes


def warm(name: str, job: Job, ratios: dict[str, float]) -> dict[str, str]:
    """A row on second calls; notes the ratio of `tune` to the step."""
    calls = contenders(job)
    for call in calls.values():
        jax.block_until_ready(call())
    slowest = max(seconds(call) for call in calls.values())
    middle, least = medians(calls, rounds=max(11, min(201, int(6 / slowest))))
    used = memory(_tune._tune, sweep_arguments(job, None))
    used /= memory(networks.gradient_step(job), step_arguments(job))
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


def region_seconds() -> float:
    """The median time to find the regions of a residual MLP of 300 units."""
    model, x = Residual(149, 8), jax.random.normal(KEY, (4, 64))
    params = jax.eval_shape(model.init, KEY, x)["params"]
    (batch,) = draw_batches(x, KEY, (), None, 1)
    objective = make_objective(model, cross_entropy, None, None)
    graph = trace_model(objective, params, {}, batch)
    assert len(graph.units) == 300
    middle, _ = medians({"regions": lambda: _regions(graph)}, rounds=11)
    return middle["regions"]


def _regions(graph: ModelGraph) -> int:
    return find_regions(graph, graph.units).count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--deepest", type=int, default=DEPTHS[-1])
    parser.add_argument("--skip-cold", action="store_true")
    given = parser.parse_args()
    if not given.skip_cold:
        slow = ("MLP 64", *SCANS)
        show("first call", [cold(n, job) for n, job in jobs(64) if n in slow])
    ratios: dict[str, float] = {}
    rows = [warm(name, job, ratios) for name, job in jobs(given.deepest)]
    show("second call, over a gradient step", rows)
    if "MLP 256" in ratios:
        grown = verdict(ratios["MLP 256"] / ratios["MLP 16"], DEEP)
        print(f"tune at 256 layers over tune at 16 <= {DEEP}: {grown}")
    print(f"regions of 300 units, s <= {REGIONS}: {verdict(region_seconds(), REGIONS)}")


if __name__ == "__main__":
    main()
