"""The closing table: evaluated once, and again only when the optimizer is another one."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest

import lo_framework as lo
from lo_framework.meta_train import closing
from lo_framework.meta_train.cli import main
from lo_framework.meta_train.config import Program, RunConfig
from tests.meta_train.tools import command, snapshot


@pytest.fixture
def evaluations(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How often something was evaluated; three seeds are enough here."""
    calls: list[int] = []
    evaluate = closing.evaluate

    def counted(*args: Any, **settings: Any) -> Any:
        calls.append(settings["seeds"])
        return evaluate(*args, **{**settings, "seeds": 3, "tuning_seeds": 2})

    monkeypatch.setattr(closing, "evaluate", counted)
    return calls


def with_evaluation(out: Path, *flags: str, **changes: Any) -> list[str]:
    return [word for word in command(out, *flags, **changes) if word != "--no-evaluate"]


def test_the_closing_table(
    tmp_path: Path, evaluations: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert main(with_evaluation(out, "--max-seconds", "1e-9")) == 0
    assert main(with_evaluation(out, "--resume")) == 0
    assert evaluations == [closing.SEEDS] * 2, (
        "the optimizer of a stopped run is another one than at the end"
    )
    first = capsys.readouterr().out
    assert (
        "adamw" in first
        and "hyper-adamw" in first
        and str(out / "evaluation" / "transfer.json") in first
    )
    before = snapshot(out)
    assert main(with_evaluation(out, "--resume")) == 0
    assert len(evaluations) == 2 and snapshot(out) == before, "a finished run does nothing"
    again = capsys.readouterr().out
    assert "adamw" in again and str(out / "evaluation" / "curves.png") in again, (
        "and still tells the result"
    )
    (out / "evaluation" / "transfer.json").unlink()
    assert main(with_evaluation(out, "--resume")) == 0
    assert len(evaluations) == 3


def test_a_killed_evaluation_is_done_again(
    tmp_path: Path, evaluations: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(closing.TransferReport, "redraw", interrupted)
        assert main(with_evaluation(tmp_path / "run")) == 130
    assert main(with_evaluation(tmp_path / "run", "--resume")) == 0
    assert len(evaluations) == 2


def test_the_function_trains_what_the_command_trains() -> None:
    defaults = {name: p.default for name, p in inspect.signature(lo.train).parameters.items()}
    assert defaults["learned"] == RunConfig().learned
    assert defaults["preset"] == Program().preset
