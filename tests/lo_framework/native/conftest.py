"""Kernels for other processors: of narrower vectors, which this one can run too."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import pytest

from lo_framework.native import conv, toolchain
from lo_framework.native.program import PROGRAMS

TARGETS = {"own": None, "256 bits": "-march=haswell", "128 bits": "-march=x86-64"}
CACHES = (toolchain.load, conv._library)


def runs_here(target: str) -> bool:
    if platform.machine() not in ("x86_64", "AMD64"):
        return False
    described = Path("/proc/cpuinfo")
    return target == "-march=x86-64" or (
        described.exists() and {"avx2", "fma", "bmi2"} <= set(described.read_text().split())
    )


@pytest.fixture(params=TARGETS)
def vectors(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    target = TARGETS[request.param]
    if target is None:
        yield
        return
    if not runs_here(target):
        pytest.skip(f"this processor cannot run what is compiled with {target}")
    monkeypatch.setattr(toolchain, "_target", lambda: target)
    for cached in CACHES:
        cached.cache_clear()
    with patch.dict(PROGRAMS, clear=True):
        yield
    for cached in CACHES:
        cached.cache_clear()
