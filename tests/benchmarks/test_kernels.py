"""Both ways of every case do the same, and the script runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import kernels
from benchmarks.results import kernels as rows
from lo_framework.native import toolchain

pytestmark = pytest.mark.skipif(bool(toolchain.reason()), reason=toolchain.reason())


def test_it_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kernels.main(["--quick", "--tasks", "1", "--rounds", "1", "--out", str(tmp_path)])
    content = json.loads((tmp_path / "kernels_quick.json").read_text("utf-8"))
    header, *lines = rows(content)
    cases = len(kernels.CONVOLUTIONS) + len(kernels.LEARNED)
    assert len(lines) == cases and all(len(line) == len(header) == 5 for line in lines)
    assert all(part["times as fast"] > 0 for x in content["cases"].values() for part in x.values())
    assert capsys.readouterr().out.count("with its derivative") == cases
