"""The rooms of the project and who may import whom; what must not be imported at all; that
everything imports cleanly.

Imports point one way: optimizees, regularizers -> lo_framework -> eval -> meta_train. The rules are
read off the syntax trees of all files, so imports inside functions count too.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# room -> the rooms it may import from, beside itself; all are subpackages of lo_framework, and
# "core" is the rest of it
BELOW: dict[str, set[str]] = {
    "optimizees": set(),
    "regularizers": set(),
    "core": {"optimizees", "regularizers"},
    "eval": {"optimizees", "regularizers", "core"},
    "meta_train": {"optimizees", "regularizers", "core", "eval"},
}
HOME = "lo_framework"
# What every room may use; these modules import no room.
GROUND = tuple(
    f"{HOME}.{name}"
    for name in (
        "allocation",
        "commandline",
        "errors",
        "namespace",
        "native",
        "optional",
        "plugin",
        "recent",
        "registry",
        "schema",
        "spec",
    )
)
OUTSIDE = {"tests", "benchmarks"}
# Short names work in the checkout alone: the code itself never uses them.
SHORT = set(BELOW) - {"core"}

# Whatever unpickles can run a stranger's code; a saved optimizer is something people download.
UNPICKLERS = {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}

# Heavy, and needed only by some commands: imported inside the functions that use them.
LAZY = ["matplotlib", "sklearn", "higher", "tensorboard", "tqdm", "scipy", "pooch"]
LAZY += ["huggingface_hub"]


def source_files(room: str) -> list[Path]:
    if room != "core":
        return sorted((ROOT / room).rglob("*.py"))
    files = (ROOT / HOME).rglob("*.py")  # which does not follow the links to the other rooms
    return sorted(path for path in files if (ROOT / HOME / "installed") not in path.parents)


def room_of(module: str) -> str | None:
    """The room of a dotted name; None for a module that is not ours."""
    parts = module.split(".")
    if parts[0] != HOME:
        return parts[0] if parts[0] in OUTSIDE else None
    return parts[1] if len(parts) > 1 and parts[1] in BELOW else "core"


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    if parts[0] in SHORT:
        parts = (HOME, *parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(tree: ast.AST, package: str) -> Iterator[str]:
    """Dotted names of all modules that `tree` imports; `package` is the package its relative
    imports start from.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = (
                package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
            )
            base = ".".join([*parts, node.module] if node.module else parts)
            yield from (f"{base}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = (
                node.func.attr
                if isinstance(node.func, ast.Attribute)
                else getattr(node.func, "id", "")
            )
            if called in ("import_module", "__import__") and isinstance(node.args[0].value, str):
                yield node.args[0].value


def violations(text: str, package: str) -> list[str]:
    """Imports and calls against the rules in the source `text` of a module in `package`."""
    tree = ast.parse(text)
    room = room_of(package)
    found = []
    for name in imported(tree, package):
        top, other = name.split(".")[0], room_of(name)
        if name.startswith(GROUND):
            continue
        if other not in (None, room) and other not in BELOW.get(str(room), set(BELOW)):
            found.append(f"{room} imports {name}")
        if top in SHORT:
            found.append(f"{room} imports {name}, which only the checkout has: say {HOME}.{name}")
        if top in UNPICKLERS or name in ("torch.load", "torch.serialization.load"):
            found.append(f"{room} imports {name}, which unpickles")
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and ast.unparse(node) in (
            "torch.load",
            "torch.serialization.load",
        ):
            found.append("torch.load unpickles")
        if (
            isinstance(node, ast.keyword)
            and node.arg == "allow_pickle"
            and ast.unparse(node.value) != "False"
        ):
            found.append("allow_pickle unpickles")
    return found


