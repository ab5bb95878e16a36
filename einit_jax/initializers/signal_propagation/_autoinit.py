"""`autoinit`: weights scaled by what interpreting the model's jaxpr predicts."""

import math
from collections.abc import Callable, Mapping, Sequence
from operator import index
from typing import Any, Literal, SupportsIndex, get_args

import jax
import jax.numpy as jnp
from jax.nn import initializers
from jaxtyping import Array, PyTree

from ...binding import Model, any_library, setup, sum_of_means
from ...core import (
    Path,
    as_integer,
    as_number,
    check_not_zero,
    flatten,
    inverse,
    multiply,
    path_key,
    unboxed,
    usual_rules,
    widen,
    with_leaves,
)
from ..classic import Parameter, Rule, of_variance, sample
from ._prediction import (
    PropagationSpec,
    TracedModel,
    check_estimators,
    predict_variances,
    trace_for_propagation,
)
from ._values import WeightRef

Distribution = Literal["truncated_normal", "normal", "uniform", "orthogonal"]
DISTRIBUTIONS = get_args(Distribution)


@any_library("params")
def autoinit(
    model: Model,
    params: PyTree,
    input_fn: Any,
    loss_fn: Callable | None = None,
    *,
    key: jax.Array | None = None,
    signal_variance: float = 1.0,
    input_mean: float | None = None,
    input_var: float | None = None,
    distribution: Distribution | None = "truncated_normal",
    zero_mean: bool = False,
    samples: SupportsIndex = 8192,
    along: SupportsIndex = 16,
    estimators: Mapping[Any, Callable] | None = None,
    batch_size: SupportsIndex | None = None,
    method: str | Callable | None = None,
    rngs: Sequence[str] | Mapping[str, jax.Array] = (),
    collections: Mapping[str, Any] | None = None,
    axis_name: str | None = None,
) -> PyTree:
    r"""Weights of the variance that keeps signals at `signal_variance`, by analysis.

    The model is not run: its jaxpr is walked, with the distribution of a typical
    element in the place of every array. A weight that meets inputs of second moment
    `E x^2` in sums of `fan_in` terms gets entries of variance

        signal_variance / (fan_in E x^2)

    so that each of its products has mean 0 (over draws of the weights) and variance
    `signal_variance`. Biases are set to 0; gains of normalization layers and what is
    neither weight nor bias stay.

    What an element is, is known as samples over draws of weights and inputs, so that

    - elementwise functions are exact up to quadrature, whatever they are made of, and
      what is computed from one signal stays correlated (`x * sigmoid(x)`, residuals);
    - each axis has a second element beside the first, whose correlation sums, means,
      maxima, pooling, softmax and normalization take into account; elements along one
      axis are taken as exchangeable, with a Gaussian copula;
    - borders of convolutions count as far as they have fewer inputs;
    - layers of `nn.scan` are walked one by one; loops over time step by step, and again
      until the variances of shared weights agree, with mean squares over calls.

    Args:
        model, params, input_fn, key, batch_size, method, rngs, collections, axis_name:
            as in `tune`: `method`, `rngs` and `collections` go to `model.apply`,
            `axis_name` is the mapped axis it expects, `batch_size` the number of
            examples that `input_fn` is asked for; `input_fn(key)` draws a batch, or is
            a loader or a batch; of a `Batch` the model takes the inputs. Of params the
            shapes count, and the values of what is no weight.
        loss_fn: not called; where it names `labels` or `batch`, batches are pairs
            (inputs, labels).
        signal_variance: of every product, positive.
        input_mean, input_var: of floating inputs, taken as independent Gaussians; None
            for both: the values in one batch of `input_fn`, with their correlations.
        distribution: of the new weights: "truncated_normal" (at two standard
            deviations), "normal", "uniform", "orthogonal"; None: those in `params` are
            rescaled.
        zero_mean: weights that sum to zero over the inputs of each sum, so that what
            all these inputs have in common is taken away; of sums of several terms.
        samples: how many draws of each element; a power of two.
        along: how many elements of an axis stand for it in sums and maxima.
        estimators: `estimator(mean, variance) -> (mean, variance)` of the output, for a
            module class (its subclasses too) or the name of a primitive of jax; in the
            place of the walk's own rules.

    Returns:
        A tree like params.

    Raises:
        TypeError, ValueError: wrong arguments, as in `tune`; an estimator for what the
            model does not have, or one that returns no pair.

    Warns:
        UserWarning: of primitives without a rule, which let their first operand pass
            unchanged, and of weights that nothing was seen to be multiplied with (they
            are transformed before, or are in a branch that is not taken), which stay.

    Example:
        >>> import flax.linen as nn, jax, jax.numpy as jnp, einit_jax as ei
        >>> model = nn.Sequential([nn.Dense(512), nn.relu, nn.Dense(512)])
        >>> x = jax.random.normal(jax.random.key(1), (64, 256))
        >>> params = model.init(jax.random.key(0), x)["params"]
        >>> params = ei.autoinit(model, params, x)
        >>> variance = 512 * jnp.var(params["layers_2"]["kernel"])
        >>> print(f"{variance:.1f}")  # a ReLU halves the second moment
        2.0

    Source: G. Bingham and R. Miikkulainen, AutoInit, arXiv 2109.08958, which propagates
    mean and variance from layer to layer by a rule for each type of layer, and likewise
    scales weights to unit variance. Here a jaxpr is walked, so that no layer needs a
    rule; with samples in the place of two moments.
    """
    _check_settings(
        signal_variance=signal_variance,
        input_mean=input_mean,
        input_var=input_var,
        distribution=distribution,
        samples=samples,
        along=along,
    )
    pairs = check_estimators(estimators)
    bound = setup(
        model,
        params,
        input_fn,
        sum_of_means,
        key=key,
        batch_size=batch_size,
        method=method,
        rngs=rngs,
        collections=collections,
        axis_name=axis_name,
        like=loss_fn,
    )
    arrays, moments = bound.arrays, None
    traced = trace_for_propagation(bound.objective, arrays.args, pairs)
    if (input_mean, input_var) != (None, None):
        variance = 1.0 if input_var is None else float(input_var)
        moments = float(input_mean or 0.0), variance
    else:
        check_not_zero(arrays.batches)
    spec = PropagationSpec(
        float(signal_variance),
        moments,
        zero_mean,
        samples=index(samples),
        along=index(along),
        estimators=pairs,
    )
    prediction = predict_variances(traced, arrays.key, spec)
    if prediction.missed:
        raise ValueError(
            f"estimators are given for {', '.join(prediction.missed)}, which the model "
            "has not; name module classes or primitives of its jaxpr (jax.make_jaxpr)"
        )
    prediction.warn(traced.parameters)
    return sample_weights(
        prediction.variances,
        traced,
        arrays.key,
        distribution=distribution,
        zero_mean=zero_mean,
    )


