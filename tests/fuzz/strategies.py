"""How examples are drawn: from hypothesis, or from a seed and a number."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hypothesis import strategies as st

from tests.fuzz.examples import LOSSES, Example
from tests.fuzz.growing import KINDS, LEAF, NNX_KINDS, WIDTHS, Node, is_node, kinds_of
from tests.fuzz.nnx_models import model as _model  # noqa: F401 - registers its kinds

Pick = Callable[[Sequence], Any]
FEW = frozenset({"extreme"})
"""Tags of what only some examples may have."""
HEAVY = {"attention": 4, "tied": 3, "dense_general": 2, "complex": 2, "passed": 2}
HEAVIEST = 9
"""How many units an example may have, about, to compile in a few seconds."""


@dataclass(frozen=True)
class Drawing:
    """Where in an example one is, and what may stand there: a `Chooser`."""

    choose: Pick
    depth: int
    bans: frozenset[str]
    without: frozenset[str]
    """Kinds to leave out; with "times" go all sizes that are extreme."""
    library: str

    def pick(self, options: Sequence) -> Any:
        """One of the options."""
        return self.choose(options)

    def node(self) -> Node:
        """A node of at most `depth` levels."""
        kinds = kinds_of(self.library)
        fits = [
            name
            for name, kind in kinds.items()
            if not kind.tags & self.bans
            and name not in self.without
            and (self.depth > 0 or LEAF in kind.tags)
        ]
        leaves = [name for name in fits if LEAF in kinds[name].tags]
        nested = [name for name in fits if name not in leaves]
        choices = leaves if not nested else self.pick((leaves, nested))
        name = self.pick(choices)
        kind = kinds[name]
        bans = self.bans | kind.bans
        below = replace(self, depth=self.depth - 1, bans=bans)
        return (name, *kind.draw(below))


def drawn(
    pick: Pick, without: frozenset[str] = frozenset(), library: str = "linen"
) -> Example:
    """An example, by picks alone."""
    extreme = "times" not in without and pick((False, False, False, True))
    bans = frozenset() if extreme else FEW
    drawing = Drawing(pick, pick((1, 2, 3)), bans, without, library)
    nodes = _drawn_nodes(drawing)
    power = lambda: pick((0, 0, -3, 6, -12, 12, -20, 20, -30, 30)) if extreme else 0
    tokens = pick((False, False, True))
    dtype, param_dtype = pick(
        (
            *[("float32", "float32")] * 5,
            ("bfloat16", "float32"),
            ("bfloat16", "bfloat16"),
            ("float16", "float32"),
        )
    )
    return Example(
        body=nodes[0] if len(nodes) == 1 else ("seq", *nodes),
        width=pick(WIDTHS),
        batch=pick((4, 4, 8, 1)),
        steps=pick((0, 3, 3, 1)),
        tokens=tokens,
        extra=pick(((), (), ("vector",), ("index",), ("shift", "train"))),
        outputs=pick(("head", "body", "pooled", "tuple", "dict", "attend")),
        loss=pick(tuple(LOSSES)),
        dtype=dtype,
        param_dtype=param_dtype,
        input_power=power(),
        param_power=power(),
        loss_power=power(),
        options=_options(pick),
        seed=pick((0, 1, 2, 3)),
        library=library,
    )


def _drawn_nodes(drawing: Drawing) -> list[Node]:
    """One node or two, that do not take long to compile."""
    while True:
        nodes = [drawing.node() for _ in range(drawing.pick((1, 2)))]
        if sum(map(weight, nodes)) <= HEAVIEST:
            return nodes


def weight(node: Node) -> int:
    """About how many units there are in a node."""
    name, *arguments = node
    own = HEAVY.get(name, 1 if LEAF in (KINDS | NNX_KINDS)[name].tags else 0)
    if name == "rnn":
        own = (8 if arguments[0] in ("gru", "lstm") else 3) * (1 + arguments[2])
    return own + sum(weight(value) for value in arguments if is_node(value))


def _options(pick: Pick) -> tuple[tuple[str, Any], ...]:
    some = lambda *options: pick((None, *options))
    optimizer = some(None, None, "adam", "sgd", "lion")
    rules = ("exact", "exact", "exact", "unit")
    found = {
        "gradients": pick(rules if optimizer is None else (*rules, "plain")),
        "update": pick(("total", "total", "local")),
        "optimizer": optimizer,
        "draws": pick((1, 1, 1, 2)),
        "targets": some(None, None, 0.5),
        "exclude": some(None, None, 0, 1),
        "target_of": some(None, None, 0, 2),
    }
    if found["targets"] is not None:
        found["target_of"] = None
    usual = {"gradients": "exact", "update": "total", "draws": 1}
    return tuple(
        (n, v) for n, v in found.items() if v is not None and v != usual.get(n)
    )


@st.composite
def examples(
    draw: Callable, without: frozenset[str] = frozenset(), library: str = "linen"
) -> Example:
    """Examples, as hypothesis draws and shrinks them."""
    return drawn(lambda options: draw(st.sampled_from(options)), without, library)


def numbered(
    seed: int,
    number: int,
    without: frozenset[str] = frozenset(),
    library: str = "linen",
) -> Example:
    """The example of a number, the same each time."""
    return drawn(random.Random(f"{seed}/{number}").choice, without, library)
