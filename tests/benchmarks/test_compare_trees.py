"""Medians with their intervals, and what is read from the benchmarks' files."""

from __future__ import annotations

import json

import pytest

from benchmarks.compare_trees import figures, median_interval
from benchmarks.results import ROOT


def test_interval_of_a_median() -> None:
    """Ranks from the tables of the sign test: 4 and 12 of 15, 6 and 15 of 20, 1 and 6 of 6."""
    assert median_interval(range(1, 16)) == (8, 4, 12)
    assert median_interval(range(1, 21)) == (10.5, 6, 15)
    assert median_interval(range(1, 7)) == (3.5, 1, 6)
    assert median_interval([3.0, 1.0]) == (2.0, 1.0, 3.0)
    assert median_interval([1.0]) == (1.0, 1.0, 1.0)


@pytest.mark.parametrize("name", ["optimizer_step", "meta_throughput", "memory"])
def test_files_are_read(name: str) -> None:
    values = figures(name, json.loads((ROOT / "results" / f"{name}.json").read_text("utf-8")))
    assert len(values) >= 3 and all(value > 0 for value in values.values())
    assert not any("AdamW foreach" in label or "plain" in label for label in values)
