"""Slopes of the score by the radius, as meta-gradients of several lengths tell them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks import horizon, incentive


@pytest.mark.parametrize("absorbed", ["even_sam:rho=0.5", "sam:rho=0.5"])
def test_a_meta_gradient_that_sees_whole_episodes_is_the_slope(absorbed: str) -> None:
    args = SimpleNamespace(steps=8, tasks=3, seed=1)
    told = horizon.slope("mlp", (absorbed, "attached=true"), 8, 1, args)

    def score(log_radius: float) -> float:
        """By runs at another radius: the same problems and batches, and no derivative."""
        settings = {"there": (incentive.RATE, horizon.RADIUS * math.exp(log_radius))}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(incentive, "SETTINGS", settings)
            return sum(incentive.loss_and_gap("mlp", "there", absorbed, args))

    assert told == pytest.approx((score(0.01) - score(-0.01)) / 0.02, rel=0.01)
    for seen, how in ((2, "attached=true"), (8, "")):
        assert abs(horizon.slope("mlp", (absorbed, how), seen, 1, args) - told) > 0.05 * told


def test_the_strength_from_which_a_larger_radius_pays() -> None:
    assert horizon.needed(0.2, -0.01) == pytest.approx(20)
    assert horizon.needed(-0.2, -0.01) == 0
    assert horizon.needed(0.2, 0.01) is None


def test_it_follows_every_problem(tmp_path: Path) -> None:
    content = horizon.main(["--quick", "--out", str(tmp_path)])
    written = json.loads((tmp_path / "horizon_quick.json").read_text("utf-8"))
    assert written["problems"] == content["problems"]
    for by_length in content["problems"].values():
        for by_what in by_length.values():
            assert len(by_what) == 1 + len(horizon.ABSORBED)
