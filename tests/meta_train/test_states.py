"""Resume states that are damaged or forged, and optimizer files that are made again."""

from __future__ import annotations

import shutil
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import pytest

from lo_framework.files.checkpoint import load_latest_state, save_state
from lo_framework.meta_train.cli import main
from lo_framework.meta_train.folder import StateRecord
from tests.meta_train.tools import (
    command,
    refused,
    same_run,
    snapshot,
    train,
)


def test_a_damaged_newest_state_falls_back(
    run: Path, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    newest = run / "state" / "state-0000000004.safetensors"
    whole = newest.read_bytes()
    newest.write_bytes(whole[: len(whole) // 2])
    assert main(command(run, "--resume")) == 0
    assert "continuing from step 2" in capsys.readouterr().err
    same_run(run, finished)


def test_two_damaged_states_are_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for state in (run / "state").iterdir():
        damaged = bytearray(state.read_bytes())
        damaged[len(damaged) // 2] ^= 1
        state.write_bytes(bytes(damaged))
    before = snapshot(run)
    refused(capsys, command(run, "--resume"))
    assert snapshot(run) == before


@pytest.mark.parametrize("damage", ["lost", "damaged", "another"])
def test_the_optimizer_of_a_finished_run_is_made_again(
    run: Path, finished: Path, damage: str, tmp_path: Path
) -> None:
    file = run / "optimizer.safetensors"
    if damage == "lost":
        file.unlink()
    elif damage == "damaged":
        file.write_bytes(file.read_bytes()[:-1])
    else:
        train(tmp_path / "other", seed=5)
        shutil.copy(tmp_path / "other" / "optimizer.safetensors", file)
    assert main(command(run, "--resume")) == 0
    assert file.read_bytes() == (finished / "optimizer.safetensors").read_bytes()


FORGED: list[tuple[str, Any]] = [
    # those with a default are missing in states of older releases
    *(
        (field.name, None)
        for field in fields(StateRecord)
        if field.default_factory is MISSING and field.default is MISSING
    ),
    ("resumed", [1]),
    ("curve", [["x"]]),
    ("config", []),
    ("finished", "yes"),
    ("stage", 7),
    ("stage", -1),
    ("outer_done", 10**9),
    ("outer_done", 1),
    ("start_lr", "x"),
    ("reference", []),
    ("reference", [{}]),
    ("incumbent", {}),
    ("stages", [["hyper-adamw", 0, 4, 5]]),
    ("kind", "no-such-kind"),
    ("theta", None),
    ("shard", None),
    ("adam", None),
]


@pytest.mark.parametrize(("field", "value"), FORGED)
def test_forged_states_are_refused(
    run: Path, capsys: pytest.CaptureFixture[str], field: str, value: Any
) -> None:
    """With a right digest: fields that are missing or wrong, tensors that are not there."""
    step, tensors, meta, _ = load_latest_state(run / "state") or pytest.fail()
    shutil.rmtree(run / "state")
    meta["finished"] = False
    if field == "kind":
        meta["incumbent"]["kind"] = value
    elif field in ("theta", "shard", "adam"):
        start = {"theta": "outer.theta", "shard": "shard.1", "adam": "incumbent"}[field]
        tensors = {name: x for name, x in tensors.items() if not name.startswith(start)}
    elif value is None:
        del meta[field]
    else:
        meta[field] = value
    save_state(run / "state", step, tensors, meta)
    assert main(command(run, "--resume")) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and told.startswith("meta_train: ") and "--debug" not in told
