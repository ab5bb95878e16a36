"""The rules of the house, and that each of them notices what breaks it."""

import ast
import importlib.metadata
from functools import partial
from pathlib import Path

import pytest

import einit_jax
from tests.support import rooms

PACKAGE = Path(__file__).parents[2] / "einit_jax"
LOW = "core units graph linen binding "
TABLE = {
    "core": "",
    "units": "core",
    "graph": "core units",
    "objectives": "core units",
    "linen": "core units graph objectives",
    "nnx": "core units graph objectives",
    "binding": "core units graph linen nnx reporting",
    "reporting": "",
    "pages": "reporting",
    "command_line": "pages reporting",
    "measurement": LOW + "reporting verification",
    "verification": "core units graph",
    "tuning": LOW + "verification",
    "initializers/classic": LOW,
    "initializers/signal_propagation": LOW + "initializers/classic",
    "distinctness": LOW,
    "initializers/layerwise": LOW + "distinctness initializers/classic",
    "initializers/learned": LOW + "initializers/classic",
}
INITIALIZERS = {room for room in TABLE if room.startswith("initializers/")}
BELOW = {room: set(below.split()) for room, below in TABLE.items()}
BELOW |= {"initializers": INITIALIZERS}
BELOW |= {"experiments": set(BELOW)}
BELOW |= {"": set(BELOW)}

RULES: dict[str, rooms.Rule] = {
    "imports": partial(rooms.imports, below=BELOW),
    "rooms": partial(rooms.rooms, below=BELOW),
    "cycles": rooms.cycles,
    "flax": rooms.flax,
    "doors": rooms.doors,
    "sizes": rooms.sizes,
    "top": rooms.top,
    "names": rooms.names,
    "positions": rooms.positions,
    "words": rooms.words,
}


@pytest.mark.parametrize("name", RULES)
def test_the_house_keeps_its_rules(name):
    broken = list(RULES[name](PACKAGE))
    assert not broken, "\n".join(broken)


def test_public_names_and_version_are_told():
    """`__all__` is what the door re-exports; the version is that of the metadata."""
    door = ast.parse((PACKAGE / "__init__.py").read_text())
    exports = [n for n in ast.walk(door) if isinstance(n, ast.ImportFrom) and n.level]
    assert sorted(einit_jax.__all__) == sorted(
        alias.name for n in exports for alias in n.names if alias.asname
    )
    assert all(hasattr(einit_jax, name) for name in einit_jax.__all__)
    assert einit_jax.__version__ == importlib.metadata.version("einit_jax")


# A house of three rooms that keeps every rule, and what is put into it to break them.

