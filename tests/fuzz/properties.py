"""What holds of every example; a property that does not raises `Broken`."""

import math
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from einit_jax.core import flatten, is_float, is_under, layer_axes, unboxed
from einit_jax.graph import parameter_axes
from einit_jax.units import FACTORS
from tests.fuzz.examples import Example
from tests.fuzz.nnx_models.running import run_of
from tests.fuzz.rounding import nudged
from tests.fuzz.running import (
    PACKAGE,
    Broken,
    Invalid,
    Refused,
    Run,
    expect,
    judged,
)
from tests.support.checks import forward_only

EXACT = 1e-4
"""How far from 1 cosines may be, by rounding in 32 bits."""
NARROW, ROUGH = ("rnn", "complex"), 0.01
"""Kinds that compute in 32 bits whatever their inputs are, and what is allowed them."""
BLOCKING = ("'stop'", "'lookup'", "'tied'", "'forces'")
"""Kinds behind which no gradient passes: to whole numbers, to constant derivatives."""
SPREAD = 10
"""How many times two programs may round further apart than one does as its parameters
are nudged."""
ROUNDED = 1e5
"""Potentials that are further apart are of gradients that are rounding."""
TRANSFORMED = ("weight_norm", "spectral_norm", "mapped")
"""Kinds whose units see other parameters than the model has."""
TWO_OWNERS = "one_kernel"
"""Whose kernel lies in two units: what its step moves in the second is not counted."""


def factors_are_positive(run: Run) -> None:
    """Finite, positive, float32; those of units left out are 1."""
    for key, own in run.factors.items():
        expect(set(FACTORS) <= set(own), f"{key} has {sorted(own)}")
        for name, value in own.items():
            fine = np.isfinite(value).all() and np.all(value > 0)
            expect(fine, f"factor {name} of {key} is {value}")
    if run.options.get("gradients") == "plain":
        for key, own in run.factors.items():
            ones = [own["input_grad"], own["output_grad"]]
            expect(all(np.all(v == 1) for v in ones), f"plain gradients, {key}: {own}")


def the_same_key_gives_the_same_bits(run: Run) -> None:
    again, table = run.called(run.tune, run.job.params), run.called(run.measure)
    pairs = [*zip(jax.tree.leaves(run.scales), jax.tree.leaves(again), strict=True)]
    pairs += zip(jax.tree.leaves(run.table), jax.tree.leaves(table), strict=True)
    same = all(np.array_equal(a, b, equal_nan=True) for a, b in pairs)
    expect(same, "a second call gives other bits")


def jitted_is_eager(run: Run) -> None:
    """The same factors under an outer `jit`; of some examples, by their seed."""
    if run.example.seed:
        return
    jitted = run.called(jax.jit(run.tune), run.job.params)
    rtol = 50 * run.eps if run.shared else run.eps
    if run.options.get("optimizer") is not None or run.example.extreme:
        return
    if any(name in run.kinds for name in BLOCKING):
        return  # units that no gradient reaches: known only where one may look
    if rounded_alone(run):
        return
    rtol = max(rtol, 1e-6 * cancelled(run))
    paths = [jax.tree_util.keystr(p) for p, _ in jax.tree.leaves_with_path(run.scales)]
    off = log_ratios(run.scales, jitted)
    if max(off) < rtol:
        return
    both = run.job.params, nudged(run.job.params)
    moved = log_ratios(*(run.called(run.tune, params) for params in both))
    for path, far, by_rounding in zip(paths, off, moved, strict=True):
        fine = far < max(rtol, SPREAD * by_rounding)
        expect(fine, f"{path} jitted is off by {far:.2g}")


def log_ratios(a: Any, b: Any) -> list[float]:
    """Of two trees of factors, by leaf: the largest ratio's logarithm."""
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return [float(np.max(np.abs(np.log(x) - np.log(y)))) for x, y in pairs]


def outputs_are_at_their_targets(run: Run) -> None:
    """Seen from outside; `measure` says the same, and flags what is not."""
    seen = []
    for batch in run.batches(run.draws):
        run.recorder.clear()
        run.forward(run.job.params, run.probed, run.scales, batch)
        seen.append(run.recorder.rms())
    left_out = run.options.get("exclude", ())
    aims = run.options.get("targets", 1.0)
    for unit in run.graph.units:
        rows, name = run.rows[unit.key], unit.name
        flags = {row["flag"] for row in rows}
        draws = [each[unit.key] for each in seen if each[unit.key]]
        if "'cached'" in run.kinds and "Jit" in name:
            continue  # one trace serves several modules, and calls back for the first
        if not draws:
            expect(flags == {"unreached"}, f"{name} is not called and flagged {flags}")
            continue
        if flags == {"unreached"} and any(kind in run.kinds for kind in BLOCKING):
            continue  # in a lifted transform nothing is seen of it
        if {len(layers) for layers in draws} != {len(rows)}:
            continue  # layers with equal parameters cannot be told apart
        with np.errstate(all="ignore"):
            found = np.sort(np.exp(np.mean(np.log(np.array(draws)), 0)))
        told = np.sort([row["output_rms"] for row in rows])
        if not np.all(np.isfinite(found) & (found > 0)):
            expect(flags != {"ok"}, f"{name} has rms {found} and is flagged ok")
            continue
        wide = 10 * run.eps
        expect(
            np.allclose(told, found, rtol=max(1e-3, wide)),
            f"{name}: measure says {told}, outputs have {found}",
        )
        aim = aims if isinstance(aims, float) else aims.get(name, 1.0)
        if name == left_out or flags != {"ok"} or run.draws > 1:
            continue  # averages over draws are not those of layers on each other
        rtol = max(0.05 if run.shared else 0.01, run.eps)
        off = np.max(np.abs(found / aim - 1))
        expect(off < rtol, f"{name} ({flags}) has rms {found}, expected {aim}")


