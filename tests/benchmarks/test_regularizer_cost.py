"""The benchmark runs, and counts what regularizers say they cost."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.regularizer_cost import ROWS, counted, main


def test_counts() -> None:
    found = {row: counted(row) for row in ROWS}
    assert found["none"] == found["weight_decay"] == found["sam when=end"] == 0
    assert found["sam"] == found["gsam"] == 1 and found["sam batch=independent"] == 2
    assert found["gam:exact=false"] == 3 and found["gam"] == 7 and found["sam+gam"] == 8


def test_it_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = main(
        ["--quick", "--optimizees", "mlp:hidden=4", "--tasks", "2", "--out", str(tmp_path)]
    )
    (rows,) = content["optimizees"].values()
    assert [row["regularizer"] for row in rows] == ["none", "sam"]
    assert rows[0]["time_ratio"] == rows[0]["memory_ratio"] == 1 and rows[1]["time_ratio"] > 0
    assert (
        "extra grads" in capsys.readouterr().out
        and (tmp_path / "regularizer_cost_quick.json").exists()
    )
