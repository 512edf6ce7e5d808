"""Bad input: exit code 2, one line that names what is wrong and the nearest right word, nothing
written.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from lo_framework.meta_train.cli import EXAMPLES, main, parser, read
from lo_framework.meta_train.config import Program, RunConfig
from lo_framework.meta_train.presets import PRESETS
from tests.meta_train.tools import ROOT, command


def refused(argv: list[str], out: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """The one line of a command that ends with exit code 2 and writes nothing."""
    try:
        code = main(argv)
    except SystemExit as end:  # from argparse
        code = int(end.code or 0)
    captured = capsys.readouterr()
    assert code == 2, captured
    assert (
        captured.out == ""
        and captured.err.startswith("meta_train: ")
        and captured.err.count("\n") == 1
    )
    assert not out.exists(), "found before anything was written"
    return captured.err


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("optimizees", "mpl", '"mlp"'),
        ("optimizees", "quadratic:dmi=3", '"dim"'),
        ("optimizees", "mlp:hidden=x", "hidden"),
        ("optimizees", "", "optimizees"),
        ("optimizees", "mlp:batch=8,mlp:batch=8", "twice"),
        ("datasets", "digit", '"digits"'),
        ("datasets", "digits:siez=4", '"size"'),
        ("learned", "attention-mpl", '"attention-mlp"'),
        ("learned", "lstm:hiden=3", '"hidden"'),
        ("learned", "attention:width=3", "width"),
        ("estimator", "pse", '"pes"'),
        ("estimator", "pes:sgima=1", '"sigma"'),
        ("estimator", "pes:sigma=0", "sigma"),
        ("objective", "vaild", '"valid"'),
        ("objective", "valid:trian=1", '"train"'),
        ("inner_backend", "highr", '"higher"'),
        ("vary", "usal", "usual"),
        ("probes", "mpl@9", '"mlp"'),
        ("probes", "quadratic:dim=3,std=0.01@6", "is in the pool"),
        ("optimizees", "mlp:hidden=9..4", "reversed"),
    ],
)
def test_unknown_words(
    name: str, value: str, expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    settings: dict[str, Any] = {name: value}
    assert expected in refused(command(out, **settings), out, capsys)


def test_unknown_preset(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    assert '"quick"' in refused(command(out, "--preset", "quik"), out, capsys)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_tasks", 0),
        ("num_tasks", -2),
        ("num_tasks", 3),
        ("unroll_length", 0),
        ("unroll_length", -1),
        ("shards", 0),
        ("outer_steps", 0),
        ("outer_lr", 0),
        ("outer_lr", -1),
        ("outer_lr", "nan"),
        ("outer_lr", "inf"),
        ("seed", -1),
        ("validate_every", 0),
        ("checkpoint_every", 0),
        ("episode_length", "0"),
        ("episode_length", "-5"),
        ("episode_length", "9-4"),
        ("episode_length", "abc"),
        ("episode_length", "4-"),
        ("episode_length", "4-8-9"),
        ("episode_length", ""),
        ("episode_length", "1e3"),
        ("hide_progress", 1.5),
        ("hide_progress", -0.1),
        ("step_range", 0.5),
        ("step_range", "inf"),
    ],
)
def test_impossible_sizes(
    name: str, value: object, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    settings: dict[str, Any] = {name: value}
    line = refused(command(out, **settings), out, capsys)
    assert name.split("_")[0] in line and str(value) in line


@pytest.mark.parametrize(
    "flags",
    [
        ["--workers", "0"],
        ["--workers", "-1"],
        ["--max-seconds", "0"],
        ["--max-seconds", "-3"],
        ["--max-seconds", "nan"],
    ],
)
def test_impossible_flags(
    flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert flags[0] in refused(command(out, *flags), out, capsys)


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--optimizes", "mlp"], '"--optimizees"'),
        (["--unroll-lenght=3"], '"--unroll-length"'),
        (["mlp"], "'mlp'"),
        (["--unroll-length", "x"], "--unroll-length"),
        (["--num-tasks", "2.5"], "--num-tasks"),
        (["--seed"], "--seed"),
    ],
)
def test_arguments_that_argparse_refuses(
    argv: list[str], expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert expected in refused([*argv, "--out", str(out)], out, capsys)


@pytest.mark.parametrize("device", ["cude", "cuda", "cuda:77"])
def test_devices(device: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if device == "cuda" and torch.cuda.is_available():
        pytest.skip("this machine has that device")
    out = tmp_path / "run"
    assert f'"{device}"' in refused(command(out, device=device), out, capsys)


def test_data_that_is_not_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder, and then the files in it; with no network."""

    def no_network(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr("pooch.retrieve", no_network)
    monkeypatch.setattr("pooch.os_cache", lambda name: tmp_path / "cache")
    out, empty = tmp_path / "run", tmp_path / "empty"
    settings: dict[str, Any] = {"optimizees": "mlp:hidden=4", "datasets": "mnist"}
    line = refused(command(out, "--data-dir", str(tmp_path / "none"), **settings), out, capsys)
    assert "none" in line and "does not exist" in line
    empty.mkdir()
    line = refused(command(out, "--data-dir", str(empty), **settings), out, capsys)
    assert "mnist: missing" in line and str(empty) in line


def test_plugins_that_cannot_be_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, broken = tmp_path / "run", tmp_path / "broken.py"
    broken.write_text("import torch\n1 / 0\n")
    for plugin, expected in [
        (str(tmp_path / "none.py"), "there is no file"),
        ("no_such_module_anywhere", "no_such_module_anywhere"),
        (str(broken), "ZeroDivisionError"),
    ]:
        assert expected in refused(command(out, "--plugin", plugin), out, capsys)


def test_higher_is_for_hyper_adamw_and_tbptt(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert "hyper-adamw" in refused(
        command(out, inner_backend="higher", learned="lstm"), out, capsys
    )
    assert "tbptt" in refused(command(out, inner_backend="higher", estimator="pes"), out, capsys)
    assert "segments" in refused(
        command(out, inner_backend="higher", estimator="tbptt:segments=2"), out, capsys
    )


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    assert EXAMPLES in text
    for name in [
        *PRESETS,
        *(f"--{field.replace('_', '-')}" for field in RunConfig.__dataclass_fields__),
    ]:
        assert name in text
    for action in parser()._actions:
        assert action.help, f"{action.option_strings} has no help"


def test_help_needs_no_torch() -> None:
    """It would take seconds; modules that are not imported cannot slow it down."""
    code = (
        "import sys; sys.modules['torch'] = None; from meta_train.cli import main; main(['--help'])"
    )
    begun = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "examples:" in done.stdout, done.stderr
    assert time.monotonic() - begun < 5


def test_every_setting_can_be_given() -> None:
    """Each option is a setting or handled by the program: none is silently ignored."""
    options = {action.dest for action in parser()._actions}
    assert options - {"help", "version", "debug", "config"} == {
        *RunConfig.__dataclass_fields__,
        *Program.__dataclass_fields__,
    }
    program, given, written = read([])
    assert program == Program() and given == written == {}


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--num-tasks", "100000000000"], "--num-tasks"),
        (["--num-tasks", "10000000", "--optimizees", "quadratic:dim=60000"], "GiB"),
        (["--outer-steps", "1" * 5000], "--outer-steps"),
        (["--validation-seeds", "100000000000"], "--validation-seeds"),
        (["--episode-length", "1" * 5000], "--episode-length"),
        (["--episode-length", "100000000000"], "--episode-length"),
        (["--augment", "inf"], "--augment"),
        (["--clip", "inf"], "--clip"),
        (["--device", "meta"], "meta"),
        (["--estimator", "pes:sigma=inf"], "sigma"),
        (["--optimizees", "mlp:hidden=999999999999"], "hidden"),
        (["--optimizees", "quadratic:dim=100000000000"], "dim"),
        (["--data-dir", "/no/such/folder"], "does not exist"),
        (["--out", ""], "--out"),
        (["--resum"], '"--resume"'),
        (["--learned", "hyper-adamw:gain=0"], "gain"),
        (["--learned", "mlp:hidden=1000000000"], "hidden"),
        (["--learned", "attention:layers=1000000000"], "layers"),
        (["--optimizees", "mlp:exp_mult=inf"], "exp_mult"),
    ],
)
def test_sizes_that_no_machine_has(
    flags: list[str], expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Refused before anything is allocated."""
    out = tmp_path / "run"
    begun = time.monotonic()
    line = refused(command(out, *flags), out, capsys)
    assert expected in line and "--debug" not in line and len(line) < 500
    assert time.monotonic() - begun < 5


@pytest.mark.skipif(os.name != "posix", reason="a POSIX shell")
@pytest.mark.parametrize(
    ("redirected", "code"), [("2>&1 | head -1", 141), ("2>&-", 0), ("<&- >&- 2>&-", 0)]
)
def test_streams_that_nobody_reads(redirected: str, code: int, tmp_path: Path) -> None:
    out = tmp_path / "run"
    words = [sys.executable, "-m", "meta_train", *command(out, outer_steps=2)]
    line = f"{shlex.join(words)} {redirected}; exit ${{PIPESTATUS[0]}}"
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(["bash", "-c", line], cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    if code == 0:
        assert (out / "optimizer.safetensors").exists()
    else:  # it goes on to the same end
        assert main(command(out, "--resume", outer_steps=2)) == 0
