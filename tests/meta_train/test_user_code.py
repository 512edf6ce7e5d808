"""Losses that raise, leave the program, return nonsense or turn to NaN: one line, and what is saved
is what was good.
"""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from lo_framework.learned import load_optimizer
from lo_framework.meta_train.cli import main
from lo_framework.meta_train.incumbent import score
from tests.meta_train.tools import command, metrics

PLUGIN = str(Path(__file__).parent / "plugin_moody.py")


def moody(out: Path, what: str, *flags: str, after: int = 30, workers: int = 1) -> list[str]:
    task = f"moody:what={what},after={after}"
    return command(out, "--plugin", PLUGIN, *flags, optimizees=task, workers=workers)


@pytest.mark.parametrize(
    ("what", "expected"),
    [
        ("raise", "RuntimeError: the mood (plugin_moody.py, line "),
        ("memory", "MemoryError"),
        ("exit", "SystemExit: 0 (plugin_moody.py, line "),
        ("none", "Error: "),
    ],
)
def test_an_error_in_a_loss_is_one_line(
    what: str, expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It names the task, the step and how to go on; --debug adds the traceback."""
    out = tmp_path / "run"
    assert main(moody(out, what)) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("meta_train: step ") and expected in line
    assert "moody:" in line and f"--out {out} --resume" in line
    assert main(moody(tmp_path / "other", what, "--debug")) == 2
    assert "Traceback" in capsys.readouterr().err


def test_an_error_before_the_first_step_and_in_a_worker(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert main(moody(out, "raise", after=3)) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "moody:" in line and "RuntimeError: the mood" in line and "--resume" in line
    assert main(moody(tmp_path / "two", "exit", "--debug", after=3, workers=2)) == 2
    told = capsys.readouterr().err
    assert "SystemExit: 0" in told.splitlines()[-1] and "plugin_moody.py" in told
    assert "Traceback" in told


def test_a_loss_that_turns_to_nan_is_counted_named_and_never_saved(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert main(moody(out, "nan", after=30)) == 0
    told = capsys.readouterr().err
    rows = metrics(out)
    sick = [row["step"] for row in rows if row["nonfinite"]]
    assert sick and f"step {sick[0]}: moody:after=30: 100% of the tasks" in told
    assert "not finite were left out" in told.splitlines()[-1]
    unscored = [row["step"] for row in rows if "unscored" in row]
    assert unscored, "a validation that is not finite says so in the log"
    assert "the loss in validation is not finite" in told
    saved = load_optimizer(out / "optimizer.safetensors").summary
    assert saved["found_at_step"] < unscored[0], "what was measured to be good is what is saved"
    assert all(math.isfinite(x) for x in saved["quality"][0].values())


def test_a_reference_that_is_not_finite_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing can be better or worse than what diverged at every learning rate."""
    assert main(moody(tmp_path / "run", "nan", after=0)) == 0
    told = capsys.readouterr().err
    assert "moody:after=0: the loss is not finite under AdamW at any learning rate" in told


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_score_that_is_not_finite_is_the_worst(bad: float) -> None:
    good = [{"mean": 1.0, "valid": 1.0, "final": 1.0}]
    ill = [{"mean": bad, "valid": bad, "final": bad}]
    assert score(ill, good) == pytest.approx(10.0) == score(ill, ill)
    assert score(good, good) == pytest.approx(1.0)


def test_a_plugin_that_leaves_the_program(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plugin = tmp_path / "leaves.py"
    plugin.write_text("import sys\nsys.exit(0)\n")
    assert main(command(tmp_path / "run", "--plugin", str(plugin))) == 2
    assert "SystemExit: 0" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ('raise RuntimeError("boom")', "the optimizee odd: RuntimeError: boom (odd.py, line 4)"),
        ("raise SystemExit(0)", "the optimizee odd: SystemExit"),
        ("return None", "the optimizee odd: its function returned no task but NoneType"),
    ],
)
def test_a_registered_function_that_makes_no_task(
    body: str, expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plugin = tmp_path / "odd.py"
    plugin.write_text(
        "from lo_framework.optimizees import register_task\n"
        '@register_task("odd", uses_dataset=False)\n'
        f"def build(config):\n    {body}\n"
    )
    out = tmp_path / "run"
    assert main(command(out, "--plugin", str(plugin), optimizees="odd")) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"meta_train: {expected}") and told.count("\n") == 1
    assert not out.exists()
