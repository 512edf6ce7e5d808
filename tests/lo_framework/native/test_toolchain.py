"""Compilers that are there, are not, or fail; files that are kept."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lo_framework.errors import UserError
from lo_framework.inner.engine import ENGINES, Engine, possible, resolved
from lo_framework.native import toolchain

ANSWER = "int answer(void) { return %d; }"


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder of its own and no memory of what was found before."""
    monkeypatch.setenv("LO_KERNELS", str(tmp_path / "kernels"))
    cached = (toolchain.compiler, toolchain.reason, toolchain.load)
    for function in cached:
        function.cache_clear()
    yield tmp_path
    monkeypatch.undo()
    for function in cached:
        function.cache_clear()


@pytest.mark.skipif(bool(toolchain.reason()), reason=toolchain.reason())
def test_compiled_once_and_kept(fresh: Path) -> None:
    assert toolchain.load(ANSWER % 5).answer() == 5
    (made,) = (fresh / "kernels").iterdir()
    before = made.stat().st_mtime_ns
    toolchain.load.cache_clear()
    assert toolchain.load(ANSWER % 5).answer() == 5
    assert made.stat().st_mtime_ns == before
    left = fresh / "kernels" / f"{toolchain.SCRATCH}killed"
    left.mkdir()
    os.utime(left, (0, 0))
    assert toolchain.load(ANSWER % 6).answer() == 6  # another source is another file
    assert not left.exists()


@pytest.mark.skipif(bool(toolchain.reason()), reason=toolchain.reason())
@pytest.mark.skipif(os.name != "posix", reason="permissions are those of POSIX")
def test_a_folder_that_others_can_write_to_is_not_used(fresh: Path) -> None:
    folder = fresh / "kernels"
    folder.mkdir()
    folder.chmod(0o777)
    assert toolchain.load(ANSWER % 7).answer() == 7
    assert not list(folder.iterdir())


def test_without_a_compiler(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(fresh))
    monkeypatch.delenv("CC", raising=False)
    assert "no C compiler" in toolchain.reason()
    with pytest.raises(UserError, match=r"native cannot run here: .*no C compiler.*; eager, graph"):
        Engine.parse("native")
    assert possible() == ["eager", "graph", "best"]
    assert resolved("auto") == "best" and resolved("auto", varied=True) == "eager"


def test_a_compiler_that_fails(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = fresh / "cc"
    broken.write_text(
        "#!/bin/sh\n[ \"$1\" = --version ] && echo fake 1 && exit 0\necho 'error: no' >&2\nexit 1\n"
    )
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", f"{fresh}:{os.environ['PATH']}")
    monkeypatch.delenv("CC", raising=False)
    assert "cannot compile a kernel: error: no" in toolchain.reason()


def test_engines_are_what_they_are_called() -> None:
    assert Engine.named("native") == Engine("eager", True)
    assert Engine.named("native-graph") == Engine("graph", True)
    assert Engine.named("inductor") == Engine("inductor", False)
    with pytest.raises(UserError, match='did you mean "native-graph"'):
        Engine.named("native-grpah")
    assert all(resolved(name) == name for name in ENGINES)
    assert resolved("native-best", varied=True) == "native"
