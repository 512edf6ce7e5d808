"""Tiny runs, in this process or in one that can be killed, and what to compare of them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lo_framework.files.checkpoint import load_latest_state
from lo_framework.meta_train.cli import main
from lo_framework.meta_train.config import Program, RunConfig
from lo_framework.meta_train.incumbent import Incumbent
from lo_framework.meta_train.presets import make_config
from lo_framework.meta_train.run import MetaTraining
from lo_framework.meta_train.workers import WorkerSetup

ROOT = Path(__file__).resolve().parents[2]

# Every setting is named, so that no test depends on the presets.
TINY: dict[str, Any] = {
    "optimizees": "quadratic:dim=3,std=0.01",
    "datasets": "digits",
    "vary": "none",
    "learned": "hyper-adamw",
    "estimator": "tbptt",
    "objective": "valid",
    "unroll_length": 3,
    "episode_length": "6",
    "hide_progress": 0.0,
    "num_tasks": 2,
    "shards": 2,
    "outer_steps": 4,
    "outer_lr": 0.01,
    "clip": 1.0,
    "validate_every": 2,
    "validation_seeds": 1,
    "checkpoint_every": 2,
    "seed": 0,
    "device": "cpu",
    "inner_backend": "torch",
}
NOT_ON_COMMAND_LINE = ("clip", "validation_seeds")


def tiny(**changes: Any) -> RunConfig:
    return make_config("quick", **{**TINY, **changes})


def train(
    out: Path,
    *,
    workers: int = 1,
    resume: bool = False,
    max_seconds: float | None = None,
    plugins: tuple[str, ...] = (),
    **changes: Any,
) -> Incumbent:
    """A run in this process."""
    program = Program(
        out=str(out), workers=workers, resume=resume, max_seconds=max_seconds, plugins=plugins
    )
    return MetaTraining(WorkerSetup(tiny(**changes), program), quiet=True).train()


def command(out: Path, *flags: str, workers: int = 1, **changes: Any) -> list[str]:
    """The command line of a tiny run."""
    settings = {
        name: value
        for name, value in {**TINY, **changes}.items()
        if name not in NOT_ON_COMMAND_LINE
    }
    argv = [
        part
        for name, value in settings.items()
        for part in (f"--{name.replace('_', '-')}", str(value))
    ]
    return [*argv, "--workers", str(workers), "--out", str(out), "--no-evaluate", *flags]


def program(argv: list[str]) -> subprocess.Popen[str]:
    """``python -m meta_train`` in a process group of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "meta_train", *argv],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


class Forker:
    """Runs that can be killed; see forker.py."""

    def __init__(self, folder: Path) -> None:
        self.log = folder / "forker.log"
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, str(ROOT / "tests/meta_train/forker.py")],
            cwd=ROOT,
            env=environment,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )

    def start(self, argv: list[str], **order: Any) -> int:
        """The pid of a new run; :meth:`wait` for it before the next one."""
        self.log.unlink(missing_ok=True)
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"argv": argv, "log": str(self.log), **order}) + "\n")
        self.process.stdin.flush()
        return self._answer()

    def wait(self) -> int:
        """The exit code of the run; negative: the signal that ended it."""
        return self._answer()

    def run(self, argv: list[str], **order: Any) -> int:
        self.start(argv, **order)
        return self.wait()

    def kill_after(self, argv: list[str], seconds: float) -> int:
        """Kill the run ``seconds`` after its start, unless it has ended."""
        pid = self.start(argv)
        timer = threading.Timer(seconds, os.kill, (pid, signal.SIGKILL))
        timer.start()
        code = self.wait()
        timer.cancel()
        timer.join()
        return code

    def printed(self) -> str:
        return self.log.read_text()

    def close(self) -> None:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()

    def _answer(self) -> int:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, "the fork server ended"
        return int(json.loads(line))


def metrics(out: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl without what differs from run to run; NaN and infinities would be
    an error.
    """

    def refuse(word: str) -> None:
        raise ValueError(f"{word} is not JSON")

    rows = [
        json.loads(line, parse_constant=refuse)
        for line in (out / "metrics.jsonl").read_text().splitlines()
    ]
    return [
        {key: value for key, value in row.items() if key not in ("seconds", "rate")} for row in rows
    ]


def final_state(out: Path) -> tuple[int, dict[str, bytes], dict[str, Any]]:
    """Step, the bytes of every tensor and the record of the last resume state."""
    state = load_latest_state(out / "state")
    assert state is not None and not state.warning
    return state.step, {name: raw(x) for name, x in state.tensors.items()}, state.meta


def raw(x: Tensor) -> bytes:
    return x.detach().contiguous().numpy().tobytes()


def same_run(one: Path, other: Path) -> None:
    """Assert that two runs ended with the same bits, in everything that they leave but clocks."""
    assert (one / "optimizer.safetensors").read_bytes() == (
        other / "optimizer.safetensors"
    ).read_bytes()
    assert final_state(one) == final_state(other)
    assert metrics(one) == metrics(other)


def shared_out_and_resumed(forker: Forker, tmp_path: Path, settings: dict[str, Any]) -> None:
    """A run of six steps has the same bits with two workers, and where it is killed and goes on."""
    for workers in (1, 2):
        assert forker.run(command(tmp_path / str(workers), workers=workers, **settings)) == 0, (
            forker.printed()
        )
    same_run(tmp_path / "1", tmp_path / "2")
    assert forker.run(command(tmp_path / "cut", **settings), crash=14) == -signal.SIGKILL, (
        forker.printed()
    )
    assert len(metrics(tmp_path / "cut")) in range(
        2, 6
    )  # after the first checkpoint, before the last step
    assert forker.run(command(tmp_path / "cut", "--resume", **settings)) == 0, forker.printed()
    same_run(tmp_path / "cut", tmp_path / "1")


def snapshot(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Content and modification time of every file."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {
        str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in files
    }


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return list(one) == list(other) and all(torch.equal(x, other[name]) for name, x in one.items())


def descendants(pid: int) -> set[int]:
    """All processes below ``pid``, from /proc."""
    found: set[int] = set()
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        children = [
            int(child) for task in tasks for child in (task / "children").read_text().split()
        ]
    except OSError:
        return found
    for child in children:
        found |= {child} | descendants(child)
    return found


def running(pid: int) -> bool:
    """The process exists and is no zombie (a container's first process may not collect those)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def gone(pids: set[int], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while any(running(pid) for pid in pids):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def until_step(out: Path, step: int, seconds: float = 60.0) -> None:
    """Wait until the log holds ``step``."""
    deadline = time.monotonic() + seconds
    log = out / "metrics.jsonl"
    while time.monotonic() < deadline:
        lines = log.read_text().splitlines() if log.exists() else []
        if len(lines) >= step and json.loads(lines[step - 1])["step"] == step:
            return
        time.sleep(0.005)
    raise AssertionError(f"no step {step} in {seconds} s")


def refused(capsys: pytest.CaptureFixture[str], argv: list[str]) -> str:
    """The one line of a command that ends with exit code 2."""
    assert main(argv) == 2
    captured = capsys.readouterr()
    assert (
        captured.out == ""
        and captured.err.startswith("meta_train: ")
        and captured.err.count("\n") == 1
    )
    return captured.err
