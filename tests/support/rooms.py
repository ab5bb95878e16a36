"""The rules of the house, each a function of a package's folder: what breaks it.

Everything is read off the syntax trees; nothing of the package is imported. Folders
are rooms, `__init__.py` is a room's door, all other files are its inside.
"""

import ast
from collections.abc import Callable, Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOM_FILES = 12
"""The door among them."""
FILE_LINES, DOOR_LINES, POSITIONAL = 300, 3, 4
TOP = {"__init__.py", "__main__.py", "_demo.py", "py.typed"}
RETIRED = {"effort", "gauge", "lift", "made", "meant", "ride", "riding", "task"}
"""Words of our own, for which the field or the code has a plainer one."""
FLAX = ("linen/", "nnx/", "core/_paths.py", "_demo.py")
BINDINGS = ("linen", "nnx")
"""Rooms that lie side by side."""
CUSTOM = {"custom_vjp", "custom_jvp", "defvjp", "defjvp", "defjvps"}
FUNCTIONS = ast.FunctionDef | ast.AsyncFunctionDef

Rule = Callable[[Path], Iterator[str]]


def sources(package: Path) -> dict[str, ast.Module]:
    """The syntax tree of each file, by its path in the package."""
    files = sorted(package.rglob("*.py"))
    return {f.relative_to(package).as_posix(): ast.parse(f.read_text()) for f in files}


def room_of(file: str) -> str:
    """The folder of a file; that of the files at the top is the empty one."""
    return file.rpartition("/")[0]


def names_in(tree: ast.AST) -> set[str]:
    """All names and attributes of an expression."""
    found = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)}
    return found | {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute)}


# Imports.


def imports_of(package: Path, file: str, tree: ast.Module) -> Iterator[tuple[str, str]]:
    """What a file imports of its package, as it is written and as a file's path."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == package.name:
                    yield f"import {alias.name}", ""
        elif isinstance(node, ast.ImportFrom):
            written = f"from {'.' * node.level}{node.module or ''}"
            parts = (node.module or "").split(".")
            if node.level == 0 and parts[0] == package.name:
                yield written, ""
            elif node.level:
                folder = (package / file).parents[node.level - 1]
                target = folder.joinpath(*filter(None, parts))
                is_room = (target / "__init__.py").is_file()
                target = target / "__init__.py" if is_room else target
                target = target.with_suffix(".py")
                yield written, target.relative_to(package).as_posix()


def imports(package: Path, below: dict[str, set[str]]) -> Iterator[str]:
    """Siblings and doors alone, and only those of rooms below."""
    for file, tree in sources(package).items():
        room = room_of(file)
        for written, target in imports_of(package, file, tree):
            where = f"{file}: {written}"
            if target in ("", "__init__.py"):
                yield f"{where}: the package's own door is for its users"
            elif target == f"{room}/__init__.py":
                yield f"{where}: its own door"
            elif not (package / target).is_file():
                yield f"{where}: no such file"
            elif room_of(target) == room:
                continue
            elif not target.endswith("/__init__.py"):
                yield f"{where}: the inside of another room"
            elif room_of(target) not in below.get(room, set()):
                yield f"{where}: {room or 'the top'} is not above that room"


def rooms(package: Path, below: dict[str, set[str]]) -> Iterator[str]:
    """The table and the folders agree, and the table has an order from the ground."""
    folders = {room_of(file) for file in sources(package)}
    for name in sorted(folders ^ set(below)):
        yield f"{name}: {'no line of the table' if name in folders else 'no folder'}"
    yield from _cycles(below)


def cycles(package: Path) -> Iterator[str]:
    """No file imports itself by way of others."""
    graph = {
        file: {target for _, target in imports_of(package, file, tree)}
        for file, tree in sources(package).items()
    }
    yield from _cycles(graph)


def _cycles(graph: dict[str, set[str]]) -> Iterator[str]:
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        yield "circle: " + " <- ".join(error.args[1])


def flax(package: Path) -> Iterator[str]:
    """Flax is imported where a model is Flax's, and nowhere else."""
    for file, tree in sources(package).items():
        for node in ast.walk(tree):
            modules: list[str] = []
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                modules = [node.module or ""]
            for module in modules:
                if module.split(".")[0] == "flax" and not file.startswith(FLAX):
                    yield f"{file}:{node.lineno}: imports {module}"


# Doors and files.


def doors(package: Path) -> Iterator[str]:
    """A docstring and sorted re-exports; at the top what `_about_itself` allows, too.

    The package's own door may import at the first use of a name: its re-exports are
    then read by type checkers alone.
    """
    for file, tree in sources(package).items():
        if not file.endswith("__init__.py"):
            continue
        lines = (ast.get_docstring(tree) or "").split("\n")
        if lines == [""]:
            yield f"{file}: no docstring"
        if room_of(file) and len([x for x in lines if x.strip()]) > DOOR_LINES:
            yield f"{file}: more than {DOOR_LINES} lines of docstring"
        body = tree.body[1:] if room_of(file) else list(_written_out(tree.body[1:]))
        exports = [n for n in body if _re_export(n)]
        for node in body:
            if node not in exports and (room_of(file) or not _about_itself(node)):
                yield f"{file}:{node.lineno}: {ast.unparse(node)}"
        keys = [_import_key(node) for node in exports]
        if keys != sorted(keys):
            yield f"{file}: not sorted"