def cancelled(run: Run) -> float:
    """How many times smaller some gradient is than another: digits that sums lose."""
    potentials = [p for p in (r["potential"] for r in run.table.rows()) if p > 0]
    return max(potentials) / min(potentials) if potentials else 1.0


def rounded_alone(run: Run) -> bool:
    """Whether some unit's numbers are nothing but rounding, by how far apart they are:
    a norm of two values gives them no gradient, and one over a mean of norms no size.
    """
    return cancelled(run) > ROUNDED


def rules_hold(run: Run) -> None:
    """`measure` finds that the rules hold that were asked for.

    But for exact gradients, which rounding may turn where there are nearly none.
    """
    whole = run.draws == 1 and "exclude" not in run.options and run.eps < 1e-3
    flags = {row["flag"] for row in run.table.rows()}
    if not whole or "ok" not in flags or "non-finite" in flags:
        return
    if rounded_alone(run):
        return
    if any(np.isnan(row["cosine"]) for row in run.table.rows()):
        return  # a unit without any gradient, of which weights may decay
    held, options = run.table.modes(), run.options
    if options.get("gradients") == "unit":
        expect("unit" in held["gradients"], f"gradients are not unit: {held}")
    if options.get("optimizer") and any(name in run.kinds for name in TRANSFORMED):
        return  # an update is that of the transformed parameters that a unit sees
    if options.get("optimizer") and "attention" in run.kinds:
        return  # what an optimizer makes of a key's bias, whose gradient is rounding
    update = options.get("update", "total")
    known = update in held["update"] or TWO_OWNERS in run.kinds
    expect(known, f"updates are not {update}: {held}")


def carried_gradients_are_true(run: Run) -> None:
    """The gradient of every parameter, up to a positive factor.

    What may be rounding is looked at again in a wider dtype.
    """
    if run.options.get("gradients", "exact") != "exact" or run.example.extreme:
        return
    if rounded_alone(run):
        return
    worst, path = gradient_deviation(run)
    if worst > EXACT and run.eps > 1e-3:
        wide = {"dtype": "float32", "param_dtype": "float32"}
        run = run_of(replace(run.example, **wide))
        worst, path = gradient_deviation(run)
    limit = ROUGH if any(name in run.kinds for name in NARROW) else EXACT
    if worst > limit == EXACT:
        with jax.enable_x64(True):
            worst, path = gradient_deviation(widened(run))
    expect(worst < limit, f"gradient of {'/'.join(path)}: cosine is 1 - {worst:.2g}")


def gradient_deviation(run: Run) -> tuple[float, tuple]:
    """1 minus the least cosine, and of which parameter."""
    under = lambda scales: flatten(unboxed(run.gradient(run.probed, scales)))
    both = [under(scales) for scales in (run.scales, forward_only(run.scales))]
    lifts = {unit.path: unit.lifted_axes for unit in run.graph.units}
    axes = parameter_axes(run.graph)
    worst: tuple[float, tuple] = (0.0, ())
    for path, true in both[1].items():
        if not is_float(true):
            continue
        unit = next((u for u in lifts if is_under(path, u)), None)
        kin = [p for p in both[1] if unit is not None and is_under(p, unit)] or [path]
        raw = unit is None
        layers = axes[path].layers if raw else layer_axes(true.shape, lifts[unit])
        g, t = (by_layer(side[path], layers) for side in both)
        floor = max(
            np.linalg.norm(by_layer(both[1][p], ()))
            for p in kin
            if is_float(both[1][p])
        )
        sizes = np.linalg.norm(g, axis=1), np.linalg.norm(t, axis=1)
        for i in np.flatnonzero((sizes[1] > 1e-3 * floor) & (sizes[1] > 1e-12)):
            if not np.isfinite(sizes[0][i] + sizes[1][i]):
                continue
            cosine = np.real(np.vdot(g[i], t[i])) / max(
                sizes[0][i] * sizes[1][i], 1e-300
            )
            worst = max(worst, (float(1 - cosine), path))
    return worst


