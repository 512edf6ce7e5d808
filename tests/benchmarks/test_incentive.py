"""What strength it takes for a larger radius to pay."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from benchmarks import incentive


def test_the_strength_that_is_needed() -> None:
    """A tenth of loss for a twentieth of gap is cheaper than three tenths for a tenth."""
    assert incentive.needed([(0.8, 0.1), (0.5, 0.2), (0.6, 0.15)]) == pytest.approx(2)
    assert incentive.needed([(0.5, 0.2), (0.6, 0.2)]) is None


def test_it_follows_every_problem(tmp_path: Path) -> None:
    content = incentive.main(["--quick", "--out", str(tmp_path)])
    written = json.loads((tmp_path / "incentive_quick.json").read_text("utf-8"))
    assert written["problems"].keys() == content["problems"].keys() == incentive.PROBLEMS.keys()
    for by_kind in content["problems"].values():
        for kind, by_absorbed in by_kind.items():
            assert [*by_absorbed] == [*incentive.ABSORBED]
            for each in by_absorbed.values():
                assert [*each["settings"]] == [x for x in incentive.SETTINGS if x.startswith(kind)]
                assert all(
                    math.isfinite(x) for at in each["settings"].values() for x in at.values()
                )
