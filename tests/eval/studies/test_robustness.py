"""`eval robustness`: the numbers of its tables, its files, resuming, and bad input in one line."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest

from lo_framework.eval.baselines import make_baseline, make_thetas
from lo_framework.eval.cli import main
from lo_framework.eval.report import numbers, robustness
from lo_framework.eval.report.robustness import RobustnessReport
from lo_framework.eval.running.cells import plan_cells
from lo_framework.eval.statistics import mean_interval
from lo_framework.eval.studies.request import RobustnessRequest
from lo_framework.eval.studies.robustness import (
    FILE,
    RobustnessEvaluation,
    step_sizes,
)
from lo_framework.optimizees import make_tasks
from lo_framework.spec import UserError
from tests.eval.cells import run_cell

TINY = "mlp:hidden=4,batch=8"
SPECS = "adamw,metaoptimize:meta_lr=0.03,metaoptimize:base=lion,meta_lr=0.03"
SMALL = [
    "--optimizees",
    TINY,
    "--optimizers",
    SPECS,
    "--lrs",
    "1e-4,1e-2",
    "--steps",
    "10",
    "--seeds",
    "2",
]
QUIET = ["--progress", "none"]


def sweep(**options):
    return RobustnessEvaluation(RobustnessRequest(**options)).run()


def test_tables_csv_and_files_tell_the_runs_own_numbers(tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["robustness", *SMALL, *QUIET, "--out", str(out)]) == 0
    shown = capsys.readouterr()
    names = ["robustness.csv", "robustness.json", "robustness.md", "robustness.png"]
    assert sorted(p.name for p in out.iterdir() if p.is_file()) == names and shown.err == ""
    result = RobustnessReport.load(out).result
    assert result.seeds == (20_000, 20_001) and result.lrs == (1e-4, 1e-2)
    assert result.provenance["command"][1:3] == ["robustness", "--optimizees"]
    with (out / "robustness.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 * 2
    (task,) = make_tasks(TINY)
    for spec in result.optimizers:
        optimizer = make_baseline(spec)
        (cell,) = plan_cells(
            task.name,
            spec,
            make_thetas(optimizer, [{"lr": 1e-4}, {"lr": 1e-2}]),
            (20_000, 20_001),
            10,
            ("train", "test"),
        )
        expected = run_cell(cell, task, optimizer).metrics["final_loss"]
        line = result.line(task.name, spec)
        np.testing.assert_allclose(line.metrics["final_loss"], expected, rtol=1e-6)
        np.testing.assert_allclose(
            robustness.means(result, task.name, spec), expected.mean(1), rtol=1e-6
        )
        for i, row in enumerate(r for r in rows if r["optimizer"] == spec):
            assert float(row["final_loss_mean"]) == pytest.approx(expected[i].mean(), rel=1e-5)
            text = numbers.plus_minus(mean_interval(expected[i]))
            assert text in shown.out and text in (out / "robustness.md").read_text()


def test_a_run_continues_and_reports_are_made_again(tmp_path, capsys):
    out = tmp_path / "out"
    command = ["robustness", *SMALL, *QUIET, "--out", str(out)]
    assert main(command) == 0
    first = capsys.readouterr().out
    before = {p.name: p.read_bytes() for p in out.iterdir() if p.is_file() and p.suffix != ".json"}
    assert main(command) == 0
    again = capsys.readouterr()
    assert again.out == first and "3 finished cells of an earlier run were used again" in again.err
    for name in before:
        (out / name).unlink()
    assert main(["report", str(out)]) == 0
    assert first.startswith(capsys.readouterr().out.split("rows  ")[0].strip()[:200])
    made = {name: (out / name).read_bytes() for name in before}
    assert (
        made["robustness.csv"] == before["robustness.csv"]
        and made["robustness.png"] == before["robustness.png"]
    )


def test_diverged_runs_are_counted_and_drawn(tmp_path):
    options = dict(optimizers="sgdm", lrs="1e-2,1e38", steps=5, seeds=3)
    result = sweep(optimizees="mlp-relu:hidden=4,batch=8", **options)
    assert result.lines[0].diverged.tolist() == [[False] * 3, [True] * 3]
    text = RobustnessReport(result).plain()
    assert "3 of 3 diverged" in text and "3 of 6" in text and "inf" in text
    assert len(RobustnessReport(result).save(tmp_path)) == 4
    again = FILE.read(FILE.write(result))
    assert (
        RobustnessReport(again).plain() == text
        and RobustnessReport(again).csv() == RobustnessReport(result).csv()
    )
    json.loads(FILE.write(result), parse_constant=lambda name: pytest.fail(name))


def test_an_optimizer_that_fails_leaves_the_others(tmp_path, capsys, monkeypatch):
    from lo_framework.eval.baselines.metaoptimize import TorchMetaOptimize

    monkeypatch.setattr(TorchMetaOptimize, "build", lambda *a: 1 / 0)
    arguments = [
        "robustness",
        *SMALL[:2],
        "--optimizers",
        "adamw,torch-metaoptimize",
        *SMALL[4:],
        *QUIET,
    ]
    assert main([*arguments, "--out", str(tmp_path)]) == 0
    shown = capsys.readouterr()
    assert "failed: mlp:hidden=4,batch=8/digits, torch-metaoptimize: ZeroDivisionError" in shown.err
    assert "FAILED" in shown.out


def test_numbers_do_not_depend_on_workers():
    specs = "adamw,torch-metaoptimize:meta_lr=0.03"
    options = dict(optimizees=TINY, optimizers=specs, lrs="1e-3", steps=4, seeds=2)
    one, two = sweep(**options), sweep(workers=2, **options)
    for a, b in zip(one.lines, two.lines):
        assert not a.failure
        for name, values in a.metrics.items():
            np.testing.assert_array_equal(values, b.metrics[name])


def test_step_sizes():
    assert step_sizes("1e-7:1e-2", 1) == (1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2)
    assert (
        step_sizes("1e-3:1e-2", 2) == (1e-3, 3.16e-3, 1e-2) and len(step_sizes("1e-7:1e-2")) == 11
    )
    assert step_sizes("0.1,0.01,0.1") == (0.01, 0.1)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (["--optimizers", "adamv"], 'unknown baseline "adamv" (did you mean "adamw"?)'),
        (["--optimizers", "metaoptimize:meta_rl=1"], 'did you mean "meta_lr"'),
        (["--optimizers", "adamw:lr=0.1"], "gives lr, which is what is swept"),
        (
            ["--optimizers", "metaoptimize", "--lrs", "1e-3,0.5"],
            'lr=0.5": alpha0=0.5 is outside the bounds',
        ),
        (["--optimizers", "metaoptimize", "--lrs", "1e-12:1e-10"], "outside the bounds"),
        (["--lrs", ""], "expected positive step sizes"),
        (["--lrs", "1e-3,0"], "expected positive step sizes"),
        (["--lrs", "1e-2:1e-3"], "ends before it begins"),
        (["--per-decade", "0", "--lrs", "1e-3:1"], "--per-decade"),
        (["--seeds", "0"], "seeds: expected at least 1"),
        (["--steps", "0"], "steps: expected at least 1"),
        (["--optimizees", "mpl"], 'did you mean "mlp"'),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_lost(changed, words, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["robustness", *SMALL, *QUIET, "--out", str(out)]) == 0
    before = (out / "robustness.json").read_bytes()
    capsys.readouterr()
    assert main(["robustness", *SMALL, *QUIET, "--out", str(out), *changed]) == 2
    shown = capsys.readouterr()
    assert len(shown.err.splitlines()) == 1 and words in shown.err and shown.out == ""
    assert (out / "robustness.json").read_bytes() == before


def test_an_empty_grid_is_refused():
    with pytest.raises(UserError, match="expected positive step sizes"):
        sweep(optimizees=TINY, optimizers="adamw", lrs="")
