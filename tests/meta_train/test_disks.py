"""Disks that are full, folders that cannot be, vanish or are in use."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from lo_framework.files import checkpoint
from lo_framework.files.checkpoint import load_latest_state
from lo_framework.files.lock import exclusive
from lo_framework.meta_train.cli import main
from lo_framework.meta_train.trainer import Trainer
from lo_framework.meta_train.workers import Workers
from lo_framework.spec import UserError
from tests.meta_train.tools import (
    Forker,
    command,
    refused,
    same_run,
    train,
)


def test_a_full_disk_while_saving(
    tmp_path: Path,
    finished: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The last state goes to a disk that refuses: the one before stays, and the run goes on from it
    later.
    """
    out, write = tmp_path / "run", checkpoint.atomic_write_bytes

    def full(path: Path, data: bytes) -> None:
        if str(path).endswith("state-0000000004.safetensors"):
            raise UserError(f"cannot write {str(path)!r}: No space left on device")
        write(path, data)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "atomic_write_bytes", full)
        assert main(command(out)) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("meta_train: cannot write") and "No space left" in last
    state = load_latest_state(out / "state")
    assert state is not None and state.step == 2
    assert main(command(out, "--resume")) == 0
    same_run(out, finished)


@pytest.mark.parametrize("limit", [500, 1500, 4000])
def test_a_disk_that_takes_no_more_bytes(
    forker: Forker, finished: Path, tmp_path: Path, limit: int
) -> None:
    """Whichever file meets the limit first (a log, the curves, a state): exit code 2, one last
    line, resume works.
    """
    out = tmp_path / "run"
    assert forker.run(command(out), file_limit=limit) == 2, forker.printed()
    assert forker.printed().splitlines()[-1].startswith("meta_train: cannot write"), (
        forker.printed()
    )
    assert forker.run(command(out, "--resume")) == 0, forker.printed()
    same_run(out, finished)


def test_an_out_that_cannot_be_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    for out in (file, file / "run"):
        for flags in ([], ["--resume"]):
            refused(capsys, command(out, *flags))
    assert file.read_text() == "mine"


def test_no_process_and_no_open_file_after_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that fails while it starts closes what it opened; warnings of unclosed files are errors
    here.
    """
    closed: list[Workers] = []
    close = Workers.close

    def noted(workers: Workers) -> None:
        closed.append(workers)
        close(workers)

    def fail(*_: Any) -> None:
        raise UserError("no")

    monkeypatch.setattr(Workers, "close", noted)
    monkeypatch.setattr("lo_framework.meta_train.trainer.tuned_start", fail)
    with pytest.raises(UserError, match="no"):
        train(tmp_path / "run")
    assert closed
    monkeypatch.undo()
    train(tmp_path / "run", resume=True)


def test_two_runs_cannot_share_a_folder(tmp_path: Path) -> None:
    with exclusive(tmp_path), pytest.raises(UserError, match="another process"):
        train(tmp_path)
    train(tmp_path)


def test_a_folder_that_vanishes_ends_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one line, and nothing is written to where it was."""
    out, validate = tmp_path / "run", Trainer._validate

    def emptied(self: Trainer) -> Any:
        shutil.rmtree(out)
        return validate(self)

    monkeypatch.setattr(Trainer, "_validate", emptied)
    assert main(command(out)) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("meta_train: the run's folder") and str(out) in line
    assert not out.exists() or not list(out.iterdir())