@usual_rules()
def sample_weights(
    variances: Mapping[WeightRef, Array],
    model: TracedModel,
    key: jax.Array,
    *,
    distribution: str | None,
    zero_mean: bool,
) -> PyTree:
    """Parameters with weights of the variances, and biases of 0."""
    params, parameters = model.args.params, model.parameters
    leaves = flatten(unboxed(params))
    sampled = {
        path: jnp.zeros_like(leaves[path])
        for path, parameter in parameters.items()
        if parameter.role == "bias"
    }
    for path, variance in _variances_by_path(variances, leaves).items():
        weights = _sample_one(
            parameters[path],
            leaves[path],
            key,
            distribution=distribution,
            zero_mean=zero_mean,
        )
        weights = multiply(weights, jnp.sqrt(variance))
        sampled[path] = weights.astype(leaves[path].dtype)
    return with_leaves(params, sampled)


def _variances_by_path(
    variances: Mapping[WeightRef, Array], leaves: Mapping[Path, Any]
) -> dict[Path, Array]:
    """For each weight a variance, or one for each layer, in a shape that multiplies."""
    by_path: dict[Path, Array] = {}
    for ref, variance in variances.items():
        shape = leaves[ref.path].shape
        layers = dict(ref.layers)
        if not layers:
            by_path[ref.path] = variance
            continue
        sizes = [n if a in layers else 1 for a, n in enumerate(shape)]
        at = tuple(layers.get(a, 0) for a in range(len(shape)))
        others = by_path.get(ref.path, jnp.ones(sizes))
        by_path[ref.path] = others.at[at].set(variance)
    return by_path


def _sample_one(
    parameter: Parameter,
    value: Array,
    key: jax.Array,
    *,
    distribution: str | None,
    zero_mean: bool,
) -> Array:
    """Weights of mean square 1 in each layer: drawn, or those that are there."""
    axes = parameter.axes
    assert axes is not None
    inner = tuple(a for a in range(value.ndim) if a not in axes.layers)
    if distribution is None:
        weights = widen(value)
    else:
        own = initializers.orthogonal() if distribution == "orthogonal" else None
        init = own or of_variance(1.0, distribution)
        key = path_key(key, parameter.path)
        dtype = jnp.promote_types(value.dtype, jnp.float32)
        rule = Rule(f"distribution={distribution!r}", init)
        weights = sample(parameter, rule, init, key, dtype=dtype)
    several = math.prod(value.shape[a] for a in axes.contracted) > 1
    if zero_mean and several and not axes.looked_up:
        weights = weights - jnp.mean(weights, axes.contracted, keepdims=True)
    elif distribution not in (None, "orthogonal"):
        return weights
    size = jnp.mean(jnp.square(jnp.abs(weights)), inner, keepdims=True)
    return weights * jnp.sqrt(inverse(size))


def _check_settings(
    *,
    signal_variance: Any,
    input_mean: Any,
    input_var: Any,
    distribution: Any,
    samples: Any,
    along: Any,
) -> None:
    number = lambda x: (y := as_number(x)) is not None and math.isfinite(y)
    count, group = as_integer(samples), as_integer(along)
    if not number(signal_variance) or not signal_variance > 0:
        raise ValueError(
            f"signal_variance={signal_variance!r}, expected a positive number"
        )
    if input_mean is not None and not number(input_mean):
        raise ValueError(f"input_mean={input_mean!r}, expected a number, or None")
    if input_var is not None and not (number(input_var) and input_var >= 0):
        raise ValueError(f"input_var={input_var!r}, expected a number >= 0, or None")
    if distribution is not None and distribution not in DISTRIBUTIONS:
        raise ValueError(
            f"distribution={distribution!r} is not known; expected "
            f"{', '.join(map(repr, DISTRIBUTIONS))}, or None to rescale what is there"
        )
    if count is None or count < 64 or count & (count - 1):
        raise ValueError(f"samples={samples!r}, expected a power of two, 64 or more")
    if group is None or group < 3:
        raise ValueError(f"along={along!r}, expected an integer >= 3")