HOUSE = {
    "__init__.py": '"""A house."""\n\nfrom typing import TYPE_CHECKING\n\n'
    "if TYPE_CHECKING:\n    from .up import verb as verb\n\n"
    '__all__ = ["verb"]\n__version__ = "1"\n\nif not TYPE_CHECKING:\n\n'
    "    def __getattr__(name): ...\n",
    "_demo.py": "import flax\nfrom .up import verb\n",
    "ground/__init__.py": '"""Ground."""\n\nfrom ._a import A as A\n'
    "from ._a import a as a\n",
    "ground/_a.py": "from ._b import b\n\nA = 1\n\n\ndef a(x, y, z, w, *, k): ...\n",
    "ground/_b.py": "def b(): ...\n\n\nclass B:\n    def m(self, x, y, z, w): ...\n",
    "linen/__init__.py": '"""Linen."""\n',
    "linen/_f.py": "from flax import linen\nimport jax\n\n\n"
    "@jax.custom_vjp\ndef f(a, b, c, d, e): ...\n\n\n"
    "def rule(a, b, c, d, e): ...\n\n\nf.defvjp(rule, rule)\n",
    "up/__init__.py": '"""Up."""\n\nfrom ._verb import verb as verb\n',
    "up/_verb.py": "from ..ground import a\n\nverb = a\n",
}
FLOORS = {"ground": set(), "linen": {"ground"}, "up": {"ground"}}
FLOORS |= {"": {"ground", "linen", "up"}}
CHECKS = RULES | {
    "imports": partial(rooms.imports, below=FLOORS),
    "rooms": partial(rooms.rooms, below=FLOORS),
}
BREAKS = [
    ("imports", {"up/_x.py": "from ..ground._a import a"}, "the inside of another"),
    ("imports", {"ground/_x.py": "from ..up import verb"}, "is not above"),
    ("imports", {"up/_x.py": "def f():\n from .. import verb"}, "own door is for"),
    ("imports", {"up/_x.py": "import house"}, "own door is for"),
    ("imports", {"up/_x.py": "from house.ground import a"}, "own door is for"),
    ("imports", {"up/_x.py": "from . import verb"}, "its own door"),
    ("imports", {"up/_x.py": "from ..up import verb"}, "its own door"),
    ("imports", {"up/_x.py": "from ._nothing import a"}, "no such file"),
    ("imports", {"__main__.py": "from .up._verb import verb"}, "the inside of another"),
    ("rooms", {"attic/_x.py": ""}, "attic: no line of the table"),
    ("cycles", {"ground/_b.py": "from ._a import A"}, "circle: ground/_"),
    ("cycles", {"ground/_b.py": "from ..up import verb"}, "circle: "),
    ("flax", {"ground/_x.py": "def f():\n import flax.linen as nn"}, "flax.linen"),
    ("flax", {"__main__.py": "from flax import linen"}, "__main__.py:1"),
    ("doors", {"up/__init__.py": '"""Up."""\nfrom ._verb import verb'}, "import verb"),
    ("doors", {"up/__init__.py": '"""Up."""\nx = 1'}, "x = 1"),
    ("doors", {"__init__.py": '"""Up."""\ndef f(): ...'}, "def f()"),
    ("doors", {"__init__.py": '"""Up."""\nif not TYPE_CHECKING:\n def f(): ...'},
     "def f()"),
    ("doors", {"__init__.py": '"""Up."""\nif TYPE_CHECKING:\n x = 1'}, "x = 1"),
    ("doors", {"up/__init__.py": '"""Up."""\nif TYPE_CHECKING:\n 1'}, "TYPE_CHECKING"),
    ("doors", {"up/__init__.py": '"""One.\ntwo\nthree\n\nfour\n"""'}, "more than 3"),
    ("doors", {"up/__init__.py": ""}, "no docstring"),
    ("doors", {"up/__init__.py": '"""."""\nfrom ._verb import verb as verb\n'
               "from ._verb import A as A\n"}, "not sorted"),
    ("sizes", {"up/_x.py": "\n" * 301}, "up/_x.py: 301 lines"),
    ("sizes", {f"up/_{i}.py": "" for i in range(11)}, "up: 13 files"),
    ("top", {"_more.py": ""}, "_more.py: at the top"),
    ("names", {"up/_x.py": "try:\n A: int = 2\nfinally:\n pass"}, "A: ground/_a.py"),
    ("names", {"linen/_x.py": "A = 1"}, "A: ground/_a.py, linen/_x.py"),
    ("names", {"linen/_x.py": "y = 1", "nnx/_z.py": "y = 1"}, "y: linen/_x.py, nnx"),
    ("names", {"__main__.py": "def b(): ..."}, "b: __main__.py, ground/_b.py"),
    ("positions", {"up/_x.py": "def f(a, b, c, d, e): ..."}, "f takes 5"),
    ("positions", {"up/_x.py": "class C:\n def m(self, a, b, c, d, e): ..."}, "m take"),
    ("positions", {"up/_x.py": "class C:\n @staticmethod\n def m(a, b, c, d, e): ..."},
     "m takes 5"),
    ("words", {"up/_x.py": "def _f(x, *, task=None): ..."}, "task has the word task"),
    ("words", {"up/_x.py": "def f():\n _is_lift, b = 1, 2"}, "_is_lift has the word"),
    ("words", {"up/_x.py": "class Gauge: ..."}, "Gauge has the word gauge"),
]  # fmt: skip


def built(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = folder / "house" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder / "house"


@pytest.mark.parametrize("name", RULES)
def test_a_small_house_keeps_them_too(name, tmp_path):
    assert list(CHECKS[name](built(tmp_path, HOUSE))) == []


@pytest.mark.parametrize(("name", "files", "words"), BREAKS)
def test_what_breaks_a_rule_is_reported(name, files, words, tmp_path):
    broken = list(CHECKS[name](built(tmp_path, HOUSE | files)))
    assert len(broken) >= 1
    assert words in "\n".join(broken)


def test_a_table_that_goes_in_circles_is_reported(tmp_path):
    round_about = FLOORS | {"ground": {"up"}}
    (broken,) = rooms.rooms(built(tmp_path, HOUSE), round_about)
    assert broken.startswith("circle: ")
