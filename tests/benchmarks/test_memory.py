"""One small point in this process, and the arithmetic of the curves."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import memory


def test_exponent() -> None:
    assert memory.exponent([(t, 3.0 * t**0.5) for t in (16, 64, 256)]) == pytest.approx(0.5)


def test_lengths() -> None:
    for quick in (True, False):
        assert memory.lengths("PES", quick)[0] == 10
        assert (
            memory.lengths("TBPTT, root-T segments", quick)[:1]
            == memory.lengths("TBPTT", quick)[:1]
            == [16]
        )
        assert len(memory.lengths("TBPTT", quick)) > 1


@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="sizes are read from Linux's /proc"
)
def test_one_point_in_a_process_of_its_own() -> None:
    found = memory.child(
        spec="pes",
        steps=2,
        tasks=1,
        optimizee="mlp:hidden=4",
        learned="mlp:hidden=4",
        engine="eager",
    )
    assert 0 <= found < 2**28
