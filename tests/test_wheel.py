"""What is installed: the wheel, the source archive and an uninstalled checkout all give one
namespace, beside whatever a person has in the folder they stand in.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.test_imports import BELOW, HOME, ROOT, SHORT, module_name, python, source_files

pytestmark = pytest.mark.slow

# Files of a person's own whose names are also folders of the checkout.
OWN = {"eval.py": "MINE = 1\n", "regularizers.py": "MINE = 2\n", "tests/__init__.py": "MINE = 3\n"}
# A task of one's own, given to the framework by a worker process too.
SCRIPT = """
import sys
import eval, regularizers, tests
assert (eval.MINE, regularizers.MINE, tests.MINE) == (1, 2, 3)

import lo_framework.eval.cli, lo_framework.meta_train.cli, lo_framework.optimizees.pool
import lo_framework.regularizers as inside
assert inside is not regularizers and lo_framework.eval is not eval
for module in (lo_framework, inside, lo_framework.eval, lo_framework.meta_train):
    print(module.__file__)

if __name__ == "__main__":
    small = "--outer-steps 2 --unroll-length 2 --episode-length 4 --num-tasks 2 --shards 2"
    end = lo_framework.meta_train.cli.main(
        f"--optimizees mlp --learned hyper-adamw --no-evaluate --workers 2 {small}"
        " --out run".split()
    )
    sys.exit(end)
"""


# Nothing but the wheel is needed to train by the optimizer that it brings.
USE = """
import torch
import lo_framework as lo
from lo_framework.learned.sources import find

model = torch.nn.Linear(4, 2)
optimizer = lo.Learned(model, "general", num_steps=20)
losses = []
for step in range(20):
    optimizer.zero_grad()
    losses.append(model(torch.ones(8, 4)).square().mean())
    losses[-1].backward()
    optimizer.step()
assert losses[-1] < losses[0]
print(find("general"))
"""


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tree with its links, and nothing that a build has left in it."""
    copy = tmp_path_factory.mktemp("source") / "tree"
    skip = shutil.ignore_patterns(
        ".git", ".venv", "__pycache__", "*.egg-info", ".*_cache", "results", "runs", "data", "build"
    )
    shutil.copytree(ROOT, copy, symlinks=True, ignore=skip)
    return copy


@pytest.fixture(scope="module")
def wheel(tree: Path) -> Path:
    pip = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation"]
    run([*pip, "-w", str(tree.parent / "dist"), str(tree)], tree)
    return next((tree.parent / "dist").glob("lo_framework-*.whl"))


@pytest.fixture(scope="module")
def installed(wheel: Path) -> Path:
    """The wheel in a folder of its own, with its commands in `bin`."""
    folder = wheel.parent / "installed"
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index"]
    run([*pip, "--target", str(folder), str(wheel)], wheel.parent)
    return folder


@pytest.fixture
def beside(tmp_path: Path) -> Path:
    """A folder with a script and files of a person's own."""
    for name, text in {**OWN, "script.py": SCRIPT}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def run(command: list[str], folder: Path, path: Path | None = None) -> str:
    """Standard output of `command`; `path` is where our packages are."""
    env = {"PATH": str(Path(sys.executable).parent), "OMP_NUM_THREADS": "1"}
    env |= {"PYTHONPATH": str(path)} if path else {}
    done = subprocess.run(command, env=env, cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def code() -> set[str]:
    """Every module of the tree at its place in the namespace, and the shim."""
    files = {path for room in BELOW for path in source_files(room)}
    places = {module_name(path).replace(".", "/"): path.name == "__init__.py" for path in files}
    return {
        "meta_train/__init__.py",
        *(
            f"{place}/__init__.py" if package else f"{place}.py"
            for place, package in places.items()
        ),
    }


def test_wheel_holds_the_namespace_and_the_shim(wheel: Path, installed: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {name for name in names if name.endswith(".py")} == code()
    info = next(name.split("/")[0] for name in names if ".dist-info/" in name)
    assert {name.split("/")[0] for name in names} == {HOME, "meta_train", info}
    assert f"{HOME}/shipped/general.safetensors" in names
    assert {f"{HOME}/py.typed", *(f"{HOME}/{room}/py.typed" for room in SHORT)} <= names
    metadata = (installed / info / "METADATA").read_text("utf-8")
    needed = re.findall(r"^Requires-Dist: ([\w-]+)[^;\n]*$", metadata, re.M)
    assert needed == ["torch", "numpy", "safetensors"]


def test_wheel_runs_beside_a_persons_own_files(installed: Path, beside: Path) -> None:
    places = run([sys.executable, "script.py"], beside, installed).splitlines()
    assert len([p for p in places if Path(p).is_relative_to(installed / HOME)]) >= 4
    assert (beside / "run" / "optimizer.safetensors").is_file()
    for name in ("lo-eval", "lo-meta-train"):
        assert "--help" in run([str(installed / "bin" / name), "--help"], beside, installed)
    for name in ("meta_train", f"{HOME}.meta_train", f"{HOME}.eval"):
        assert "--help" in run([sys.executable, "-m", name, "--help"], beside, installed)


def test_the_wheel_brings_an_optimizer(installed: Path, beside: Path) -> None:
    """The bytes of the checkout, which `Learned` and a command know by their name."""
    (beside / "use.py").write_text(USE)
    place = Path(run([sys.executable, "use.py"], beside, installed).strip())
    assert place == installed / HOME / "shipped" / "general.safetensors"
    assert place.read_bytes() == (ROOT / HOME / "shipped" / "general.safetensors").read_bytes()
    assert place.stat().st_size < 1_000_000
    score = f"score general --problems 25-steps --progress none --out {beside / 'score'}"
    told = run([str(installed / "bin" / "lo-eval"), *score.split()], beside, installed)
    assert "score general: speed-up" in told


def test_an_uninstalled_checkout_is_one_namespace_too(tree: Path, beside: Path) -> None:
    """Found through its links; the short names are the checkout's own."""
    script = """
        import importlib
        for name in ("eval", "meta_train", "optimizees", "regularizers"):
            assert importlib.import_module(name) is importlib.import_module("lo_framework." + name)
    """
    python(script, path=tree, cwd=tree)
    run([sys.executable, "script.py"], beside, tree)
    assert (beside / "run" / "optimizer.safetensors").is_file()
    for program in ("meta_train", "eval"):
        assert "--help" in run([sys.executable, "-m", program, "--help"], tree)


def test_source_archive_builds_the_same_wheel(tree: Path, wheel: Path, tmp_path: Path) -> None:
    build = "from setuptools.build_meta import build_sdist; print(build_sdist('dist'))"
    run([sys.executable, "-c", build], tree)
    archive = next((tree / "dist").glob("lo_framework-*.tar.gz"))
    with tarfile.open(archive) as members:
        members.extractall(tmp_path, filter="data")
    source = next(path for path in tmp_path.iterdir() if path.is_dir())
    pip = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation"]
    run([*pip, "-w", str(tmp_path / "dist"), str(source)], tmp_path)
    again = next((tmp_path / "dist").glob("*.whl"))
    assert set(zipfile.ZipFile(again).namelist()) == set(zipfile.ZipFile(wheel).namelist())
