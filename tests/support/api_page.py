"""Writes `notebooks/api.md` of the docstrings: `python -m tests.support.api_page`.

Docstrings are Markdown but for their sections, which become headings and lists; what is
shown of signatures is what the source says.
"""

import ast
import inspect
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import einit_jax as ei

PAGE = Path(__file__).parents[2] / "notebooks/api.md"
TOP = """\
# Everything public

What `help()` says of each name, as `import einit_jax as ei` has it, task by task. How
to use them together: [the guide](guide.md); what is computed: [the method](method.md).
Written by `python -m tests.support.api_page`.
"""
GROUPS = {
    "Tune and train": "tune scaled scale_updates fold save load TrainState",
    "Measure and see": "measure Measurement plot report activation_stats "
    "ActivationStats History",
    "Compare by training": "find_learning_rate LearningRates compare Comparison "
    "coordinate_check CoordinateCheck",
    "Make weights": "looks_linear LinearStart distinct_targets initialize gain "
    "general_relu fans lsuv autoinit metainit gradinit unit_params",
    "Batches, a layer, the version": "Batch Inputs HyperCubes __version__",
}
LISTS = {"Args": "Arguments", "Attributes": "Attributes", "Raises": "Raises"}
LISTS |= {"Warns": "Warns"}
SECTION = re.compile(rf"^({'|'.join(LISTS)}|Returns|Example|Compilation|Source):", re.M)
WIDTH = 88
OWN = "einit_jax."
FIRST = ei.Measurement
"""The class under which methods stand that others have, too."""


def page() -> str:
    """All of the page."""
    groups = {title: names.split() for title, names in GROUPS.items()}
    link = lambda name: f"[`{name}`](#{name.lower()})"
    rows = [f"- {title}: {', '.join(map(link, ns))}" for title, ns in groups.items()]
    body = [f"## {t}\n\n" + "\n".join(map(entry, ns)) for t, ns in groups.items()]
    return "\n".join([TOP, "\n".join(rows) + "\n", *body])


def entry(name: str) -> str:
    """What is said of a public name."""
    value = getattr(ei, name)
    if inspect.isclass(value):
        parts = [f"### `{name}`\n", *of_class(value)]
    elif callable(value):
        parts = [f"### `{name}`\n", *of_function(value)]
    else:
        parts = [f"### `{name}`\n", "The version of the package, a string.\n"]
    return "\n".join(parts)


def of_class(cls: type) -> Iterator[str]:
    """Its docstring, its fields that have one, and its public methods."""
    text, said = source(cls), inspect.getdoc(cls) or ""
    (node,) = ast.parse(text).body
    assert isinstance(node, ast.ClassDef)
    if "Example:" in said:
        yield fenced(constructor(text, node))
    yield markdown(said)
    fields = [f"- `{name}`: {said}" for name, said in documented(node)]
    if fields:
        yield "**Fields**\n\n" + "\n".join(fields) + "\n"
    inherited = []
    for name, method in public_methods(cls):
        if cls is not FIRST and method is getattr(FIRST, name, None):
            inherited.append(f"[`{name}()`](#{FIRST.__name__.lower()}{name})")
        elif isinstance(method, property):
            yield f"#### `{cls.__name__}.{name}`\n"
            yield markdown(inspect.getdoc(method) or "")
        else:
            yield f"#### `{cls.__name__}.{name}()`\n"
            yield from of_function(method)
    if inherited:
        yield f"As of `{FIRST.__name__}`: {', '.join(inherited)}.\n"


def of_function(function: Any) -> Iterator[str]:
    """Its signature and its docstring."""
    yield fenced(signature(function))
    yield markdown(inspect.getdoc(function) or "")


def source(value: Any) -> str:
    return textwrap.dedent(inspect.getsource(inspect.unwrap(value)))


def signature(function: Any) -> str:
    """The head of a function as its source has it, without `self`."""
    text = source(function)
    (node,) = ast.parse(text).body
    return written_head(text, node)


def written_head(text: str, node: ast.stmt, name: str = "") -> str:
    """The head of a function in a text, or of a class with that `__init__`."""
    assert isinstance(node, ast.FunctionDef)
    segment = lambda part: " ".join((ast.get_source_segment(text, part) or "").split())
    shown = node.returns if not name else None
    returned = f" -> {segment(shown)}" if shown else ""
    return head(name or node.name, parameters(node.args, segment), returned)