@pytest.mark.parametrize(
    "room, text, bad",
    [
        ("optimizees", "import lo_framework.layout", True),
        ("optimizees.models", "from lo_framework.regularizers import sam", True),
        ("optimizees", "from lo_framework.namespace import alias", False),
        ("regularizers", "from lo_framework.spec import UserError", False),
        ("regularizers", "def f():\n    import lo_framework", True),
        (
            "learned",
            "from lo_framework import spec\nfrom lo_framework.regularizers import sam",
            False,
        ),
        ("learned", "from ..layout import Layout\nfrom . import base", False),
        ("", "from lo_framework.eval.running.cells import run", True),
        ("", "import importlib\nimportlib.import_module('lo_framework.meta_train')", True),
        ("eval.sharpness", "import lo_framework, lo_framework.optimizees", False),
        ("eval", "import lo_framework.meta_train.config", True),
        ("meta_train", "from lo_framework.eval import statistics", False),
        ("meta_train", "from tests import helpers", True),
        ("", "from benchmarks import speed", True),
        ("eval", "from . import pickle", False),
        ("eval", "import evaluation, eval_tools", False),
        ("eval", "from optimizees import make_tasks", True),
        ("eval", "import pickle", True),
        ("eval", "from pickle import loads", True),
        ("eval", "from torch import load", True),
        ("eval", "import torch\ntorch.load('x')", True),
        ("eval", "json.load(f)", False),
        ("eval", "np.load(f, allow_pickle=True)", True),
        ("eval", "np.load(f, allow_pickle=False)", False),
    ],
)
def test_the_rules_themselves(room: str, text: str, bad: bool) -> None:
    assert bool(violations(text, f"{HOME}.{room}".rstrip("."))) is bad


def test_benchmarks_import_no_tests() -> None:
    assert violations("import tests.helpers", "benchmarks")
    assert not violations("import lo_framework.meta_train", "benchmarks")


@pytest.mark.parametrize("room", [*BELOW, "benchmarks"])
def test_import_order(room: str) -> None:
    found = []
    for path in source_files(room):
        if path == ROOT / HOME / "__init__.py":
            continue  # the front door stands above all rooms
        name = module_name(path)
        package = name if path.name == "__init__.py" else name.rpartition(".")[0] or room
        found += [
            f"{path.relative_to(ROOT)}: {line}"
            for line in violations(path.read_text("utf-8"), package)
        ]
    assert not found, "\n".join(found)


def modules() -> dict[str, set[str]]:
    """Every module of the namespace with the modules of it that it imports, anywhere in its text:
    inside functions and for type checkers too.
    """
    files = {module_name(path): path for room in BELOW for path in source_files(room)}
    graph = {}
    for name, path in files.items():
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        targets = set()
        for target in imported(ast.parse(path.read_text("utf-8")), package):
            while target and target not in files:
                target = target.rpartition(".")[0]
            targets.add(target)
        graph[name] = targets - {"", name}
    return graph


def circles(graph: dict[str, set[str]]) -> list[set[str]]:
    """The groups of two or more nodes of `graph` that reach each other."""

    def reached(start: str) -> set[str]:
        seen, todo = set(), [*graph[start]]
        while todo:
            node = todo.pop()
            if node not in seen:
                seen.add(node)
                todo += graph[node]
        return seen

    reach = {node: reached(node) for node in graph}
    groups: list[set[str]] = []
    for node in graph:
        if node in reach[node] and not any(node in group for group in groups):
            groups.append({other for other in reach[node] if node in reach[other]})
    return groups


def arrows(graph: dict[str, set[str]], package: str) -> dict[str, set[str]]:
    """Imports between the rooms of `package`, its modules and subpackages, by their short names."""

    def room(name: str) -> str:
        return name.removeprefix(package).split(".")[1] if name != package else "__init__"

    rooms: dict[str, set[str]] = {}
    for name, targets in graph.items():
        if name == package or name.startswith(package + "."):
            inside = {room(t) for t in targets if t == package or t.startswith(package + ".")}
            rooms.setdefault(room(name), set()).update(inside - {room(name)})
    return rooms


# The rooms of a package from the ground up; a room imports from lower floors only.
FLOORS: dict[str, list[str]] = {
    HOME: [
        "namespace errors allocation malloc memory recent",
        "native schema",
        "spec",
        "optional plugin registry processes",
        "ranks",
        "commandline",
        "files optimizees regularizers roles",
        "layout",
        "learned",
        "episode",
        "flat_task objectives",
        "absorb",
        "inner",
        "estimators",
        "optim",
        "eval",
        "meta_train",
        "cli __init__",
        "__main__",
    ],
    f"{HOME}.optim": [
        "naming options telling shards backward_watch eager interrupts refusals",
        "checkpoint",
        "base",
        "arena blocks fused",
        "learned sam",
        "metaoptimize",
        "metaadamw",
        "__init__",
    ],
    f"{HOME}.eval": [
        "statistics baselines",
        "targets running",
        "score sharpness",
        "studies",
        "report",
        "api commands",
        "cli __init__",
        "__main__",
    ],
}


