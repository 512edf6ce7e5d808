"""All ways to look at a landscape are timed, and the setting that tells them apart is put back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import landscape
from benchmarks.results import landscape as rows
from lo_framework.eval.sharpness import replayed


def test_it_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    usual = replayed.WORTH_RECORDING
    landscape.main(["--quick", "--rounds", "1", "--points", "2", "--out", str(tmp_path)])
    assert usual == replayed.WORTH_RECORDING
    content = json.loads((tmp_path / "landscape_quick.json").read_text("utf-8"))
    header, *lines = rows(content)
    assert len(lines) == 4 * len(landscape.MODELS) and all(len(x) == len(header) for x in lines)
    assert all(x > 0 for case in content["cases"].values() for x in case.values())
    assert capsys.readouterr().out.count("times as fast as plain") >= len(lines)
