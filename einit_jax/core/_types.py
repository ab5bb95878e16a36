"""Types that signatures share: trees of parameters, collections, equations."""

from collections.abc import Mapping
from typing import Any

from jax.extend.core import JaxprEqn as JaxprEqn

Params = Mapping[str, Any]
"""A model's parameters: nested mappings of arrays, or of boxes that hold them."""
Collections = Mapping[str, Any]
"""A model's variables besides its parameters, by collection: `{"batch_stats": ...}`."""
