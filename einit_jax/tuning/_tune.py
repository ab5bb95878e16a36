"""`tune`: the scale factors of a model, measured on the model itself."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, SupportsIndex

import jax
import optax
from jax.typing import ArrayLike
from jaxtyping import PyTree

from ..binding import Arrays, Model, any_library, check_convolved, compiled_once, setup
from ..core import (
    Draw,
    ModelArgs,
    Path,
    check_learning_rate,
    check_not_zero,
    checked_stopping,
    in_turn,
    is_concrete,
    usual_rules,
)
from ..units import (
    Objective,
    UnitKey,
    check_measurable,
    ones,
    put_probes,
    to_tree,
    unit_selection,
    zero_candidates,
)
from ..verification import Alignment, Verdict, align_gradients, judge, output_sizes
from ._options import TuneOptions, resolve_rules, sweep_spec
from ._solve import is_misled, over_draws, solve
from ._state import Findings
from ._update_factors import add_update_factors, keep_in_range, rescale_to_total


@any_library()
@usual_rules()
def tune(
    model: Model,
    params: PyTree,
    input_fn: Any,
    loss_fn: Callable,
    *,
    key: jax.Array | None = None,
    batch_size: SupportsIndex | None = None,
    method: str | Callable | None = None,
    rngs: Sequence[str] | Mapping[str, jax.Array] = (),
    collections: Mapping[str, Any] | None = None,
    axis_name: str | None = None,
    include: str | Sequence[str] | None = None,
    exclude: str | Sequence[str] = (),
    draws: SupportsIndex = 1,
    max_sweeps: SupportsIndex = 32,
    tolerance: float = 0.01,
    targets: ArrayLike | Mapping[str, ArrayLike | Sequence[float]] = 1.0,
    optimizer: optax.GradientTransformation | Callable | None = None,
    gradients: Literal["exact", "unit", "plain"] = "exact",
    update: Literal["total", "local"] = "total",
    like: Literal["original"] | None = None,
    verify: bool = True,
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
       change of any unit's output is 1 when all that multiplies takes one SGD step of
       learning rate 1, to first order. A unit's own change is that of
       `Delta = a J_theta theta_bar`, inputs held fixed.

    The original's rules are `gradients="unit"`, the largest `rms(x_bar)` over each
    unit's inputs is 1 (in a chain the same; where branches meet, they are weighed
    against each other and gradients turn), and `update="local"`, `rms(Delta) = 1` for
    each unit by itself. `like="original"` means both.

    With an `optimizer`, at learning rate 1, each unit gets a fourth factor, `update`,
    by which `scale_updates` multiplies what the optimizer makes of its gradients: Adam
    and its kin take no notice of their size. `update = 1 / rms(Delta)`, now with
    `Delta = a J_theta (delta theta)` of the optimizer's own first step; and with
    `update="total"` one common number more, such that the largest change of any unit's
    output is 1 when all take that step; c then is that of `update="local"`.
    `gradients="plain"` leaves b = c = 1 (so that the optimizer sees the gradients of
    the plain model), and all of pillar 3 to `update`; see `fold`.

    One forward and one backward pass solve pillars 1 and 2 for every unit that is
    called once, at any depth; one forward-mode pass finds the total update. Units that
    are called several times (recurrent cells, shared layers) have one set of factors
    for all calls; it is found by further passes, with mean squares taken over calls.
    Where true gradients leave the range of the dtype, a further pass reads them under
    the phi of the first one (not under an outer `jit`, unless some unit is float16).
    Where some size is so small or large that its square is no float32 (inputs of 1e-25,
    a loss of 1e30), all is solved by a second program, which reads the whole range;
    under an outer `jit` it is the only one.

    A parameter that no unit owns (a raw class token) has one factor, at its own path:
    `update`, or without an optimizer `output_grad`, which multiplies its gradient (none
    with `update="local"`). Its Delta is the largest change of a unit's input, or of the
    outputs, that its step makes at once. What is only added (tokens, positions) is not
    in the total update: before a normalization its derivative is far from its steps.

    Arrays of zeros that would stop every gradient above them are replaced by probe
    draws while the model is measured, and stay zero in `params`; `measure` lists them.
    What a unit writes to mutable collections is thrown away. A factor whose statistic
    is zero (a dead input, a frozen branch) is 1, and `measure` flags the unit.

    Args:
        model: a module of Linen or NNX, or a scaled one; it is not changed.
        params: its parameters; plain or frozen dicts, boxed, sharded. Of an NNX model
            None, its own (`nnx.Param`), or an `nnx.State` of what counts as such.
        input_fn: where batches come from; nothing of it need be traceable.

            - A function, `input_fn(key)`, that draws one.
            - A loader: PyTorch's, grain's, one of `tf.data`, a generator, whatever is
              iterated and is no pytree. The first `draws` batches are taken, anew in
              each call; an iterator goes on from where it is, and what is taken is
              gone. Tensors become arrays.
            - One batch, taken as it is.

            A batch is an array or pytree (the single argument of the model), a tuple
            (positional arguments), `Inputs`, or `Batch(inputs, labels)`. Where the loss
            names `labels` or `batch`, a tuple or list of two is (inputs, labels), and
            anything else has to be a `Batch`: of dicts nothing is guessed.
        loss_fn: `loss_fn(outputs)`, a floating scalar; it is traced. It gets what it
            names besides: `labels`; `batch`, the inputs with the labels as they were
            drawn; `collections`, what a model of Linen wrote in this run, as sown
            losses (`collections["losses"]`), which count as outputs; all three only
            without a default; `key`; `inputs`. Of an NNX model `loss_fn(model, batch)`,
            too, on any batch; with a second argument `batch` the first one says which
            it is, by its name (`model`, `outputs`, `logits`, ...) or annotation.
            `params` are refused: the gradient of a penalty reaches a parameter past its
            unit, where no factor scales it along with the rest. Decay weights in the
            optimizer, `optax.add_decayed_weights`.
        key: a random key, for the batch, the loss, `rngs` and probe draws; the same key
            gives the same scales. Default `jax.random.key(0)`.
        batch_size: passed on where input_fn accepts it (64 where it demands one).
        method: name or function, as in `model.apply`.
        rngs: names of random streams, such as `("dropout",)`, or keys by name. An NNX
            model gets them as `rngs` of its call, or as new keys of its streams.
        collections: further variables, `{"batch_stats": ...}`; of Linen.
        axis_name: the mapped axis that the model expects (`BatchNorm(axis_name=...)`).
        include: glob patterns over paths of units (`"blocks_*/Dense_0"`) and of raw
            parameters; None: all.
        exclude: patterns of units that keep factors of 1, and of raw parameters.
        draws: batches to measure on; a unit's mean logarithm is over those reaching it.
        max_sweeps: most passes, where units are called several times.
        tolerance: largest |log rms| at which these passes stop.
        targets: the output rms to aim at, or patterns with their targets (first match),
            from 1e-30 to 1e30; for a unit under `nn.scan` or `nn.vmap` over layers also
            an array of its layers' shape. Those of `measure(...).targets()` keep what
            the model computes. A readout at 1 / sqrt(width) makes learning rates carry
            over widths, as in mup (Yang and Hu, arXiv 2011.14522).
        optimizer: a function of the learning rate, such as `optax.adam`, or what it
            returns for 1.0, without `scale_updates`. Steps that tell of another
            learning rate (as those of Adam, Lion and SGD do) are refused. A new
            function or object at each call compiles anew at each call.
        gradients: the rule of pillar 2; "exact", "unit" or, with an optimizer,
            "plain".
        update: the rule of pillar 3; "total" or "local".
        like: "original" for `gradients="unit", update="local"`.
        verify: whether the scaled model runs once more, plainly, and the rms of each
            unit's output is compared with its target (on each draw, under the factors
            found there); by code that shares nothing with the sweep. It costs a forward
            pass.

    Returns:
        The `scales` collection: nested as `params`, three float32 factors per unit
        (four with an optimizer) and one per raw parameter, finite and positive, `()` or
        `(layers,)` under lifted transforms. With parameters of 64 bits b and c are
        float64 where exactness hangs on them.

    Raises:
        TypeError, ValueError: before anything is compiled, of arguments that do not
            fit, a batch of zeros among them; the message names the path and what to
            pass instead. Of an optimizer whose first step moves nothing, afterwards.
            An error of the model's or the loss's own code passes as it is, with a note.
        ValueError: outputs of the scaled model miss their targets by more than 1%
            (units called several times: more than `tolerance`), or gradients that are
            to be exact are not; names the units.
        FloatingPointError: an activation, a gradient, the loss or a step of the
            optimizer is not finite, or a factor, or the product of two of a unit, would
            be out of float32's range; names the first such unit. Under an outer `jit`
            the flags of `measure` tell.

    Example:
        >>> import flax.linen as nn, jax, jax.numpy as jnp, einit_jax as ei
        >>> model = nn.Sequential([nn.Dense(32), jnp.tanh, nn.Dense(4)])
        >>> draw = lambda key: jax.random.normal(key, (64, 8))
        >>> params = model.init(jax.random.key(0), draw(jax.random.key(1)))["params"]
        >>> loss = lambda y, key: jnp.mean((y - jax.random.normal(key, y.shape)) ** 2)
        >>> scales = ei.tune(model, params, draw, loss)
        >>> sorted(scales["layers_0"])
        ['input_grad', 'output', 'output_grad']

    Compilation: on a CPU with little effort where that takes longer than the run, but
    under `jax.jit` as usual; long sums are rounded by some 1e-4 then, in place of 1e-6.

    Source: P. Bement, empirical_init 0.0.2 (2023): the three scalars and their fixed
    point. There, weights are drawn anew and tuned in about 10 L + 22 model runs for L
    layers; here, one pass solves the same equations for the weights one has. Exact
    gradients and total updates are ours.
    """
    selection = unit_selection(include, exclude, targets)
    stopping = checked_stopping(max_sweeps, tolerance)
    rules = resolve_rules(gradients, update, like, optimizer)
    bound = setup(
        model, params, input_fn, loss_fn, key=key, batch_size=batch_size, method=method,
        rngs=rngs, collections=collections, axis_name=axis_name, draws=draws,
    )  # fmt: skip
    check_not_zero(bound.arrays.batches)
    if isinstance(optimizer, optax.GradientTransformation):
        check_learning_rate(optimizer, params)
    compiled = partial(
        _tune_compiled,
        bound.arrays,
        objective=bound.objective,
        zeros=zero_candidates(params),
    )
    # under an outer trace nobody can look, and look again
    traced = not all(map(is_concrete, jax.tree.leaves(bound.arrays)))
    options = TuneOptions(selection, stopping, rules, verify, wide=traced)
    scales, findings, verdicts = compiled(options=options)
    if not options.wide and not is_concrete(findings.loss):  # something else is traced
        scales, findings, verdicts = compiled(options=options._replace(wide=True))
    if findings.needs_more():
        options = options._replace(repeat_under_potentials=True, wide=True)
        scales, findings, verdicts = compiled(options=options)
    if is_misled(findings, verdicts):
        rest = options.selection.without(findings.to_leave_out())
        scales, findings, verdicts = compiled(options=options._replace(selection=rest))
    findings.check()
    for verdict in verdicts:
        verdict.check()
    return scales


