"""The wheel: what it holds, and that it works without the repository in sight."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_imports import BELOW, ROOT, python, source_files


@pytest.mark.slow
def test_wheel_holds_everything_it_needs_and_no_tests(tmp_path: Path) -> None:
    """Built from a copy of the sources, unpacked, and imported from elsewhere without the
    repository in sight.
    """
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
    pip = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(dist),
        str(source),
    ]
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
    places = python(
        script, *rooms, path=unpacked, cwd=elsewhere, flags=("-W", "error")
    ).splitlines()
    assert len(places) == len(rooms) and all(
        Path(place).is_relative_to(unpacked) for place in places
    )
