"""The command line: help that teaches, one line for bad input, the same numbers with any number of
workers.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path

import pytest

from lo_framework.eval.cli import main
from lo_framework.eval.commands import COMMANDS
from lo_framework.eval.running.learned_files import label_paths, load_learned, split_paths
from lo_framework.learned import make_learned, save_optimizer
from lo_framework.spec import UserError

TINY = [
    "--optimizees",
    "mlp:hidden=4,batch=8,quadratic",
    "--steps",
    "4",
    "--seeds",
    "2",
    "--tuning-seeds",
    "1",
]
SMALL = [*TINY, "--grid-size", "2", "--progress", "none"]


def optimizer_file(path: Path, kind: str = "hyper-adamw") -> Path:
    learned = make_learned(kind)
    save_optimizer(path, learned.theta(), kind=kind, config=asdict(learned.config), summary={})
    return path


@pytest.fixture
def file(tmp_path):
    return optimizer_file(tmp_path / "run" / "optimizer.safetensors")


def numbers(folder):
    """transfer.json without what may differ: measured times and where it comes from."""
    data = json.loads((folder / "transfer.json").read_text())
    data.pop("provenance")
    for arm in data["arms"]:
        for runs in arm["runs"]:
            runs.pop("seconds_per_step")
    return data


def test_transfer_and_report(file, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["transfer", "--learned", str(file), *SMALL, "--out", str(out)]) == 0
    shown = capsys.readouterr()
    assert (
        "mlp:hidden=4,batch=8/digits (310 parameters)" in shown.out
        and "hyper-adamw against adamw" in shown.out
    )
    assert sorted(p.name for p in out.iterdir()) == [
        "cells",
        "curves.png",
        "transfer.html",
        "transfer.json",
        "transfer.md",
    ]
    assert all(str(path) in shown.out for path in out.iterdir() if path.is_file())
    assert shown.err == ""
    data = json.loads((out / "transfer.json").read_text())
    assert data["provenance"]["command"][1:3] == ["transfer", "--learned"]
    assert (
        data["files"] == {"hyper-adamw": str(file)} and data["derived"]["comparisons"][0]["verdict"]
    )

    before = {
        name: (out / name).read_bytes() for name in ("curves.png", "transfer.md", "transfer.html")
    }
    for name in before:
        (out / name).unlink()
    assert main(["report", str(out)]) == 0
    again = capsys.readouterr().out
    assert {name: (out / name).read_bytes() for name in before} == before
    assert again.split("numbers  ")[0].splitlines()[:20] == shown.out.splitlines()[:20]


def test_numbers_do_not_depend_on_workers(file, tmp_path, capsys):
    for workers in ("1", "2"):
        out = tmp_path / workers
        assert (
            main(
                [
                    "transfer",
                    "--learned",
                    str(file),
                    *SMALL,
                    "--out",
                    str(out),
                    "--workers",
                    workers,
                ]
            )
            == 0
        )
    capsys.readouterr()
    assert numbers(tmp_path / "1") == numbers(tmp_path / "2")
    assert (tmp_path / "1" / "curves.png").read_bytes() == (
        tmp_path / "2" / "curves.png"
    ).read_bytes()


def test_seed_offset_gives_other_seeds(file, tmp_path, capsys):
    for offset in ("0", "5"):
        arguments = [
            "--optimizees",
            "quadratic",
            "--steps",
            "2",
            "--seeds",
            "1",
            "--baselines",
            "none",
        ]
        out = ["--out", str(tmp_path / offset), "--seed-offset", offset, "--progress", "none"]
        assert main(["transfer", "--learned", str(file), *arguments, *out]) == 0
    capsys.readouterr()
    first, second = numbers(tmp_path / "0"), numbers(tmp_path / "5")
    assert (first["report_seeds"], second["report_seeds"]) == ([20_000], [20_005])
    assert first["arms"][0]["runs"][0]["curves"] != second["arms"][0]["runs"][0]["curves"]


def test_failures_are_named_and_the_rest_is_kept(file, tmp_path, capsys):
    plugin = tmp_path / "my_tasks.py"
    plugin.write_text(
        """
from lo_framework.optimizees import register_task
from lo_framework.optimizees.analytic import Quadratic, QuadraticConfig

class Broken(Quadratic):
    def loss(self, *arguments):
        raise RuntimeError("no such kernel")

@register_task("broken_by_test", config=QuadraticConfig, uses_dataset=False)
def build(config):
    return Broken(config)