@pytest.mark.parametrize("package", FLOORS)
def test_arrows_between_rooms_point_down(package: str) -> None:
    floor = {room: k for k, rooms in enumerate(FLOORS[package]) for room in rooms.split()}
    rooms = arrows(modules(), package)
    assert set(rooms) == set(floor), "every room has its floor"
    assert not {f"{a} -> {b}" for a in rooms for b in rooms[a] if floor[b] >= floor[a]}


def test_no_import_circles() -> None:
    assert circles(modules()) == []


def test_the_graph_itself() -> None:
    graph = {"p": {"p.a"}, "p.a": {"p.b.x"}, "p.b": set(), "p.b.x": {"p.a"}, "q": {"p"}}
    assert circles(graph) == [{"p.a", "p.b.x"}]
    assert arrows(graph, "p") == {"__init__": {"a"}, "a": {"b"}, "b": {"a"}}
    assert "lo_framework.spec" in modules()["lo_framework.registry"]


def test_every_folder_with_code_is_a_package() -> None:
    """And stands in pyproject's list, or the wheel leaves it out."""
    folders = {path.parent for room in BELOW for path in source_files(room)}
    assert not [str(folder) for folder in folders if not (folder / "__init__.py").is_file()]
    text = (ROOT / "pyproject.toml").read_text("utf-8")
    listed = re.search(r"^packages = \[(.*?)^\]", text, re.M | re.S)
    assert listed is not None
    packages = set(re.findall(r'"([\w.]+)"', listed[1])) - {"meta_train"}
    assert packages == {module_name(folder / "__init__.py") for folder in folders}


def test_a_short_name_is_no_second_copy() -> None:
    script = """
        import importlib
        for name in ("eval", "meta_train", "optimizees", "regularizers"):
            assert importlib.import_module(name) is importlib.import_module("lo_framework." + name)
        from eval import statistics
        import lo_framework.eval.statistics as same
        import optimizees.models.mlp, lo_framework.optimizees.models.mlp as mlp
        assert statistics is same and optimizees.models.mlp is mlp
        assert mlp.__name__ == mlp.__spec__.name == "lo_framework.optimizees.models.mlp"
    """
    python(script)


def python(
    script: str, *args: str, path: Path = ROOT, cwd: Path = ROOT, flags: tuple[str, ...] = ()
) -> str:
    """Standard output of `script` in a fresh Python that finds our packages under `path`; fails
    with its errors.
    """
    env = {**os.environ, "PYTHONPATH": str(path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *flags, "-c", textwrap.dedent(script), *args]
    done = subprocess.run(command, env=env, cwd=cwd, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


# Each module alone in a process that has only torch loaded: a cycle that one import order hides
# fails in another.
IMPORT_EACH = """
    import importlib, os, sys, traceback
    import torch
    failed = 0
    for name in sys.argv[1:]:
        sys.stderr.flush()
        pid = os.fork()
        if pid == 0:
            try:
                importlib.import_module(name)
            except BaseException:
                print("importing", name, file=sys.stderr)
                traceback.print_exc()
                sys.stderr.flush()
                os._exit(1)
            os._exit(0)
        failed |= os.waitpid(pid, 0)[1]
    sys.exit(1 if failed else 0)
"""


@pytest.mark.parametrize("room", BELOW)
def test_every_module_imports_alone_without_warnings(room: str) -> None:
    names = [module_name(path) for path in source_files(room) if path.name != "__main__.py"]
    if not names:
        pytest.skip(f"{room} is not there yet")
    python(IMPORT_EACH, *names, flags=("-W", "error"))


def test_lo_framework_is_light_to_import() -> None:
    """It brings in none of the heavy packages beyond those that torch itself does (torch.hub
    imports tqdm).
    """
    script = """
        import sys, torch
        before = set(sys.modules)
        import lo_framework, lo_framework.learned, lo_framework.files.checkpoint
        print(*(name for name in sys.argv[1:] if name in set(sys.modules) - before))
    """
    assert python(script, *LAZY).split() == []