def by_layer(x: Any, layers: tuple[int, ...]) -> np.ndarray:
    """The array as (layers, elements), in double precision."""
    wide = np.asarray(x).astype(complex)
    count = math.prod(x.shape[i] for i in layers)
    return np.moveaxis(wide, layers, range(len(layers))).reshape(count, -1)


def widened(run: Run) -> Run:
    """The same with parameters of 64 bits, tuned anew."""
    again = object.__new__(type(run))
    again.example = run.example
    wide = lambda p: p.astype(jnp.result_type(p, jnp.float64)) if is_float(p) else p
    again.job = run.job._replace(params=jax.tree.map(wide, run.job.params))
    return again


def factors_of_one_change_nothing(run: Run) -> None:
    """Nor does the model see that they are there: outputs, and what it sows."""
    (batch,) = run.batches()
    plain, ones, _ = run.forward(run.job.params, run.probed, run.scales, batch)
    expect(
        jax.tree.structure(plain) == jax.tree.structure(ones), "other trees come out"
    )
    names = [jax.tree_util.keystr(p) for p, _ in jax.tree.leaves_with_path(plain)]
    pairs = zip(jax.tree.leaves(plain), jax.tree.leaves(ones), strict=True)
    how = {"rtol": run.eps, "atol": run.eps * peak(plain), "equal_nan": True}
    for name, (a, b) in zip(names, pairs, strict=True):
        a, b = (np.asarray(x).astype(complex) for x in (a, b))
        with np.errstate(all="ignore"):
            close = np.allclose(a, b, **how)
        told = f"from {a.ravel()[:3]} to {b.ravel()[:3]}"
        expect(close, f"factors of 1 change {name} {told}")


def peak(tree: Any) -> float:
    """The largest magnitude that is finite."""
    arrays = [np.abs(np.asarray(x).astype(complex)) for x in jax.tree.leaves(tree)]
    finite = [float(np.max(x, initial=0, where=np.isfinite(x))) for x in arrays]
    return max(finite, default=0.0)


def folded_is_the_same(run: Run) -> None:
    """Or it is refused."""
    try:
        folded = run.fold()
    except ValueError as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        own = last.filename.startswith(PACKAGE) and "fold" in last.filename + str(error)
        if not own:
            raise judged(error, run) from error
        return
    except Exception as error:
        raise judged(error, run) from error
    (batch,) = run.batches()
    wanted = run.forward(run.job.params, run.probed, run.scales, batch)[2][0]
    found = run.forward(folded, run.probed, run.scales, batch)[0][0]
    for a, b in zip(jax.tree.leaves(wanted), jax.tree.leaves(found), strict=True):
        a, b = (np.asarray(x).astype(complex) for x in (a, b))
        with np.errstate(all="ignore"):
            off = np.max(np.abs(a - b)) / max(peak(wanted), 1e-300)
        far = max(ROUGH if run.example.extreme else 0, 100 * run.eps)
        expect(not off > far, f"folded outputs are off by {off:.2g}")


PROPERTIES: tuple[Callable[[Run], None], ...] = (
    factors_are_positive,
    factors_of_one_change_nothing,
    outputs_are_at_their_targets,
    the_same_key_gives_the_same_bits,
    rules_hold,
    carried_gradients_are_true,
    folded_is_the_same,
    jitted_is_eager,
)
UNMEASURED: tuple[Callable[[Run], None], ...] = (
    factors_are_positive,
    factors_of_one_change_nothing,
    folded_is_the_same,
)
"""Those that ask nothing of `measure`, which costs as much as all else."""


@dataclass(frozen=True)
class Verdict:
    """What came of an example: "ok", "failed", "refused" or "invalid"."""

    status: str
    message: str = ""
    property: str = ""


def judge(example: Example, properties: Sequence = PROPERTIES) -> Verdict:
    """Runs an example through all properties, or those."""
    try:
        run = run_of(example)
        run.scales  # noqa: B018 - all properties are of these
    except Invalid as error:
        return Verdict("invalid", str(error))
    except Refused as error:
        return Verdict("refused", str(error))
    except Broken as error:
        return Verdict("failed", str(error), "tune")
    except Exception as error:  # an error of this file
        return Verdict("failed", "".join(traceback.format_exception(error)), "fuzz")
    refused = ""
    for check in properties:
        try:
            check(run)
        except Refused as error:
            refused = f"{check.__name__}: {error}"
        except Invalid as error:
            return Verdict("invalid", str(error))
        except Broken as error:
            return Verdict("failed", str(error), check.__name__)
        except Exception as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{Path(last.filename).name}:{last.name}"
            text = f"{type(error).__name__} in {where}: {error}"
            if "hlo verifier" in text:  # XLA's, of a program that it made itself
                return Verdict("invalid", text)
            return Verdict("failed", text, check.__name__)
    return Verdict("refused", refused) if refused else Verdict("ok")