def _re_export(node: ast.stmt) -> bool:
    return (
        isinstance(node, ast.ImportFrom)
        and node.level == 1
        and len(node.names) == 1
        and node.names[0].name == node.names[0].asname
    )


def _written_out(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements, and those for type checkers in their place."""
    for node in body:
        is_for_types = isinstance(node, ast.If) and not node.orelse
        is_for_types = is_for_types and ast.unparse(node.test) == "TYPE_CHECKING"
        yield from node.body if is_for_types else [node]


def _about_itself(node: ast.stmt) -> bool:
    """`__all__`, `__version__`, what tells the version, and what imports late."""
    if isinstance(node, ast.ImportFrom):
        return node.module in ("importlib.metadata", "typing")
    if isinstance(node, ast.If) and ast.unparse(node.test) == "not TYPE_CHECKING":
        functions = [n.name for n in node.body if isinstance(n, ast.FunctionDef)]
        late = {"__getattr__", "__dir__"}.issuperset(functions)
        return late and len(functions) == len(node.body) and not node.orelse
    return isinstance(node, ast.Assign) and all(
        isinstance(t, ast.Name) and t.id in ("__all__", "__version__")
        for t in node.targets
    )


def _import_key(node: ast.ImportFrom) -> tuple:
    """As isort orders: constants, classes, functions."""
    name = node.names[0].name
    rank = 0 if name.isupper() else 1 if name[0].isupper() else 2
    return node.module or "", rank, name.lower()


def sizes(package: Path) -> Iterator[str]:
    """Files one reads at once, and rooms one has in view."""
    files = [file.relative_to(package) for file in sorted(package.rglob("*.py"))]
    for file in files:
        count = len((package / file).read_text().splitlines())
        if count > FILE_LINES:
            yield f"{file}: {count} lines"
    for folder in sorted({file.parent for file in files}):
        count = sum(file.parent == folder for file in files)
        if count > ROOM_FILES:
            yield f"{folder}: {count} files"


def top(package: Path) -> Iterator[str]:
    """Beside the rooms a few files, all known."""
    for path in sorted(package.iterdir()):
        if path.is_file() and path.name not in TOP:
            yield f"{path.name}: at the top"


# Definitions.


def names(package: Path) -> Iterator[str]:
    """No name means two things: none is defined at the top of two files.

    Bindings lie side by side: in files of the same name a name means the same.
    """
    homes: dict[str, list[str]] = {}
    for file, tree in sources(package).items():
        for name in sorted(_defined(tree.body)):
            homes.setdefault(name, []).append(file)
    for name, files in homes.items():
        apart = {_in_binding(file) for file in files}
        if len(apart) > 1 and not name.startswith("__"):
            yield f"{name}: {', '.join(files)}"


def _in_binding(file: str) -> str:
    """A file's path, from its binding on if it lies in one."""
    room, _, name = file.partition("/")
    return name if room in BINDINGS else file


def _defined(body: list[ast.stmt]) -> set[str]:
    found: set[str] = set()
    for node in body:
        if isinstance(node, FUNCTIONS | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for target in targets:
                found |= {n.id for n in ast.walk(target) if isinstance(n, ast.Name)}
        elif isinstance(node, ast.If | ast.Try):
            inner = ast.iter_child_nodes(node)
            found |= _defined([n for n in inner if isinstance(n, ast.stmt)])
    return found


def positions(package: Path) -> Iterator[str]:
    """At most four parameters by position, but where jax itself passes them so."""
    for file, tree in sources(package).items():
        calls = [n for n in ast.walk(tree) if isinstance(n, ast.Call)]
        bound = [n for n in calls if names_in(n.func) & CUSTOM]
        rules = set().union(*(names_in(a) for n in bound for a in n.args))
        owners = {
            id(node): owner
            for owner in ast.walk(tree)
            if isinstance(owner, ast.ClassDef)
            for node in owner.body
        }
        for node in ast.walk(tree):
            if not isinstance(node, FUNCTIONS):
                continue
            decorators = set().union(*map(names_in, node.decorator_list))
            if node.name in rules or decorators & CUSTOM:
                continue
            count = len(node.args.posonlyargs) + len(node.args.args)
            count -= id(node) in owners and "staticmethod" not in decorators
            if count > POSITIONAL:
                yield f"{file}:{node.lineno}: {node.name} takes {count} by position"


def words(package: Path) -> Iterator[str]:
    """Nothing that the package names has a word that was given up."""
    for file, tree in sources(package).items():
        for node in ast.walk(tree):
            name = ""
            if isinstance(node, FUNCTIONS | ast.ClassDef):
                name = node.name
            elif isinstance(node, ast.arg):
                name = node.arg
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                name = node.id
            for word in sorted(RETIRED & set(name.lower().split("_"))):
                yield f"{file}:{node.lineno}: {name} has the word {word}"
