"""How evaluations end that do not end well: readers that go away, closed streams, kills, folders in
use, sizes beyond the machine. Nothing good is lost, and every end is at most one line.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lo_framework.eval.cli import main
from lo_framework.eval.running.store import PLAN
from lo_framework.files.lock import exclusive
from lo_framework.learned import make_learned, save

ROOT = Path(__file__).resolve().parents[3]
EVAL = [sys.executable, "-m", "lo_framework.eval"]
ENV = {**os.environ, "OMP_NUM_THREADS": "1"}
# Progress after every step in place of every ten seconds.
TALKING = """
import sys
from lo_framework.eval.running import progress
progress.SECONDS = 0
from lo_framework.eval.cli import main
sys.exit(main(sys.argv[1:]))
"""
TINY = ["--optimizees", "quadratic", "--steps", "20", "--seeds", "2", "--tuning-seeds", "1"]
SMALL = [*TINY, "--grid-size", "2"]


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("learned") / "mine.safetensors"
    save(make_learned("hyper-adamw"), path)
    return str(path)


def commands(file: str) -> dict[str, list[str]]:
    return {
        "transfer": ["transfer", "--learned", file, "--baselines", "adamw", *SMALL],
        "robustness": ["robustness", "--optimizers", "adamw", "--lrs", "1e-3,1e-2", *TINY[:-2]],
    }


def numbers(out: Path, name: str) -> dict:
    data = json.loads((out / f"{name}.json").read_text())
    data.pop("provenance")
    for arm in data.get("arms", ()):
        for runs in arm["runs"]:
            runs.pop("seconds_per_step")
    return data


@pytest.mark.parametrize("name", ["transfer", "robustness"])
@pytest.mark.parametrize("workers", ["1", pytest.param("2", marks=pytest.mark.slow)])
def test_a_reader_of_the_progress_who_goes_away_is_no_result(name, workers, file, tmp_path):
    words = [*commands(file)[name], "--out", str(tmp_path), "--workers", workers]
    assert main([*words, "--progress", "none"]) == 0
    before = {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    command = [sys.executable, "-c", TALKING, *words, "--fresh", "--progress", "plain"]
    process = subprocess.Popen(
        command, cwd=ROOT, env=ENV, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    assert process.stderr is not None and process.stderr.readline()
    process.stderr.close()
    assert process.wait(timeout=120) == 128 + signal.SIGPIPE
    assert {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before
    assert main([*words, "--progress", "none"]) == 0  # and it goes on from there


def test_a_reader_of_the_tables_who_goes_away(file, tmp_path):
    words = [*EVAL, *commands(file)["transfer"], "--out", str(tmp_path), "--progress", "none"]
    read, write = os.pipe()
    os.close(read)
    ended = subprocess.run(words, cwd=ROOT, env=ENV, stdout=write, stderr=subprocess.PIPE)
    os.close(write)
    assert ended.returncode == 128 + signal.SIGPIPE and ended.stderr == b""
    assert numbers(tmp_path, "transfer")["arms"]


@pytest.mark.parametrize("closed", ["2>&-", "<&- >&- 2>&-"])
def test_it_works_without_streams(closed, file, tmp_path):
    words = [*EVAL, *commands(file)["transfer"], "--out", str(tmp_path)]
    command = " ".join(f"'{word}'" for word in words)
    ended = subprocess.run(["sh", "-c", f"{command} {closed}"], cwd=ROOT, env=ENV)
    assert ended.returncode == 0 and not any(
        a["failure"] for a in numbers(tmp_path, "transfer")["arms"]
    )


def test_a_killed_transfer_goes_on_from_its_finished_cells(file, tmp_path, capsys):
    words = commands(file)["transfer"]
    script = TALKING.replace("progress.SECONDS = 0", "progress.SECONDS = 0; import time")
    slow = script.replace(
        "from lo_framework.eval.cli",
        "progress.Progress.advance = lambda *a: time.sleep(0.01)\nfrom lo_framework.eval.cli",
    )
    out = tmp_path / "out"
    process = subprocess.Popen(
        [sys.executable, "-c", slow, *words, "--out", str(out), "--progress", "none"],
        cwd=ROOT,
        env=ENV,
    )
    while process.poll() is None and len(list(out.glob("cells/*.json"))) < 3:
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert not (out / "transfer.json").exists()
    for folder in ("out", "undisturbed"):
        assert main([*words, "--out", str(tmp_path / folder), "--progress", "none"]) == 0
        told = capsys.readouterr().err
        assert ("finished cells of an earlier run were used again" in told) is (folder == "out")
    assert numbers(out, "transfer") == numbers(tmp_path / "undisturbed", "transfer")


@pytest.mark.parametrize("name", ["transfer", "robustness"])
@pytest.mark.parametrize("place", ["studies.evaluation.drive", "report.base.Report.save"])
def test_interruption_says_whether_something_was_kept(
    name, place, file, tmp_path, capsys, monkeypatch
):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(f"lo_framework.eval.{place}", interrupted)
    words = [*commands(file)[name], "--out", str(tmp_path), "--progress", "none"]
    assert main(words) == 128 + signal.SIGINT
    shown = capsys.readouterr()
    kept = "; the same command continues from the finished cells" if "save" in place else ""
    assert (shown.out, shown.err) == ("", f"eval {name}: interrupted{kept}\n")


def test_two_evaluations_in_one_folder_are_refused(file, tmp_path, capsys):
    words = [*commands(file)["transfer"], "--out", str(tmp_path), "--progress", "none"]
    assert main(words) == 0
    before = sorted(path.name for path in (tmp_path / "cells").iterdir())
    capsys.readouterr()
    with exclusive(tmp_path):
        for more in ([], ["--fresh"]):
            assert main([*words, *more]) == 2
            line = capsys.readouterr().err
            assert "another process" in line and line.count("\n") == 1
    assert sorted(path.name for path in (tmp_path / "cells").iterdir()) == before and PLAN in before


def test_a_complete_result_is_replaced_only_by_a_complete_one(tmp_path, capsys, monkeypatch):
    from lo_framework.eval.baselines.hand_designed import SGDM

    words = ["compare", "--arms", "sgdm", *SMALL, "--progress", "none", "--out", str(tmp_path)]
    assert main(words) == 0
    before = (tmp_path / "transfer.json").read_bytes()
    monkeypatch.setattr(SGDM, "shared", lambda *a: 1 / 0)
    capsys.readouterr()
    assert main([*words, "--fresh"]) == 0
    shown = capsys.readouterr()
    assert "ZeroDivisionError" in shown.err and "complete result there is kept" in shown.err
    assert (tmp_path / "transfer.json").read_bytes() == before
    assert "ZeroDivisionError" in (tmp_path / "incomplete" / "transfer.json").read_text()


LONG = "x" * 5000


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--foo"], "unknown option"),
        ([LONG], "unknown command"),
        (["report", LONG], ""),
        (["report"], "required"),
        (["transfer"], "--learned"),
        (["transfer", "--learned", "FILE", "--steps", "abc"], "--steps: expected a whole number"),
        (["transfer", "--learned", "FILE", "--progress", "fancy"], "--progress"),
        (["transfer", "--learned", "FILE", "--out", ""], "--out"),
        (["transfer", "--learned", "FILE", "--out", LONG], "--out"),
        (["transfer", "--learned", LONG], ""),
        (
            ["transfer", "--learned", "FILE", "--grid-size", "1000000000000"],
            "--grid-size: expected",
        ),
        (["transfer", "--learned", "FILE", "--grid-size", "100000"], "--grid-size: expected"),
        (["transfer", "--learned", "FILE", "--steps", "1000000000000"], "--steps: expected"),
        (["transfer", "--learned", "FILE", "--steps", "100000000", "--seeds", "9999"], "GiB"),
        (["transfer", "--learned", "FILE", "--workers", "1000000"], "--workers: expected"),
        (["transfer", "--learned", "FILE", "--data-dir", "nowhere"], "--data-dir"),
        (["robustness", "--per-decade", "1000000000000000000"], "--per-decade: expected"),
        (["robustness", "--lrs", "1e-300:1e300", "--per-decade", "100000000"], "--per-decade"),
        (["robustness", "--lrs", "1e-300:1e300", "--per-decade", "1000"], "step sizes"),
        (["robustness", "--lrs", ",".join(f"{i}e-9" for i in range(1, 3000))], "step sizes"),
        (["robustness", "--lrs", "1e-300,1e300"], "step sizes"),
        (["compare", "--scaled", ",".join(map(str, range(1, 3000)))], "--scaled"),
        (
            [
                "ablation",
                "--panel",
                f"lr={'/'.join(f'{i}e-9' for i in range(1, 3000))},meta_lr=1/2",
            ],
            "--panel",
        ),
    ],
)
def test_what_cannot_be_is_one_line_at_once(words, message, file, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    began = time.monotonic()
    assert main([file if word == "FILE" else word for word in words]) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and message in shown.err and len(shown.err.splitlines()) == 1
    assert len(shown.err) < 600 or LONG in words
    assert not list(tmp_path.iterdir()) and time.monotonic() - began < 30


@pytest.mark.skipif(os.name != "posix", reason="names of files are bytes")
def test_a_folder_whose_name_is_no_text(tmp_path, capsys):
    out = tmp_path / os.fsdecode(b"caf\xe9")
    words = ["compare", "--scaled", "2", *SMALL, "--progress", "none", "--out", str(out)]
    assert main(words) == 0 and main(["report", str(out)]) == 0
    assert numbers(out, "transfer")["arms"] and (out / "transfer.md").exists()
