"""The shapes are of the sizes that the table names, state is counted once, and the script runs on a
tiny model.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from benchmarks import optimizer_step
from benchmarks.optimizer_step import BOUNDS, SIZES, UNGUARDED, YARDS


@pytest.mark.parametrize(("name", "wanted"), [("0.1M", 1e5), ("1M", 1e6), ("10M", 1e7)])
def test_sizes(name: str, wanted: float) -> None:
    found = optimizer_step.shapes(SIZES[name])
    assert sum(math.prod(shape) for shape in found.values()) == pytest.approx(wanted, rel=0.1)
    width = SIZES[name].width
    assert found["layers.0.qkv.weight"] == (3 * width, width) and found["layers.0.norm1.bias"] == (
        width,
    )


def test_state_is_counted_once() -> None:
    p = torch.nn.Parameter(torch.zeros(100))
    p.grad = torch.ones(100)
    optimizer = torch.optim.AdamW([p])
    optimizer.step()
    optimizer.state[p]["same"] = optimizer.state[p]["exp_avg"]
    assert optimizer_step.state_bytes(optimizer) == 2 * 400 + 4  # and AdamW's count of steps


def test_it_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    optimizer_step.main(["--quick", "--sizes", "tiny", "--rounds", "1", "--out", str(tmp_path)])
    content = json.loads((tmp_path / "optimizer_step_quick.json").read_text())
    rows = content["sizes"]["tiny"]["optimizers"]
    assert {*YARDS, *BOUNDS, "Learned attention", "Learned attention-mlp"} <= rows.keys()
    for row in rows.values():
        assert (
            row["milliseconds"] > 0
            and row["time / AdamW foreach"] > 0
            and row["state_bytes_per_parameter"] >= 8
        )
    assert (
        rows["AdamW foreach"]["time / AdamW foreach"]
        == rows["AdamW fused"]["memory / AdamW fused"]
        == 1
    )
    guards = [f"{kind}, guard" for kind in UNGUARDED]
    assert [b["optimizer"] for b in content["bounds"]] == [*BOUNDS, *guards]
    out = capsys.readouterr().out
    assert (
        "x foreach" in out
        and "fulfilled" in out
        and (tmp_path / "optimizer_step_quick.png").exists()
    )


def test_unknown_size(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        optimizer_step.main(["--sizes", "2M"])
    assert "unknown size '2M'" in capsys.readouterr().err
