"""SIGKILL at any moment, then --resume: the same bits as a run that nobody disturbed."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tests.meta_train.tools import (
    Forker,
    command,
    descendants,
    final_state,
    gone,
    metrics,
    program,
    same_run,
    until_step,
)

pytestmark = pytest.mark.skipif(os.name != "posix", reason="SIGKILL and fork are POSIX")

# Two stages, so that kills fall on both sides of the growth as well; log-uniform episodes, so that
# clocks matter.
SETTINGS: dict[str, Any] = {
    "learned": "attention:width=4,heads=1",
    "outer_steps": 8,
    "episode_length": "4-9",
    "checkpoint_every": 2,
}


@pytest.fixture(scope="module")
def undisturbed(forker: Forker, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """The folder of a run to its end, and the seconds that it took."""
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    begun = time.monotonic()
    assert forker.run(command(out, **SETTINGS)) == 0, forker.printed()
    return out, time.monotonic() - begun


def finish(forker: Forker, out: Path, workers: int = 1) -> None:
    assert forker.run(command(out, "--resume", workers=workers, **SETTINGS)) == 0, forker.printed()


def test_the_run_has_what_it_takes(undisturbed: tuple[Path, float]) -> None:
    out, _ = undisturbed
    step, tensors, meta = final_state(out)
    assert step == 8 and meta["finished"] and meta["stage"] == 1
    assert [row["step"] for row in metrics(out)] == list(range(1, 9))
    assert any(name.startswith("shard.1.generator") for name in tensors)


@pytest.mark.parametrize(
    "seed", [0, *(pytest.param(s, marks=pytest.mark.slow) for s in range(1, 9))]
)
def test_killed_again_and_again(
    forker: Forker, undisturbed: tuple[Path, float], tmp_path: Path, seed: int
) -> None:
    expected, duration = undisturbed
    out, chance = tmp_path / "run", random.Random(seed)
    for _ in range(2):
        code = forker.kill_after(
            command(out, "--resume", **SETTINGS), chance.uniform(0.1, 1.0) * duration
        )
        assert code in (0, -signal.SIGKILL), forker.printed()
    finish(forker, out)
    same_run(out, expected)


def disk_operations(forker: Forker, folder: Path) -> int:
    """How many points at which ``crash`` can strike a whole run has: the smallest that no run
    reaches, by bisection.
    """
    low, high = 1, 256
    while high - low > 1:
        middle = (low + high) // 2
        out = folder / f"count-{middle}"
        if forker.run(command(out, **SETTINGS), crash=middle) == 0:
            high = middle
        else:
            low = middle
        shutil.rmtree(out, ignore_errors=True)
    return low


def strike(forker: Forker, expected: Path, out: Path, point: int) -> None:
    """Kill at one disk operation, look at what is left, resume."""
    assert forker.run(command(out, **SETTINGS), crash=point) == -signal.SIGKILL, forker.printed()
    steps = [row["step"] for row in metrics(out)] if (out / "metrics.jsonl").exists() else []
    assert steps == list(range(1, len(steps) + 1))
    finish(forker, out)
    same_run(out, expected)
    assert not list(out.rglob("*.tmp")), "temporary files of a killed process must go"


@pytest.mark.parametrize("point", [2, 8, 17])
def test_killed_at_a_disk_operation(
    forker: Forker, undisturbed: tuple[Path, float], tmp_path: Path, point: int
) -> None:
    """Before an fsync, before a rename, after one: the moments that random kills rarely meet."""
    strike(forker, undisturbed[0], tmp_path / "run", point)


@pytest.mark.slow
def test_killed_at_every_disk_operation(
    forker: Forker, undisturbed: tuple[Path, float], tmp_path: Path
) -> None:
    count = disk_operations(forker, tmp_path)
    assert count > 12
    for point in range(1, count + 1):
        strike(forker, undisturbed[0], tmp_path / f"run-{point}", point)


def test_killed_with_two_workers(
    forker: Forker, undisturbed: tuple[Path, float], tmp_path: Path
) -> None:
    """The workers end with the run, and one process goes on where two were killed."""
    out = tmp_path / "run"
    pid = forker.start(command(out, workers=2, **SETTINGS))
    until_step(out, 3)
    children = descendants(pid)
    assert len(children) >= 2
    os.kill(pid, signal.SIGKILL)
    assert forker.wait() == -signal.SIGKILL
    assert gone(children, 5.0)
    finish(forker, out)
    same_run(out, undisturbed[0])


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_the_program_itself_killed(
    undisturbed: tuple[Path, float], tmp_path: Path, workers: int
) -> None:
    """``python -m meta_train`` three times killed at random moments, then left alone."""
    out, chance = tmp_path / "run", random.Random(workers)
    for attempt in range(4):
        process = program(command(out, "--resume", workers=workers, **SETTINGS))
        if attempt < 3:
            until_step(out, attempt + 1)
            time.sleep(chance.uniform(0, 0.5))
            process.kill()
        _, errors = process.communicate()
        assert process.returncode in (0, -signal.SIGKILL), errors
    assert process.returncode == 0
    same_run(out, undisturbed[0])


@pytest.mark.slow
def test_workers_in_the_middle_of_their_work_end_with_the_run(tmp_path: Path) -> None:
    """A long truncation must not go on for a run that is no more."""
    settings = {
        **SETTINGS,
        "unroll_length": 20_000,
        "episode_length": "20000",
        "learned": "hyper-adamw",
    }
    process = program(command(tmp_path / "run", workers=2, **settings, estimator="pes"))
    deadline = time.monotonic() + 60
    while len(descendants(process.pid)) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(6.0)  # by now they work on the first validation
    children = descendants(process.pid)
    process.kill()
    process.communicate()
    assert len(children) >= 2 and gone(children, 3.0)
