"""Worker processes: errors come back as what they are, and none outlives its run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lo_framework.meta_train.cli import main
from lo_framework.meta_train.config import Program
from lo_framework.meta_train.growth import Stage
from lo_framework.meta_train.incumbent import balanced
from lo_framework.meta_train.workers import ShardHost, Unit, Workers, WorkerSetup
from lo_framework.processes import Died
from lo_framework.spec import UserError
from tests.meta_train.tools import (
    ROOT,
    command,
    descendants,
    gone,
    program,
    same_run,
    tiny,
    until_step,
)


def test_errors_of_workers(tmp_path: Path) -> None:
    """Bad input stays bad input, a bug shows its traceback, a worker that dies is named; close ends
    them all.
    """
    workers = Workers(WorkerSetup(tiny(), Program(workers=2)), 2)
    try:
        with pytest.raises(UserError, match="unknown learned optimizer") as found:
            workers.call(ShardHost.build, [(Stage("atention", {}), None)] * 2)
        assert "Traceback" in str(found.value.__cause__), "for --debug"
        workers.peers[1].receive()  # that it is ready
        workers.peers[1].receive()  # the other one's answer
        with pytest.raises(RuntimeError, match="worker 0 failed: TypeError.*argument") as bug:
            workers.everywhere(ShardHost.build)
        assert "Traceback" in str(bug.value.__cause__)
        workers.peers[1].receive()
        os.kill(workers.peers[1].process.pid, signal.SIGKILL)
        with pytest.raises(Died, match=r"worker 1 ended unexpectedly \(exit code -9"):
            workers.call(ShardHost.validate, [(Stage("hyper-adamw", {}), [], [])] * 2)
    finally:
        workers.close()
    assert not any(child.process.is_alive() for child in workers.peers)
    workers.close()  # twice is fine


def test_validation_is_shared_so_that_all_workers_end_soon() -> None:
    units = [Unit(problem, 0) for problem in range(6)]
    shares = balanced(units, [2.3, 1.0, 1.5, 1.0, 2.25, 0.3], 2)
    assert [[unit.problem for unit in share] for share in shares] == [[0, 1, 3], [4, 2, 5]]
    assert balanced(units, [1.0] * 6, 7) == [*([unit] for unit in units), []]


def test_shares_of_the_shards() -> None:
    workers = Workers(WorkerSetup(tiny(), Program(workers=5)), 1)
    assert workers.num == 1 and workers.parts == [[0]] and not workers.peers
    with pytest.raises(UserError, match="--workers must be at least 1"):
        Program(workers=0)


@pytest.mark.slow
def test_ctrl_c_in_a_terminal(tmp_path: Path) -> None:
    """SIGINT to the whole process group, as a terminal sends it: one line, code 130, no process
    left.
    """
    out = tmp_path / "run"
    process = program(command(out, workers=2, outer_steps=10_000))
    until_step(out, 1)
    children = descendants(process.pid)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130, errors
    assert (
        errors.splitlines()[-1].startswith("meta_train: interrupted") and "Traceback" not in errors
    )
    assert len(children) >= 2 and gone(children, 5.0)


MOODY = str(Path(__file__).parent / "plugin_moody.py")


def test_a_worker_that_is_killed_is_started_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the last checkpoint, and the run goes on to the same bits."""
    settings = {"outer_steps": 4, "checkpoint_every": 1}
    for name in ("undisturbed", "killed"):
        mark = tmp_path / name / "mark"
        mark.parent.mkdir()
        if name == "undisturbed":
            mark.touch()  # it has happened: nothing happens
        monkeypatch.setenv("MOODY_MARK", str(mark))
        flags = ("--plugin", MOODY)
        out = tmp_path / name / "run"
        spec = "moody:what=kill,after=20"
        assert main(command(out, *flags, workers=2, optimizees=spec, **settings)) == 0
    told = capsys.readouterr().err
    assert "ended unexpectedly (exit code -9" in told and "with new workers" in told
    same_run(tmp_path / "undisturbed" / "run", tmp_path / "killed" / "run")


def test_workers_that_die_again_and_again_end_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOODY_MARK", "")
    out, spec = tmp_path / "run", "moody:what=kill,after=2"
    assert main(command(out, "--plugin", MOODY, workers=2, optimizees=spec)) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "3 times" in line and "--workers" in line and f"--out {out} --resume" in line


@pytest.mark.slow
def test_sigterm_ends_workers_too(tmp_path: Path) -> None:
    """Code 143, no traceback, no process left, and it says how to go on."""
    out = tmp_path / "run"
    process = program(command(out, workers=2, outer_steps=10_000))
    until_step(out, 1)
    children = descendants(process.pid)
    process.terminate()
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 143 and "Traceback" not in errors
    assert " is saved; go on with " in errors.splitlines()[-1]
    assert len(children) >= 2 and gone(children, 5.0)


UNGUARDED = """
import lo_framework as lo
lo.train("quadratic:dim=3", "hyper-adamw", workers=2, outer_steps=2, num_tasks=2, shards=2)
"""


def test_a_script_whose_workers_cannot_start(tmp_path: Path) -> None:
    """Its own mistake is said once, and not tried again."""
    script = tmp_path / "script.py"
    script.write_text(UNGUARDED)
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, str(script)], env=env, capture_output=True, text=True)
    assert done.returncode == 1
    assert "if __name__ == '__main__':" in done.stderr.splitlines()[-1]
    assert "with new workers" not in done.stderr
