"""`eval ablation`: cells, references, marks, files, resuming, and bad input in one line."""

from __future__ import annotations

import csv

import numpy as np
import pytest

from lo_framework.eval.baselines import make_baseline
from lo_framework.eval.cli import main
from lo_framework.eval.report import numbers
from lo_framework.eval.report.ablation import AblationReport
from lo_framework.eval.report.heat_maps import marked
from lo_framework.eval.running.cells import plan_cells
from lo_framework.eval.statistics import mean_interval
from lo_framework.eval.studies.ablation import (
    FILE,
    AblationEvaluation,
    Entry,
    usual_references,
)
from lo_framework.eval.studies.panels import (
    STUDIES,
    Axis,
    Mark,
    Panel,
    Study,
    find_study,
    parse_panel,
    register_study,
)
from lo_framework.eval.studies.request import AblationRequest
from lo_framework.optimizees import make_tasks
from tests.eval.cells import run_cell

TINY = "mlp:hidden=4,batch=8"
PANEL = "meta_every=1/4,blocks=scalar/weight"
START = "torch-metaoptimize:base=sgd,lr=1,meta_lr=0.5"
SMALL = [
    "--optimizees",
    TINY,
    "--steps",
    "60",
    "--seeds",
    "2",
    "--tuning-seeds",
    "1",
    "--progress",
    "none",
]
OWN = [*SMALL, "--baseline", START, "--panel", PANEL, "--references", "adamw:lr=0.01"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("ablation") / "out"
    assert main(["ablation", *OWN, "--out", str(out)]) == 0
    return out


def test_tables_and_csv_tell_the_runs_own_numbers(folder):
    names = [
        "ablation-mlp-hidden-4-batch-8-digits.png",
        "ablation.csv",
        "ablation.json",
        "ablation.md",
    ]
    assert sorted(p.name for p in folder.iterdir() if p.is_file()) == names
    result = AblationReport.load(folder).result
    (task,), (panel,) = make_tasks(TINY), result.study.panels
    with (folder / "ablation.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4 + 1 and rows[-1]["panel"] == "reference"
    text = (folder / "ablation.md").read_text()
    for row in panel.rows.values:
        for column in panel.columns.values:
            spec = f"{START},meta_every={row},blocks={column}"
            optimizer = make_baseline(spec)
            (cell,) = plan_cells(
                task.name, spec, [optimizer.theta()], (20_000, 20_001), 60, ("train", "test")
            )
            expected = run_cell(cell, task, optimizer)
            entry = result.entry(task.name, panel, row, column)
            for name, values in (expected.metrics | expected.extra).items():
                np.testing.assert_allclose(entry.metrics[name], values[0], rtol=1e-6, err_msg=name)
            (found,) = (r for r in rows if (r["row"], r["column"]) == (row, column))
            assert float(found["final_loss_mean"]) == pytest.approx(
                expected.metrics["final_loss"].mean(), rel=1e-5
            )
            ratio = (
                expected.metrics["final_loss"].mean()
                / result.references[0].metrics["final_loss"].mean()
            )
            assert float(found["final_loss / adamw:lr=0.01"]) == pytest.approx(ratio, rel=1e-5)
            assert numbers.plus_minus(mean_interval(expected.metrics["final_loss"][0])) in text


def test_the_reference_is_tuned_over_what_it_leaves_open(folder):
    (reference,) = AblationReport.load(folder).result.references
    assert reference.spec == "adamw:lr=0.01" and reference.setting in ("lr=0.01", "lr=0.01 cosine")
    assert "reference" in (folder / "ablation.md").read_text()


def test_diagnostics_are_marked(folder):
    text = (folder / "ablation.md").read_text()
    assert "diagnostics, meta_every x blocks" in text and "%" in text
    metrics = {"a": np.array([1.0, 2.0]), "b": np.array([10.0, 20.0]), "none": np.zeros(2)}
    marks = (
        Mark(count="a", symbol="~", over="b"),
        Mark(count="a", symbol="s"),
        Mark(count="none", symbol="0"),
    )
    assert (
        marked(Entry(task="t", spec="s", metrics=metrics), (*marks, Mark(count="x", symbol="x")))
        == "~10% s1.5"
    )


def test_json_gives_the_same_report_again_and_finished_cells_are_used(folder, capsys):
    result = AblationReport.load(folder).result
    again = FILE.read(FILE.write(result))
    assert (
        AblationReport(again).plain() == AblationReport(result).plain()
        and AblationReport(again).csv() == AblationReport(result).csv()
    )
    assert again.study == result.study
    before = {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}
    assert main(["report", str(folder)]) == 0
    assert {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()} == before
    capsys.readouterr()
    assert main(["ablation", *OWN, "--out", str(folder)]) == 0
    assert "6 finished cells of an earlier run" in capsys.readouterr().err
    assert (folder / "ablation.csv").read_bytes() == before["ablation.csv"]


def test_a_cell_in_two_panels_is_run_once_and_known_panels_are_sound():
    study = find_study("torch-metaoptimize", "", [])
    assert [panel.name for panel in study.panels] == [
        p.name for p in STUDIES["torch-metaoptimize"].panels
    ]
    specs = [spec for panel in study.panels for spec in panel.specs(study.baseline)]
    assert len(specs) == 107 and len(set(specs)) == 104
    assert usual_references(study) == [
        "adamw:lr=0.0001,cosine=0",
        "adamw:lr=0.01,cosine=0",
        "adamw:cosine=0",
    ]
    some = find_study("torch-metaoptimize:lr=0.002", "gamma-meta_lr", [])
    assert (
        usual_references(some)[0] == "adamw:lr=0.002,cosine=0"
        and some.baseline == "torch-metaoptimize:lr=0.002"
    )


def test_any_baseline_can_be_studied_and_diverge(tmp_path, capsys):
    arguments = ["--baseline", "sgdm", "--panel", "lr=0.01/1e38,momentum=0/0.9,weight_decay=0.1"]
    small = [
        "--optimizees",
        "mlp-relu:hidden=4,batch=8",
        *SMALL[2:],
        "--references",
        "none",
        "--steps",
        "5",
    ]
    assert main(["ablation", *small, *arguments, "--out", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert shown.count("2 of 2 diverged") == 2 and "lr x momentum at weight_decay 0.1" in shown


def test_a_study_of_ones_own(tmp_path):
    axis = Axis(option="lr", values=("0.01", "0.1"))
    panel = Panel(name="mine", rows=axis, columns=Axis(option="cosine", values=("0", "1")))
    register_study(Study(baseline="sgdm:momentum=0.5", panels=(panel,)))
    # An odd number of panels: a place in the picture stays empty.
    own = ("lr=0.01,momentum=0.5", "lr=0.1,weight_decay=0")
    options = dict(optimizees=TINY, baseline="sgdm", panels="mine", panel=own, references="none")
    try:
        result = AblationEvaluation(AblationRequest(**options, steps=3, seeds=2)).run()
    finally:
        del STUDIES["sgdm"]
    assert (
        result.study.baseline == "sgdm:momentum=0.5"
        and len(result.entries) == 4
        and not result.failures
    )
    assert result.tuning_seeds == () and len(AblationReport(result).save(tmp_path)) == 4


def test_failed_cells_are_named(tmp_path, capsys, monkeypatch):
    from lo_framework.eval.baselines.metaoptimize import TorchMetaOptimize

    build = TorchMetaOptimize.build

    def broken(self, *arguments):
        return 1 / 0 if self.config.blocks == "weight" else build(self, *arguments)

    monkeypatch.setattr(TorchMetaOptimize, "build", broken)
    assert main(["ablation", *OWN, "--out", str(tmp_path)]) == 0
    shown = capsys.readouterr()
    assert len([line for line in shown.err.splitlines() if "ZeroDivisionError" in line]) == 2
    assert "FAILED" in shown.out and (tmp_path / "ablation.md").exists()


def test_panels_by_word():
    panel = parse_panel("gamma=0/0.9/1, meta_lr = 0.1/1,blocks=node")
    assert panel.rows == Axis(option="gamma", values=("0", "0.9", "1")) and panel.fixed == {
        "blocks": "node"
    }
    assert panel.columns.option == "meta_lr" and panel.title == "gamma x meta_lr at blocks node"


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (["--baseline", "torch-metaoptimise"], 'did you mean "torch-metaoptimize"'),
        (["--baseline", "torch-metaoptimize:gama=1"], 'did you mean "gamma"'),
        (["--panels", "gamma"], 'unknown panel "gamma" (did you mean "gamma-meta_lr"?)'),
        (["--panel", "gama=0/1,meta_lr=0.1/1"], 'has no option "gama" (did you mean "gamma"?)'),
        (["--panel", "gamma=0/7,meta_lr=0.1/1"], "gamma must be in [0, 1]"),
        (["--panel", "lr=0.001/0.5,gamma=0/1"], "alpha0=0.5 is outside the bounds"),
        (["--panel", "blocks=scalar/nodes,gamma=0/1"], 'did you mean "node"'),
        (["--panel", "gamma=0/1"], "expected ROW=a/b/c,COLUMN=x/y"),
        (["--panel", "gamma=/,lr="], "expected ROW="),
        (["--panel", "gamma=0,gamma=1"], "two different options"),
        (["--panel", "gamma=0,meta_lr=1,lr=0.1/0.01"], "no third option"),
        (["--panel", PANEL, "--panel", PANEL], "is given twice"),
        (["--baseline", "adamw"], "no panels: give --panel"),
        (["--baseline", "adamw", "--panels", "x"], "none is known for adamw"),
        (["--references", "adamv"], 'did you mean "adamw"'),
        (["--seeds", "0"], "seeds: expected at least 1"),
    ],
)
def test_bad_input_is_one_line(changed, words, tmp_path, capsys):
    assert main(["ablation", *SMALL, "--out", str(tmp_path / "out"), *changed]) == 2
    shown = capsys.readouterr()
    assert len(shown.err.splitlines()) == 1 and words in shown.err and shown.out == ""
    assert not list(tmp_path.rglob("ablation.*"))
