"""`initialize`: classic rules by path, rank or module class, and presets by name."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, SupportsIndex

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from ...binding import Model, any_library, setup, sum_of_means
from ...core import (
    Path,
    check_arrays,
    checked_key,
    flatten,
    is_boxed,
    is_concrete,
    path_key,
    path_str,
    usual_rules,
    with_leaves,
)
from ._parameters import Parameter, parameters_by_name, parameters_of
from ._rules import Rule, match_rules, parse_rules, rule_str, rule_value, wants_model
from ._sampling import place_like, sample, sampling_key


@any_library("params")
@usual_rules()
def initialize(
    params: PyTree,
    rules: str | Callable | Mapping[Any, Any] | Sequence[tuple[Any, Any]],
    key: jax.Array,
    *,
    model: Model | None = None,
    input_fn: Any = None,
    batch_size: SupportsIndex | None = None,
    method: str | Callable | None = None,
    rngs: Sequence[str] | Mapping[str, jax.Array] = (),
    collections: Mapping[str, Any] | None = None,
    axis_name: str | None = None,
) -> PyTree:
    r"""Parameters drawn anew by classic rules: the first that matches an array draws it.

    | selector | matches |
    |---|---|
    | `"*/kernel"` | a glob over the array's whole path (`*` crosses `/`) |
    | `2` | the array's rank, lifted axes not counted |
    | `nn.Dense`, `(nn.Dense, "kernel")` | what lies in a module of the class, at any depth; of that name |
    | `"*"` or `...` | all arrays: the default, last |

    | value | draws |
    |---|---|
    | a function `(key, shape, dtype)` | as `jax.nn.initializers` do; it receives `fan_in`, `fan_out`, `path` if it names them |
    | a number | a constant |
    | a preset's name | see below |
    | None | nothing: the array stays |

    Weights of layers are drawn in the shape in which Flax's own layers would ask for
    them, `(inputs, outputs)` or `(window, inputs, outputs)`, so that `variance_scaling`
    counts right: for `DenseGeneral`, attention and raw arrays in an einsum too, without
    the axes that input and output share. Each layer of `nn.scan` and `nn.vmap` is drawn
    by itself. With `model` and `input_fn`, the model's jaxpr tells which axes are
    summed over. Without them names and shapes must do: arrays named like biases and
    gains are these (`bias`, `scale`, ... see `unit_params`), an `embedding` is looked
    up, matrices are `(inputs, outputs)`, four axes and more are convolutions; three
    axes, biases of several axes, module classes and "gpt2" need the model. `fan_in` and
    `fan_out` count as `fans` does; a bias receives those of the weight beside it.

    | preset | weights | look-up tables |
    |---|---|---|
    | `"pytorch"` | uniform on +-1/sqrt(fan-in); biases too; recurrent cells, biases too, by the width | N(0, 1) |
    | `"keras"`, `"glorot_uniform"` | uniform, variance 2/(fan-in + fan-out); recurrent orthogonal, all gates as one; LSTM's forget bias 1 | uniform +-0.05 |
    | `"lecun_normal"` (Flax) | truncated normal, variance 1/fan-in; recurrent orthogonal | N(0, 1/features) |
    | `"he_normal"` | truncated normal, variance 2/fan-in; the rest as Flax | N(0, 1/features) |
    | `"lingvo"` | as Glorot, times 1.000001 | the same |
    | `"returnn_theano"` | normal, variance 12/(fan-in + fan-out): `variance_scaling(6, "fan_avg")` | the same |
    | `"dcgan"` | N(0, 0.02^2); gains N(1, 0.02^2) | the same |
    | `"gpt2"` | N(0, 0.02^2), divided by sqrt(N) where they end one of N residual branches | N(0, 0.02^2) |
    | `"general_rule"` | uniform on +-1/sqrt(n), n the inputs | n the features |
    | `"normal_rule"` | N(0, 1/n) | n the features |
    | `"uniform"`, `"uniform_half"` | uniform on (0, 1), on +-0.5 | the same |
    | `"zeros"`, `"ones"` | constant | the same |

    Where a preset says no more, biases are 0 and gains 1; arrays that are neither (a
    class token; raw positions, except with "gpt2") stay. Fans in presets count without
    strides, and without groups for fan-out, as in all these frameworks; PyTorch takes
    the outputs of a transposed convolution for its inputs, and so do we. A table used
    as output weights too is drawn as a table. "gpt2" reads off the jaxpr which weights
    are residual: those whose product is added to what it was computed from, with only
    biases, gains and dropout on the way; with two in a block N is 2 L. Where a branch
    ends in a normalization, give its weights a rule of their own.

    Args:
        params: a pytree of arrays (or their shapes), boxed or not; not changed.
        rules: a preset's name or an initializer for all arrays, or a mapping or
            sequence of pairs from selectors to values.
        key: a random key; every array draws by a key of its own path.
        model: the model that the parameters are of.
        input_fn: `input_fn(key)` draws inputs, or it is a loader or a batch. A tuple is
            several arguments; of a `Batch` the inputs count. `batch_size`, `method`,
            `rngs`, `collections`, `axis_name`: as in `tune`: `method`, `rngs` and
            `collections` go to `model.apply`, `axis_name` is the mapped axis it
            expects, `batch_size` the number of examples that `input_fn` is asked for.
            The model is traced, not run.

    Returns:
        The same tree with other values, in the same dtypes and shardings; arrays of
        integers and empty biases stay.

    Raises:
        TypeError: a selector or a value of a type that is not listed above; no key;
            params that are no arrays.
        ValueError: an unknown preset, a rule that matches nothing, an array that no
            rule matches, a model that is needed and not given, an initializer that
            cannot draw an array (orthogonal with one axis), returns another shape or
            what is not finite (a negative variance), a weight that sums over nothing.

    Example:
        >>> import flax.linen as nn, jax, jax.numpy as jnp, einit_jax as ei
        >>> params = nn.Dense(256).init(jax.random.key(0), jnp.ones((1, 64)))["params"]
        >>> rules = {"bias": 0.1, "*": nn.initializers.he_normal()}
        >>> drawn = ei.initialize(params, rules, jax.random.key(1))
        >>> print(f"{drawn['kernel'].std() ** 2 * 64:.1f} {drawn['bias'].max():.1f}")
        2.0 0.1
        >>> like_torch = ei.initialize(params, "pytorch", jax.random.key(1))
        >>> print(f"{jnp.abs(like_torch['bias']).max():.3f}")
        0.125

    Source: X. Glorot and Y. Bengio, 2010; K. He et al., arXiv 1502.01852; A. Radford
    et al., arXiv 1511.06434 ("dcgan"), and GPT-2, 2019, section 2.3. "pytorch",
    "keras", "dcgan" and "gpt2" are checked against these frameworks' own draws
    (`tests/golden`), "lingvo" and "returnn_theano" against their formulas. In PyTorch
    and Keras attention counts its fans in another way than dense layers; here it does
    not.
    """  # noqa: E501
    parsed, key = parse_rules(rules), checked_key(key)
    check_arrays(params, shapes=True)
    if (model is None) != (input_fn is None):
        lacking = "model" if model is None else "input_fn"
        raise ValueError(f"{lacking} is not given; pass both, model and input_fn")
    if model is None:
        parameters, module_types = _by_name(params, parsed), {}
    else:
        bound = setup(
            model,
            params,
            input_fn,
            sum_of_means,
            batch_size=batch_size,
            method=method,
            rngs=rngs,
            collections=collections,
            axis_name=axis_name,
            shapes=True,
        )
        parameters, module_types = parameters_of(bound.objective, bound.arrays.args)
    leaves = {
        path: leaf.unbox() if is_boxed(leaf) else leaf
        for path, leaf in flatten(params).items()
    }
    pairs = match_rules(parsed, parameters, module_types)
    samplers = {p.path: _sampler(p, rule, leaves[p.path].dtype) for p, rule in pairs}
    samplers = {path: draw for path, draw in samplers.items() if draw is not None}
    for draw in samplers.values():
        jax.eval_shape(draw, key)
    sampled = {path: draw(key) for path, draw in samplers.items()}
    _check_finite(sampled, {parameter.path: rule for parameter, rule in pairs})
    placed = {path: place_like(x, leaves[path]) for path, x in sampled.items()}
    return with_leaves(params, placed)


def _by_name(params: PyTree, rules: list[Rule]) -> list[Parameter]:
    """The arrays as far as names and shapes tell, where that is enough for the rules.

    Raises:
        ValueError: a rule that only the model tells how to apply.
    """
    rule = wants_model(rules)
    if rule is not None:
        raise ValueError(
            f"rule {rule_str(rule)}: only the model tells what it applies to; "
            "pass model=..., input_fn=..."
        )
    return parameters_by_name(params)


def _sampler(parameter: Parameter, rule: Rule, dtype: Any) -> Callable | None:
    """A function of the common key that draws an array; None where the array stays."""
    shape, name = parameter.shape, parameter.name
    if rule.value is None or (0 in shape and parameter.role != "weight"):
        return None
    if 0 in shape:
        raise ValueError(
            f"{name!r} has shape {shape}: its fan is zero, so there is nothing to "
            f"draw; keep it by a rule {name!r}: None, before the others"
        )
    value = rule_value(parameter, rule)
    if value is None:
        return None
    path, init = sampling_key(parameter, value)
    return lambda key: sample(parameter, rule, init, path_key(key, path), dtype=dtype)


def _check_finite(
    sampled: Mapping[Path, jax.Array], rules: Mapping[Path, Rule]
) -> None:
    """Raises where a draw is not finite; under `jit` that cannot be known."""
    concrete = {path: x for path, x in sampled.items() if is_concrete(x)}
    flags = _are_finite(list(concrete.values()))
    for path, finite in zip(concrete, flags, strict=True):
        if not finite:
            raise ValueError(
                f"rule {rule_str(rules[path])} drew numbers that are not finite for "
                f"{path_str(path)!r}; is its variance negative? Variances and scales "
                "are positive, as in variance_scaling(2.0, 'fan_in', 'normal')"
            )


@jax.jit
def _are_finite(arrays: list[jax.Array]) -> list[jax.Array]:
    """Whether all elements are finite, of each array."""
    return [jnp.isfinite(x).all() for x in arrays]