@compiled_once("objective", "options", "zeros")
def _tune_compiled(
    arrays: Arrays,
    *,
    objective: Objective,
    options: TuneOptions,
    zeros: frozenset[Path] | None,
) -> tuple[dict, Findings, list[Verdict | Alignment]]:
    """The scales of all batches together, what was finite, what the referee says."""
    graph = objective.trace(arrays.args)
    check_measurable(graph.units)
    convolved = check_convolved(graph)
    params, _ = put_probes(arrays.params, graph, arrays.key, zeros)
    spec, regions = sweep_spec(objective, options, graph, params)
    units, total = spec.units, options.rules.update == "total"
    optimizer = options.rules.optimizer

    def run(batch: Draw) -> tuple[dict, Findings, dict[UnitKey, jax.Array]]:
        args = ModelArgs(params, arrays.collections, batch)
        solution = solve(spec, args)
        solution = solution._replace(factors=ones(graph.units) | solution.factors)
        if optimizer:
            how = {"optimizer": optimizer, "total": total, "like": arrays.params}
            solution = add_update_factors(spec, graph.units, solution, args, **how)
        elif total:
            solution = rescale_to_total(spec, graph.units, solution, args)
        if spec.wide:
            solution = keep_in_range(spec, solution)
        found, sizes = solution.factors, {}
        if options.verify:
            sizes = output_sizes(objective, list(units), found, args)
        return found | solution.raw, solution.findings, sizes

    drawn, findings, sizes = in_turn(run, arrays.batches, written_out=convolved)
    factors = over_draws([*units, *spec.raw], drawn, findings.heard)
    findings = findings.over_draws()
    if not options.verify:
        return to_tree(factors), findings, []
    verdicts: list = [judge(units, sizes, tolerance=options.stopping.tolerance)]
    doubtful = [] if regions is None else regions.coupled_units(list(units))
    if doubtful:
        args = arrays.args._replace(params=params)
        of_units = {unit.key: factors[unit.key] for unit in graph.units}
        verdicts.append(align_gradients(objective, doubtful, of_units, args))
    return to_tree(factors), findings, verdicts
