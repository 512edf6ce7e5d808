"""The most memory that some work takes."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from lo_framework.memory import Memory, memory_of

MIB = 2**20
CPU = torch.device("cpu")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="sizes are Linux's")
def test_the_peak_counts_and_not_what_is_left() -> None:
    found = memory_of(lambda: np.ones(64 * MIB, np.uint8).sum(), CPU)
    assert 63 * MIB <= found.above < 80 * MIB  # the system counts some pages late


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="sizes are Linux's")
def test_what_was_freed_before_is_not_there_any_more() -> None:
    parts = [np.ones(1000, np.uint8) for _ in range(64_000)]  # small: the C library keeps them
    del parts
    found = memory_of(lambda: [np.ones(1000, np.uint8) for _ in range(64_000)], CPU)
    assert found.above > 48 * MIB


def test_a_system_that_does_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    from pathlib import Path

    from lo_framework import memory

    monkeypatch.setattr(memory, "_STATUS", Path("/nowhere/status"))
    monkeypatch.setattr(memory, "_CLEAR", Path("/nowhere/clear_refs"))
    found = memory_of(lambda: None, CPU)
    assert isinstance(found, Memory) and np.isnan(found.above)
