"""The campaign itself, with few kills: `make campaign` has the whole of it."""

from __future__ import annotations

import os

import pytest

from tests.campaign.__main__ import main, timeless


def test_times_are_left_out() -> None:
    record = {"loss": 1.0, "seconds_per_step": 2.0, "runs": [{"rate": 3.0, "n": 1}], "time": "now"}
    assert timeless(record) == {"loss": 1.0, "runs": [{"n": 1}]}


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="SIGKILL is POSIX")
def test_few_kills() -> None:
    assert main(["--kills", "2", "--only", "tbptt,transfer"]) == 0
