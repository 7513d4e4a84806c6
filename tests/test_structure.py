"""The shape of the house: imports go one way, and nothing is too large to be grasped.

`../shared/design.md` has the list, docs/architecture.md the way of one run through it.
"""

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MAINTENANCE = "starview_app.maintenance"
# Each may import what stands in a line below its own; names are modules or folders.
LAYERS = (
    (
        "starview_app.management.commands",
        f"{MAINTENANCE}.apps",
        f"{MAINTENANCE}.tasks",
    ),
    (f"{MAINTENANCE}.notify",),
    (f"{MAINTENANCE}.history",),
    (f"{MAINTENANCE}.catchup",),
    (f"{MAINTENANCE}.running",),
    (f"{MAINTENANCE}.schedule",),
    (f"{MAINTENANCE}.jobs",),
    (f"{MAINTENANCE}.stores", f"{MAINTENANCE}.ses"),
    (f"{MAINTENANCE}.own_tables", f"{MAINTENANCE}.database_errors"),
    (f"{MAINTENANCE}.models",),
    tuple(f"{MAINTENANCE}.{name}" for name in ("errors", "exits", "files", "text")),
    ("starview_app.models",),
    ("starview",),
)
MOST_LINES = 320  # of code: without blank lines, comments and docstrings
MOST_FILES = 14


def modules() -> dict[str, Path]:
    found = {}
    for path in (*ROOT.glob("starview/**/*.py"), *ROOT.glob("starview_app/**/*.py")):
        if "migrations" not in path.parts:
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            found[name.removesuffix(".__init__")] = path
    return found


MODULES = modules()


def imported(path: Path) -> Iterator[str]:
    """The modules of ours that a file imports, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            parts = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [part if part in MODULES else node.module for part in parts]
        else:
            continue
        yield from (name for name in names if name in MODULES)


def layer_of(module: str) -> int | None:
    for number, names in enumerate(LAYERS):
        if any(module == name or module.startswith(f"{name}.") for name in names):
            return number
    return None


@pytest.mark.parametrize("module", sorted(MODULES))
def test_a_module_imports_only_what_stands_below_it(module: str) -> None:
    own = layer_of(module)
    if own is None:
        return
    upward = [
        name
        for name in imported(MODULES[module])
        if (other := layer_of(name)) is not None and other < own
    ]

    assert upward == []


def test_no_modules_import_each_other_in_a_circle() -> None:
    graph = {name: set(imported(path)) - {name} for name, path in MODULES.items()}

    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"a circle: {error.args[1]}")


def test_each_module_of_the_maintenance_has_its_layer() -> None:
    assert [
        name
        for name in MODULES
        if name.startswith(f"{MAINTENANCE}.") and layer_of(name) is None
    ] == []


def lines_of_code(path: Path) -> int:
    text = path.read_text()
    tree = ast.parse(text)
    documented = (
        node.body[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        and ast.get_docstring(node)
    )
    left_out = {
        line
        for node in documented
        for line in range(node.lineno, (node.end_lineno or 0) + 1)
    }
    return sum(
        1
        for number, line in enumerate(text.splitlines(), start=1)
        if line.strip() and line.strip()[0] != "#" and number not in left_out
    )


def test_a_file_can_be_read_in_one_go() -> None:
    sizes = {name: lines_of_code(path) for name, path in MODULES.items()}

    assert {name: size for name, size in sizes.items() if size > MOST_LINES} == {}


def test_a_folder_has_few_files() -> None:
    # A command is a file of this one folder: Django wants it so.
    commands = ROOT / "starview_app" / "management" / "commands"
    folders = {path.parent for path in MODULES.values()} - {commands}

    assert {
        str(folder.relative_to(ROOT)): count
        for folder in folders
        if (count := len(list(folder.glob("[!_]*.py")))) > MOST_FILES
    } == {}
