"""The rooms of the project and who may import whom; what must not be imported at all; that everything imports cleanly.

Imports point one way: optimizees, regularizers -> lo_framework -> eval -> meta_train. The rules are read off the syntax
trees of all files, so imports inside functions count too.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# room -> the rooms it may import from, beside itself
BELOW: dict[str, set[str]] = {
    "optimizees": set(),
    "regularizers": set(),
    "lo_framework": {"optimizees", "regularizers"},
    "eval": {"optimizees", "regularizers", "lo_framework"},
    "meta_train": {"optimizees", "regularizers", "lo_framework", "eval"},
}
OURS = {*BELOW, "tests", "benchmarks"}

# Whatever unpickles can run a stranger's code; a saved optimizer is something people download.
UNPICKLERS = {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}

# Heavy, and needed only by some commands: imported inside the functions that use them.
LAZY = ["matplotlib", "sklearn", "higher", "tensorboard", "tqdm", "scipy", "pooch"]


def source_files(room: str) -> list[Path]:
    return sorted((ROOT / room).rglob("*.py"))


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(tree: ast.AST, package: str) -> Iterator[str]:
    """Dotted names of all modules that `tree` imports; `package` is the package its relative imports start from."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
            base = ".".join([*parts, node.module] if node.module else parts)
            yield from (f"{base}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in ("import_module", "__import__") and isinstance(node.args[0].value, str):
                yield node.args[0].value


def violations(text: str, package: str) -> list[str]:
    """What the source `text` of a module in `package` imports or calls against the rules, in words."""
    tree = ast.parse(text)
    room = package.split(".")[0]
    found = []
    for name in imported(tree, package):
        top = name.split(".")[0]
        if top in OURS and top != room and top not in BELOW.get(room, set(BELOW)):
            found.append(f"{room} imports {name}")
        if top in UNPICKLERS or name in ("torch.load", "torch.serialization.load"):
            found.append(f"{room} imports {name}, which unpickles")
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and ast.unparse(node) in ("torch.load", "torch.serialization.load"):
            found.append("torch.load unpickles")
        if isinstance(node, ast.keyword) and node.arg == "allow_pickle" and ast.unparse(node.value) != "False":
            found.append("allow_pickle unpickles")
    return found


@pytest.mark.parametrize(
    "package, text, bad",
    [
        ("optimizees", "import lo_framework.layout", True),
        ("optimizees.models", "from regularizers import sam", True),
        ("regularizers", "from optimizees.spec import UserError", True),
        ("regularizers", "def f():\n    import lo_framework", True),
        ("lo_framework.learned", "from optimizees import spec\nfrom regularizers import sam", False),
        ("lo_framework.learned", "from ..layout import Layout\nfrom . import base", False),
        ("lo_framework", "from eval.runner import run", True),
        ("lo_framework", "import importlib\nimportlib.import_module('meta_train')", True),
        ("eval.sharpness", "import lo_framework, optimizees, regularizers", False),
        ("eval", "import meta_train.config", True),
        ("meta_train", "from eval import statistics", False),
        ("meta_train", "from tests import helpers", True),
        ("lo_framework", "from benchmarks import speed", True),
        ("eval", "from . import pickle", False),
        ("eval", "import evaluation, eval_tools", False),
        ("eval", "import pickle", True),
        ("eval", "from pickle import loads", True),
        ("eval", "from torch import load", True),
        ("eval", "import torch\ntorch.load('x')", True),
        ("eval", "json.load(f)", False),
        ("eval", "np.load(f, allow_pickle=True)", True),
        ("eval", "np.load(f, allow_pickle=False)", False),
        ("benchmarks", "import meta_train, optimizees", False),
        ("benchmarks", "import tests.helpers", True),
    ],
)
def test_the_rules_themselves(package: str, text: str, bad: bool) -> None:
    assert bool(violations(text, package)) is bad


@pytest.mark.parametrize("room", [*BELOW, "benchmarks"])
def test_import_order(room: str) -> None:
    found = []
    for path in source_files(room):
        name = module_name(path)
        package = name if path.name == "__init__.py" else name.rpartition(".")[0] or room
        found += [f"{path.relative_to(ROOT)}: {line}" for line in violations(path.read_text("utf-8"), package)]
    assert not found, "\n".join(found)


def test_every_folder_with_code_is_a_package() -> None:
    """Otherwise the wheel leaves it out."""
    folders = {path.parent for room in BELOW for path in source_files(room)}
    assert not [str(folder) for folder in folders if not (folder / "__init__.py").is_file()]
    assert not [room for room in BELOW if source_files(room) and not (ROOT / room / "py.typed").is_file()]


def python(script: str, *args: str, path: Path = ROOT, cwd: Path = ROOT, flags: tuple[str, ...] = ()) -> str:
    """Standard output of `script` in a fresh Python that finds our packages under `path`; fails with its errors."""
    env = {**os.environ, "PYTHONPATH": str(path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *flags, "-c", textwrap.dedent(script), *args]
    done = subprocess.run(command, env=env, cwd=cwd, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


# Each module alone in a process that has only torch loaded: a cycle that one import order hides fails in another.
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
    """It brings in none of the heavy packages beyond those that torch itself does (torch.hub imports tqdm)."""
    script = """
        import sys, torch
        before = set(sys.modules)
        import lo_framework, lo_framework.checkpoint
        print(*(name for name in sys.argv[1:] if name in set(sys.modules) - before))
    """
    assert python(script, *LAZY).split() == []


@pytest.mark.slow
def test_wheel_holds_everything_it_needs_and_no_tests(tmp_path: Path) -> None:
    """Built from a copy of the sources, unpacked, and imported from elsewhere without the repository in sight."""
    import shutil
    import zipfile

    source, dist, unpacked = (tmp_path / name for name in ("source", "dist", "unpacked"))
    skip = shutil.ignore_patterns("__pycache__", "*.egg-info")
    source.mkdir()
    for name in [*BELOW, "tests"]:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=skip)
    for name in ("pyproject.toml", "LICENSE", "README.md"):
        if (ROOT / name).is_file():
            shutil.copy(ROOT / name, source / name)
    pip = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", str(dist), str(source)]
    built = subprocess.run(pip, capture_output=True, text=True, timeout=300)
    assert built.returncode == 0, built.stdout + built.stderr

    with zipfile.ZipFile(next(dist.glob("lo_framework-*.whl"))) as wheel:
        held = set(wheel.namelist())
        wheel.extractall(unpacked)
    code = {path.relative_to(ROOT).as_posix() for room in BELOW for path in source_files(room)}
    assert {name for name in held if name.endswith(".py")} == code
    info = next(name.split("/")[0] for name in held if ".dist-info/" in name)
    assert {name.split("/")[0] for name in held} <= {*BELOW, info}
    assert {f"{room}/py.typed" for room in BELOW if source_files(room)} <= held
    scripts = (unpacked / info / "entry_points.txt").read_text()
    assert "lo-meta-train = meta_train.cli:main" in scripts and "lo-eval = eval.cli:main" in scripts

    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    rooms = [room for room in BELOW if source_files(room)]
    script = "import sys, importlib; print(*(importlib.import_module(n).__file__ for n in sys.argv[1:]), sep='\\n')"
    places = python(script, *rooms, path=unpacked, cwd=elsewhere, flags=("-W", "error")).splitlines()
    assert len(places) == len(rooms) and all(Path(place).is_relative_to(unpacked) for place in places)