"""
    )
    common = [
        "--learned",
        str(file),
        "--plugin",
        str(plugin),
        "--steps",
        "2",
        "--seeds",
        "2",
        "--progress",
        "none",
    ]
    try:
        out = tmp_path / "out"
        assert (
            main(
                ["transfer", *common, "--optimizees", "broken_by_test,quadratic", "--out", str(out)]
            )
            == 0
        )
        shown = capsys.readouterr()
        assert "failed: broken_by_test, hyper-adamw: RuntimeError: no such kernel" in shown.err
        assert (
            "quadratic (10 parameters)" in shown.out
            and "FAILED" in (out / "transfer.md").read_text()
        )
        assert main(["transfer", *common, "--optimizees", "broken_by_test", "--out", str(out)]) == 1
        assert main(["report", str(out)]) == 0
    finally:
        from lo_framework.optimizees.registry import TASKS

        TASKS.pop("broken_by_test", None)


def one_line(capsys):
    shown = capsys.readouterr()
    assert shown.out == "" and len(shown.err.splitlines()) == 1, shown
    return shown.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["tranfer"], 'unknown command "tranfer" (did you mean "transfer"?)'),
        (["transfer", "--learned", "FILE", "--optimisees", "mlp"], 'did you mean "--optimizees"'),
        (["transfer", "--learned", "nowhere.safetensors"], "there is no file"),
        (["transfer", "--learned", "FILE,"], "empty piece"),
        (["transfer", "--learned", "FILE,FILE"], "is given twice"),
        (["transfer", "--learned", "JUNK"], "JUNK"),
        (["transfer", "--learned", "FILE", "--optimizees", "mpl"], 'did you mean "mlp"'),
        (["transfer", "--learned", "FILE", "--datasets", "digitz"], 'did you mean "digits"'),
        (
            ["transfer", "--learned", "FILE", "--optimizees", "quadratic", "--baselines", "adamv"],
            'did you mean "adamw"',
        ),
        (
            ["transfer", "--learned", "FILE", "--optimizees", "quadratic", "--steps", "0"],
            "steps: expected at least 1",
        ),
        (
            ["transfer", "--learned", "FILE", "--optimizees", "quadratic", "--device", "cuda:77"],
            "cannot be used here",
        ),
        (
            ["transfer", "--learned", "FILE", "--optimizees", "quadratic", "--out", "JUNK"],
            "expected a folder",
        ),
        (["transfer", "--learned", "FILE", "--plugin", "nowhere.py"], "there is no file"),
        (["report", "nowhere"], "transfer.json"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(words, message, file, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "JUNK").write_text("junk")
    words = [word.replace("FILE", str(file)) for word in words]
    assert main(words) == 2
    assert message in one_line(capsys)


def test_wrong_types_exit_with_2_too(file, capsys):
    assert main(["transfer", "--learned", str(file), "--steps", "many"]) == 2
    assert "--steps" in one_line(capsys)


def test_no_command_shows_the_help(capsys):
    assert main([]) == 2
    assert "examples:" in capsys.readouterr().err


@pytest.mark.parametrize("name", COMMANDS)
def test_help_teaches(name, capsys):
    with pytest.raises(SystemExit) as stop:
        main([name, "--help"])
    text = capsys.readouterr().out
    assert stop.value.code == 0 and f"lo-eval {name}" in text and "example" in text
    assert max(len(line) for line in text.splitlines()) <= 100


def test_interruption_is_a_line(file, tmp_path, capsys, monkeypatch):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("lo_framework.eval.studies.evaluation.drive", interrupted)
    assert main(["transfer", "--learned", str(file), *SMALL, "--out", str(tmp_path / "out")]) == 130
    assert "interrupted" in one_line(capsys)


def test_weights_that_do_not_fit_the_kind(tmp_path):
    learned = make_learned("hyper-adamw")
    theta = dict(list(learned.theta().items())[1:])
    path = tmp_path / "x.safetensors"
    save_optimizer(path, theta, kind="hyper-adamw", config=asdict(learned.config), summary={})
    with pytest.raises(UserError, match="do not fit"):
        load_learned(str(path))
    save_optimizer(path, theta, kind="from-a-plugin", config={}, summary={})
    with pytest.raises(UserError, match='unknown learned optimizer "from-a-plugin"'):
        load_learned(str(path))


def test_labels_tell_files_apart(tmp_path):
    assert label_paths(["a.safetensors", "b.safetensors"], ["mlp", "lstm"]) == ["mlp", "lstm"]
    assert label_paths(["runs/a/o.x", "runs/b/o.x"], ["mlp", "mlp"]) == ["mlp a", "mlp b"]
    assert label_paths(["a/o.x", "b/o.x", "c/o.x"], ["mlp", "lstm", "mlp"]) == [
        "mlp a",
        "lstm",
        "mlp c",
    ]
    paths = ["a/1/o.x", "a/2/o.x", "b/1/o.x"]
    assert len(set(label_paths(paths, ["mlp"] * 3))) == 3
    comma = tmp_path / "a,b.safetensors"
    optimizer_file(comma)
    assert split_paths(str(comma)) == [str(comma)] and split_paths("a, b") == ["a", "b"]
    assert list(
        load_learned(f"{optimizer_file(tmp_path / 'c.x')},{optimizer_file(tmp_path / 'd.x')}")
    ) == [
        "hyper-adamw c",
        "hyper-adamw d",
    ]


def test_a_folder_that_cannot_be_written_is_known_before_the_work(
    file, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    monkeypatch.setattr(
        "lo_framework.eval.studies.evaluation.drive", lambda *a, **k: pytest.fail("work was done")
    )
    assert main(["transfer", "--learned", str(file), *SMALL, "--out", str(tmp_path / "out")]) == 2
    assert "cannot be written" in one_line(capsys)
