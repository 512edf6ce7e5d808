"""Best multiples of a learned step."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path

import pytest

import lo_framework as lo
from benchmarks import step_scales


def test_a_step_that_is_too_small_is_seen(tmp_path: Path) -> None:
    learned = lo.make_learned("scaled:lr=0.002")
    lo.save(learned, tmp_path / "slow.safetensors")
    args = Namespace(learned=str(tmp_path / "slow.safetensors"), steps=30, seeds=1, workers=1)
    found = step_scales.measure("mlp-relu:hidden=16", args)
    assert found["best"] == max(step_scales.SCALES) and found["trainable"]
    assert found["mean_loss"][4.0] < found["mean_loss"][1.0] < found["mean_loss"][0.25]


def test_the_benchmark_writes_its_curves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def few(quick: bool) -> dict[str, list[tuple[int, str]]]:
        return {f"relu, {what}": [(8, "mlp-relu:hidden=8")] for what in ("width", "matrices")}

    monkeypatch.setattr(step_scales, "problems", few)
    lo.save(lo.make_learned("scaled"), tmp_path / "start.safetensors")
    options = ["--learned", str(tmp_path / "start.safetensors"), "--quick", "--out", str(tmp_path)]
    step_scales.main(options)
    content = json.loads((tmp_path / "step_scales_quick.json").read_text("utf-8"))
    assert [*content["curves"]] == ["relu, width", "relu, matrices"]
    assert (tmp_path / "step_scales_quick.png").stat().st_size > 0
