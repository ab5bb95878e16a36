"""`tune`: the scale factors of a model, measured on the model itself."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from numbers import Real
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import PyTree

from ._graph import Unit
from ._paths import Path, match
from ._plan import plan
from ._probe import probe, suspects
from ._problem import Batch, Problem, draw_batches, problem, stack
from ._regions import regions
from ._scaled import Scaled
from ._solve import solve, with_total
from ._state import Effort, Findings, Job
from ._units import ones, owners, to_tree


class Options(NamedTuple):
    """What of `tune` is static: the units that are meant, and when to stop."""

    include: tuple[str, ...] | None
    exclude: tuple[str, ...]
    targets: tuple[tuple[str, float], ...]
    effort: Effort
    gradients: str
    update: str


def tune(
    model: nn.Module | Scaled,
    params: PyTree,
    input_fn: Any,
    loss_fn: Callable,
    *,
    key: jax.Array | None = None,
    batch_size: int | None = None,
    method: str | Callable | None = None,
    rngs: Sequence[str] | Mapping[str, jax.Array] = (),
    collections: Mapping[str, Any] | None = None,
    axis_name: str | None = None,
    include: str | Sequence[str] | None = None,
    exclude: str | Sequence[str] = (),
    draws: int = 1,
    max_sweeps: int = 32,
    tolerance: float = 0.01,
    targets: float | Mapping[str, float] = 1.0,
    gradients: str = "exact",
    update: str = "total",
    like: str | None = None,
) -> dict:
    r"""The scale factors that make every layer of a model trainable from step one.

    Runs the model on a batch and measures; nothing is assumed of the architecture.
    With the factors a (`output`), b (`input_grad`) and c (`output_grad`) of each unit,
    `y = G_c(a f(theta, G_b(x)))` (see `scaled`), on the batch and key measured:

    1. activations: `rms(a f) = target` (1) for every unit;
    2. gradients, `gradients="exact"`: every cotangent is the true one times a positive
       number phi, the same all over a *region* of the graph between units (whatever an
       addition, an attention product or a scan's carry ties together), so that each
       parameter's gradient is its true gradient times a positive number. In each region
       `phi = 1 / geometric mean of rms(x_bar)` over the units that read it, the largest
       over a unit's floating inputs; the region of the loss has phi = 1;
    3. maximum stable update, `update="total"`: all units move equally, and the largest
       change of any unit's output is 1 when the parameters of all units take one SGD
       step of learning rate 1, to first order. A unit's own change is that of
       `Delta = a J_theta theta_bar`, inputs held fixed.

    The original's rules are `gradients="unit"`, the largest `rms(x_bar)` over each
    unit's inputs is 1 (in a chain the same; where branches meet, they are weighed
    against each other and gradients turn), and `update="local"`, `rms(Delta) = 1` for
    each unit by itself. `like="original"` means both.

    One forward and one backward pass solve pillars 1 and 2 for every unit that is
    called once, at any depth; one forward-mode pass finds the total update. Units that
    are called several times (recurrent cells, shared layers) have one set of factors
    for all calls; it is found by further passes, with mean squares taken over calls.
    Where true gradients leave the range of the dtype, a further pass reads them under
    the phi of the first one (not under an outer `jit`, unless some unit is float16).

    A parameter that no unit owns (a raw class token) has no factor: its gradient is
    phi times the true one, and it does not count toward the total update. `measure`
    tells what it moves.

    Arrays of zeros that would stop every gradient above them are replaced by probe
    draws while the model is measured, and stay zero in `params`; `measure` lists them.
    What a unit writes to mutable collections is thrown away. A factor whose statistic
    is zero (a dead input, a frozen branch) is 1, and `measure` flags the unit.

    Args:
        model: a Linen module, or a scaled one; it is not changed.
        params: its parameters; plain or frozen dicts, boxed, sharded.
        input_fn: `input_fn(key)` draws a batch: an array or pytree (the single
            argument), a tuple (positional arguments), or `Inputs`. A concrete batch is
            taken as it is. It is called outside of jit and need not be traceable.
        loss_fn: `loss_fn(outputs)`, a floating scalar; receives `key` and `inputs` if
            it names them. It is traced: nothing random but by `key`.
        key: a random key, for the batch, the loss, `rngs` and probe draws; the same key
            gives the same scales. Default `jax.random.key(0)`.
        batch_size: passed on where input_fn accepts it (64 where it demands one).
        method: name or function, as in `model.apply`.
        rngs: names of random streams, such as `("dropout",)`, or keys by name.
        collections: further variables, such as `{"batch_stats": ...}`.
        axis_name: the mapped axis that the model expects (`BatchNorm(axis_name=...)`).
        include: glob patterns over unit paths (`"blocks_*/Dense_0"`); None: all units.
        exclude: patterns of units that keep factors of 1.
        draws: batches to measure on, averaged in the logarithm.
        max_sweeps: most passes, where units are called several times.
        tolerance: largest |log rms| at which these passes stop.
        targets: the output rms to aim at, or patterns with their targets (first match).
            A readout at 1 / sqrt(width) makes learning rates carry over widths, as in
            mup (Yang and Hu, arXiv 2011.14522).
        gradients: the rule of pillar 2; "exact" or "unit".
        update: the rule of pillar 3; "total" or "local".
        like: "original" for `gradients="unit", update="local"`.

    Returns:
        The `scales` collection: nested as `params`, three float32 factors per unit,
        finite and positive, of shape `()`, or `(layers,)` under lifted transforms. With
        parameters of 64 bits b and c are float64 where exactness hangs on them.

    Raises:
        TypeError, ValueError: before anything is compiled, of arguments that do not
            fit; the message names the path and what to pass instead.
        FloatingPointError: an activation, a gradient or the loss is not finite; names
            the first such unit. Under an outer `jit` the flags of `measure` tell.

    Example:
        >>> import flax.linen as nn, jax, jax.numpy as jnp, einit_jax as ei
        >>> model = nn.Sequential([nn.Dense(32), jnp.tanh, nn.Dense(4)])
        >>> draw = lambda key: jax.random.normal(key, (64, 8))
        >>> params = model.init(jax.random.key(0), draw(jax.random.key(1)))["params"]
        >>> loss = lambda y, key: jnp.mean((y - jax.random.normal(key, y.shape)) ** 2)
        >>> scales = ei.tune(model, params, draw, loss)
        >>> sorted(scales["layers_0"])
        ['input_grad', 'output', 'output_grad']

    Source: P. Bement, empirical_init 0.0.2 (2023): the three scalars and their fixed
    point. There, weights are drawn anew and tuned in about 10 L + 22 model runs for L
    layers; here, one pass solves the same equations for the weights one has. Exact
    gradients and total updates are ours.
    """
    rules = _rules(gradients, update, like)
    options = _options(include, exclude, targets, max_sweeps, tolerance, rules)
    model = model.model if isinstance(model, Scaled) else model
    task = problem(model, loss_fn, method, axis_name)
    key = jax.random.key(0) if key is None else key
    batches = draw_batches(input_fn, key, rngs, batch_size, draws)
    zeros = suspects(params)
    given = (zeros, params, dict(collections or {}), batches, key)
    scales, findings = _tune(task, options, *given)
    if findings.needs_more():
        effort = options.effort._replace(again=True)
        scales, findings = _tune(task, options._replace(effort=effort), *given)
    findings.refuse()
    return scales


@partial(jax.jit, static_argnums=(0, 1, 2))
def _tune(
    task: Problem,
    options: Options,
    zeros: frozenset[Path] | None,
    params: Any,
    collections: Mapping,
    batches: tuple[Batch, ...],
    key: jax.Array,
) -> tuple[dict, Findings]:
    graph = plan(task, params, collections, batches[0])
    units = chosen(graph.units, options)
    params, _ = probe(params, graph, key, zeros)
    where = regions(graph, list(units)) if options.gradients == "exact" else None
    where = None if where is None or where.is_chain() else where
    job = Job(task, options.effort, units, where, owners(params, units))

    def run(batch: Batch) -> tuple[dict, Findings]:
        solution = solve(job, params, collections, batch)
        factors = ones(graph.units) | solution.factors
        if options.update == "total":
            factors = with_total(
                job, graph.units, factors, solution.gradient, params, collections, batch
            )
        return factors, solution.findings

    if len(batches) == 1:
        found, findings = run(batches[0])
    else:
        found, findings = jax.lax.map(run, stack(batches))
        found = jax.tree.map(lambda s: jnp.exp(jnp.mean(jnp.log(s), 0)), found)
        findings = findings.over_draws()
    return to_tree(found), findings


def chosen(units: tuple[Unit, ...], options: Options) -> dict[Unit, float]:
    """The units that the patterns leave in, with the output rms each aims at."""
    names = {unit.name: unit for unit in units}
    kept = set(names)
    if options.include is not None:
        kept = set(match(dict.fromkeys(options.include), names))
    kept -= set(match(dict.fromkeys(options.exclude), names))
    if not kept:
        raise ValueError("include and exclude leave no unit to tune")
    targets = match(dict(options.targets), names)
    return {u: targets.get(name, 1.0) for name, u in names.items() if name in kept}


RULES = {"gradients": ("exact", "unit"), "update": ("total", "local")}
LIKE = {"original": ("unit", "local")}


def _rules(gradients: str, update: str, like: str | None) -> tuple[str, str]:
    """The rules of pillars 2 and 3, by name.

    Raises:
        ValueError: an unknown name, or a rule that contradicts `like`.
    """
    given = {"gradients": gradients, "update": update}
    for name, known in RULES.items():
        if given[name] not in known:
            choices = " or ".join(map(repr, known))
            raise ValueError(f"{name}={given[name]!r} is not known; expected {choices}")
    if like is None:
        return gradients, update
    if like not in LIKE:
        raise ValueError(
            f"like={like!r} is not known; expected 'original', or leave it out"
        )
    for (name, known), meant in zip(RULES.items(), LIKE[like], strict=True):
        if given[name] not in (known[0], meant):
            raise ValueError(
                f"like={like!r} means {name}={meant!r}, not {given[name]!r}; give one"
            )
    return LIKE[like]


def _options(
    include: Any,
    exclude: Any,
    targets: Any,
    max_sweeps: int,
    tolerance: float,
    rules: tuple[str, str],
) -> Options:
    pairs = targets if isinstance(targets, Mapping) else {"*": targets}
    for pattern, target in pairs.items():
        if not (isinstance(target, Real) and 0 < float(target) < float("inf")):
            raise ValueError(
                f"target {target!r} of pattern {pattern!r} is not positive and finite"
            )
    if not isinstance(max_sweeps, int) or max_sweeps < 1:
        raise ValueError(
            f"max_sweeps is {max_sweeps!r}, expected an integer, at least 1"
        )
    if not (isinstance(tolerance, Real) and float(tolerance) > 0):
        raise ValueError(f"tolerance is {tolerance!r}, expected a positive number")
    return Options(
        None if include is None else _patterns(include),
        _patterns(exclude),
        tuple((p, float(t)) for p, t in pairs.items()),
        Effort(max_sweeps, float(tolerance)),
        *rules,
    )


def _patterns(patterns: str | Sequence[str]) -> tuple[str, ...]:
    return (patterns,) if isinstance(patterns, str) else tuple(patterns)