def parameters(arguments: ast.arguments, segment: Any) -> list[str]:
    """Parameters with types and defaults."""

    def shown(arg: ast.arg, default: ast.expr | None) -> str:
        equals = " = " if arg.annotation else "="
        return segment(arg) + (equals + segment(default) if default else "")

    plain = [*arguments.posonlyargs, *arguments.args]
    lacking = len(plain) - len(arguments.defaults)
    found = list(map(shown, plain, [*[None] * lacking, *arguments.defaults]))
    if arguments.vararg:
        found.append(f"*{segment(arguments.vararg)}")
    elif arguments.kwonlyargs:
        found.append("*")
    found += map(shown, arguments.kwonlyargs, arguments.kw_defaults)
    if arguments.kwarg:
        found.append(f"**{segment(arguments.kwarg)}")
    return [each for each in found if each not in ("self", "cls")]


def constructor(text: str, node: ast.ClassDef) -> str:
    """How a class is called."""
    for part in node.body:
        if isinstance(part, ast.FunctionDef) and part.name == "__init__":
            return written_head(text, part, node.name)
    fields = (part for part in node.body if isinstance(part, ast.AnnAssign))
    parts = [ast.unparse(field) for field in fields]
    return head(node.name, parts) if parts else node.name


def head(name: str, parts: list[str], returned: str = "") -> str:
    """On one line, or one for each parameter."""
    line = f"{name}({', '.join(parts)}){returned}"
    if len(line) <= WIDTH:
        return line
    return "\n".join([f"{name}(", *(f"    {part}," for part in parts), f"){returned}"])


def documented(node: ast.ClassDef) -> Iterator[tuple[str, str]]:
    """Fields with a docstring behind them."""
    for part, after in zip(node.body, node.body[1:], strict=False):
        if not isinstance(part, ast.AnnAssign) or not isinstance(after, ast.Expr):
            continue
        if isinstance(after.value, ast.Constant) and isinstance(part.target, ast.Name):
            yield part.target.id, indented(inspect.cleandoc(str(after.value.value)))


def public_methods(cls: type) -> Iterator[tuple[str, Any]]:
    """Methods and properties that the package has written, in order of their names."""
    for name in sorted(name for name in dir(cls) if not name.startswith("_")):
        value = inspect.getattr_static(cls, name)
        value = getattr(value, "__func__", value)
        function = value.fget if isinstance(value, property) else value
        if not callable(function) or not value.__doc__ or name.startswith("tree_"):
            continue
        function = inspect.unwrap(function)
        if inspect.isfunction(function) and function.__module__.startswith(OWN):
            yield name, value


def markdown(text: str) -> str:
    """A docstring, its sections as lists and fenced code."""
    first, *rest = SECTION.split(text)
    parts = [first.strip() + "\n"]
    for name, body in zip(rest[::2], rest[1::2], strict=True):
        inside = textwrap.dedent(body.strip("\n")) if body.startswith("\n") else body
        if name == "Example":
            parts.append(f"**Example**\n\n{fenced(inside.rstrip())}")
        elif name in LISTS:
            parts.append(f"**{LISTS[name]}**\n\n{as_list(inside)}")
        else:
            parts.append(f"**{name}**: {inside.strip()}\n")
    return "\n".join(parts)


def as_list(text: str) -> str:
    """Entries `name, other: text` as bullets."""
    entries = re.split(r"^(?=\S)", text, flags=re.M)
    bullets = []
    for each in filter(str.strip, entries):
        names, _, said = each.partition(":")
        shown = ", ".join(f"`{name.strip()}`" for name in names.split(","))
        first, *rest = said.strip().split("\n")
        lines = [first, *textwrap.dedent("\n".join(rest)).split("\n")]
        bullets.append(f"- {shown}: " + indented("\n".join(lines).strip()))
    return "\n".join(bullets) + "\n"


def indented(text: str) -> str:
    """Further lines as deep as a bullet's first one."""
    return textwrap.indent(text, "  ").strip()


def fenced(code: str) -> str:
    return f"```python\n{code}\n```\n"


if __name__ == "__main__":
    PAGE.write_text(page())
