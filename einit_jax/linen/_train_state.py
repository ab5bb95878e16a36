"""A train state with scales beside the parameters."""

from typing import Any

from flax import struct
from flax.linen.fp8_ops import OVERWRITE_WITH_GRADIENT
from flax.training import train_state

from ..core import unboxed
from ..units import from_tree


class TrainState(train_state.TrainState):
    """`flax.training.train_state.TrainState` with the scales beside the parameters.

    Everything else is as in Flax. The scales are a pytree of constants:
    `apply_gradients` leaves them, checkpoints have them.

    Raises:
        TypeError, ValueError: from `create`, where scales are not given, or belong to
            no modules of the parameters.

    Example:
        >>> import flax.linen as nn, jax, jax.numpy as jnp, optax, einit_jax as ei
        >>> model = nn.Sequential([nn.Dense(32), jnp.tanh, nn.Dense(4)])
        >>> x = jax.random.normal(jax.random.key(1), (64, 8))
        >>> params = model.init(jax.random.key(0), x)["params"]
        >>> loss = lambda y: jnp.mean(jnp.square(y - 1))
        >>> scales = ei.tune(model, params, x, loss)
        >>> state = ei.TrainState.create(
        ...     apply_fn=ei.scaled(model).apply, params=params, scales=scales,
        ...     tx=optax.sgd(0.3),
        ... )
        >>> def of_batch(params):
        ...     variables = {"params": params, "scales": state.scales}
        ...     return loss(state.apply_fn(variables, x))
        >>> state = state.apply_gradients(grads=jax.grad(of_batch)(state.params))
        >>> int(state.step)
        1
    """

    params: Any = struct.field(pytree_node=True)  # Flax says FrozenDict, takes dicts
    scales: Any

    @classmethod
    def create(
        cls, *, apply_fn: Any, params: Any, tx: Any, scales: Any = None, **kwargs: Any
    ) -> "TrainState":
        """A new state at step 0; see `flax.training.train_state.TrainState.create`."""
        if scales is None:
            raise TypeError(
                "TrainState.create got no scales; pass scales=ei.tune(...), or use "
                "flax.training.train_state.TrainState for a plain model"
            )
        trained = params["params"] if OVERWRITE_WITH_GRADIENT in params else params
        from_tree(scales, unboxed(trained))
        fields = {"params": params, "tx": tx, "scales": scales}
        return super().create(apply_fn=apply_fn, **fields, **kwargs)
