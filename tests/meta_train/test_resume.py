"""--resume, --max-seconds, and folders that already hold a run."""

from __future__ import annotations

import itertools
import json
import signal
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lo_framework.files.checkpoint import load_latest_state, save_state
from lo_framework.learned import load_optimizer
from lo_framework.meta_train.cli import main
from lo_framework.meta_train.presets import make_config
from lo_framework.meta_train.trainer import Trainer
from tests.meta_train.tools import (
    TINY,
    command,
    final_state,
    metrics,
    refused,
    same_run,
    snapshot,
    train,
)


def test_without_a_checkpoint_it_starts_over(finished: Path, tmp_path: Path) -> None:
    """Also where a run was killed before its first checkpoint: its metrics are not kept."""
    out = tmp_path / "run"
    out.mkdir()
    (out / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2}\n{"ste')
    assert main(command(out, "--resume")) == 0
    same_run(out, finished)


def test_a_finished_run_is_left_as_it_is(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = snapshot(run)
    assert main(command(run, "--resume")) == 0
    assert snapshot(run) == before
    assert "best on validation seeds" in capsys.readouterr().out


@pytest.mark.parametrize(
    "changes",
    [
        {"outer_lr": 0.02},
        {"seed": 1},
        {"num_tasks": 4},
        {"optimizees": "quadratic:dim=4"},
        {"outer_steps": 5},
    ],
)
def test_changed_settings_are_named(
    run: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any]
) -> None:
    before = snapshot(run)
    line = refused(capsys, command(run, "--resume", **changes))
    (name,) = changes
    assert f"--{name.replace('_', '-')} was " in line and repr(changes[name]) in line
    assert snapshot(run) == before


def test_other_stages_are_named(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A release that shares out the steps differently cannot go on with the same bits."""
    monkeypatch.setattr(
        "lo_framework.meta_train.folder.plan_of", lambda stages: [("hyper-adamw", 0, 3)]
    )
    assert "another release" in refused(capsys, command(run, "--resume"))


def test_another_torch_is_named(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.__version__", "0.0.1")
    line = refused(capsys, command(run, "--resume"))
    assert "0.0.1" in line


def test_workers_may_change(run: Path) -> None:
    """What does not decide the bits is no setting of a run."""
    assert main(command(run, "--resume", "--max-seconds", "100", workers=7)) == 0


def test_a_folder_with_a_run_is_not_overwritten(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = snapshot(run)
    assert "--resume" in refused(capsys, command(run))
    assert snapshot(run) == before


@pytest.mark.parametrize("left", ["state", "metrics.jsonl", "optimizer.safetensors"])
def test_nor_one_with_a_part_of_a_run(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], left: str
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (run / left).rename(other / left)
    before = snapshot(other)
    assert "already holds a run" in refused(capsys, command(other))
    assert snapshot(other) == before


def test_metrics_are_cut_back_to_the_checkpoint(run: Path, finished: Path) -> None:
    """Steps after the last checkpoint, and a line that a kill tore, are written again."""
    (run / "state" / "state-0000000004.safetensors").unlink()
    with (run / "metrics.jsonl").open("a") as log:
        log.write('{"step": 5, "meta_lo')
    assert main(command(run, "--resume")) == 0
    same_run(run, finished)


def test_max_seconds_stops_early_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, clock = tmp_path / "run", itertools.count()
    for module in ("run", "trainer"):
        fake = SimpleNamespace(monotonic=lambda: float(next(clock)))
        monkeypatch.setattr(f"lo_framework.meta_train.{module}.time", fake)
    settings = {"outer_steps": 100, "checkpoint_every": 50, "validate_every": 50}
    assert main(command(out, "--max-seconds", "20", **settings)) == 0
    assert "cannot be repeated" in capsys.readouterr().err
    step, _, meta = final_state(out)
    assert 2 < step < 20 and not meta["finished"] and not meta["repeatable"]
    assert [row["step"] for row in metrics(out)] == list(range(1, step + 1))
    summary = load_optimizer(out / "optimizer.safetensors").summary
    assert summary["steps"] == step and summary["repeatable"] is False
    # The next part has seconds of its own, and a run that was cut once stays marked.
    assert main(command(out, "--resume", "--max-seconds", "20", **settings)) == 0
    later, _, meta = final_state(out)
    assert step < later and not meta["repeatable"]
    assert [row["step"] for row in metrics(out)] == list(range(1, later + 1))


def test_a_stopped_run_goes_on_to_its_end(tmp_path: Path) -> None:
    """Stopped before its first step: the rest is a whole run, still marked."""
    out = tmp_path / "run"
    train(out, max_seconds=1e-9)
    assert final_state(out)[0] == 0 and (out / "optimizer.safetensors").exists()
    train(out, resume=True)
    step, _, meta = final_state(out)
    assert step == 4 and meta["finished"] and not meta["repeatable"]
    assert load_optimizer(out / "optimizer.safetensors").summary["repeatable"] is False
    whole = tmp_path / "whole"
    train(whole)
    assert final_state(out)[1] == final_state(whole)[1], "the stop itself changed no bit"


def test_a_run_that_was_not_cut_is_repeatable(run: Path) -> None:
    assert load_optimizer(run / "optimizer.safetensors").summary["repeatable"] is True


def test_ctrl_c_ends_with_130(
    tmp_path: Path,
    finished: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "run"

    validate = Trainer._validate

    def interrupted(trainer: Trainer) -> dict[str, Any]:
        signal.raise_signal(signal.SIGINT)
        return validate(trainer)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_validate", interrupted)
        before = signal.signal(
            signal.SIGINT, signal.default_int_handler
        )  # a background job is born ignoring it
        try:
            assert main(command(out)) == 130
        finally:
            signal.signal(signal.SIGINT, before)
    told = capsys.readouterr().err.splitlines()
    assert told[-1] == f"meta_train: interrupted; step 2 is saved; go on with --out {out} --resume"
    assert any("stopping after this step" in line for line in told)
    assert json.loads((out / "config.json").read_text())["seed"] == 0
    assert main(command(out, "--resume")) == 0
    same_run(out, finished)


def test_a_run_goes_on_without_its_settings_being_said_again(run: Path, finished: Path) -> None:
    newest = run / "state" / "state-0000000004.safetensors"
    newest.unlink()
    assert main(["--out", str(run), "--resume", "--no-evaluate"]) == 0
    same_run(run, finished)


def test_its_own_config_starts_a_run_again(finished: Path, tmp_path: Path) -> None:
    """To the same bits; a control's steps, which are counted already, are not counted again."""
    out = tmp_path / "again"
    argv = ["--config", str(finished / "config.json"), "--out", str(out), "--no-evaluate"]
    assert main([*argv, "--workers", "1"]) == 0
    same_run(out, finished)
    settings: dict[str, Any] = {"optimizees": "quadratic:dim=3", "control": "sam"}
    control = make_config(**{**TINY, **settings})
    assert control.outer_steps > TINY["outer_steps"]
    assert make_config(written=asdict(control)) == control
    assert make_config(written=asdict(control), outer_steps=TINY["outer_steps"]) == control


def test_a_run_of_the_first_features_goes_on_with_them(tmp_path: Path) -> None:
    """States of a release that had only those do not name them."""
    spec, old = "mlp:features=39,hidden=4", tmp_path / "old"
    train(old, learned=spec + ",feature_version=1")
    (old / "state" / "state-0000000004.safetensors").unlink()
    state = load_latest_state(old / "state")
    assert state is not None and state.step == 2
    state.meta["config"]["learned"] = spec
    assert state.meta["incumbent"]["config"].pop("feature_version") == 1
    save_state(tmp_path / "new" / "state", 2, state.tensors, state.meta)
    train(tmp_path / "new", learned=spec, resume=True)
    files = [load_optimizer(folder / "optimizer.safetensors") for folder in (old, tmp_path / "new")]
    assert all(file.build().config.feature_version == 1 for file in files)
    assert all(torch.equal(x, files[1].tensors[name]) for name, x in files[0].tensors.items())
