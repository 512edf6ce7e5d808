"""`eval score` from the command line, on two small problems of a suite of one's own."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest

from lo_framework.eval.cli import main
from lo_framework.eval.score.adamw import place
from lo_framework.eval.studies.score import FILE

PROBLEMS = [
    {"name": "wide", "axis": "width", "optimizee": "mlp:hidden=8,batch=16", "steps": 16},
    {"name": "deep", "axis": "depth", "optimizee": "mlp:hidden=6x6,batch=16", "steps": 12},
    {"name": "long", "axis": "depth", "optimizee": "mlp:hidden=6x6,batch=16", "steps": 24},
]


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    """A suite with tuned AdamW's results beside it."""
    folder = tmp_path_factory.mktemp("suite")
    suite = folder / "mine.json"
    suite.write_text(json.dumps({"problems": PROBLEMS}))
    out = str(folder / "tune")
    words = ["score", "--tune", "--suite", str(suite), "--out", out, "--progress", "none"]
    assert main(words) == 0
    return suite


@pytest.fixture
def suite(tuned, tmp_path):
    """A copy of its own."""
    path = tmp_path / tuned.name
    for source in (tuned, place(tuned)):
        (tmp_path / source.name).write_bytes(source.read_bytes())
    return path


def score(suite, *words, out="out"):
    rest = ["--suite", str(suite), "--out", str(suite.parent / out), "--progress", "none"]
    return main(["score", *words, *rest])


def test_scores_are_relative_to_tuned_adamw(suite, capsys):
    assert score(suite, "hyper-adamw", "--baselines", "adamw:lr=0.01,cosine=1,adamw") == 0
    shown = capsys.readouterr().out
    last = [line for line in shown.splitlines() if line.startswith("score ")]
    assert [line.split(":")[0] for line in last] == [
        "score untrained hyper-adamw",
        "score adamw",
        "score adamw",
    ]
    assert "3 problems" in last[0] and "Axis: depth" in shown
    out = suite.parent / "out"
    names = {path.name for path in out.iterdir()}
    assert names == {"cells", "score.json", "score.csv", "score.md", "score.html", "score.png"}
    result = FILE.load(out)
    # AdamW, tuned again here, is itself
    for problem in PROBLEMS:
        again, stored = result.arm(problem["name"], "adamw"), result.reference(problem["name"])
        for key, values in stored.metrics.items():
            np.testing.assert_allclose(again.metrics[key], values, rtol=1e-6)
    with open(out / "score.csv") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 * 3 * 3
    assert all(row["final"] == "1" for row in rows if row["optimizer"] == "adamw")
    derived = json.loads((out / "score.json").read_text())["derived"]
    assert derived["overall"]["adamw"]["speed_up"] == pytest.approx([1, 1, 1])


def test_the_untrained_optimizer_is_the_baseline_that_it_grows_from(suite):
    """Two independent ways to one number: hyper-adamw starts as AdamW with a constant rate."""
    assert score(suite, "hyper-adamw:lr=0.01", "--baselines", "adamw:lr=0.01,cosine=0") == 0
    result = FILE.load(suite.parent / "out")
    ours, theirs = (result.arm("wide", name) for name in (*result.learned, *result.baselines))
    np.testing.assert_allclose(ours.metrics["last_loss"], theirs.metrics["last_loss"], rtol=1e-3)


def test_it_goes_on_after_a_kill_and_does_not_depend_on_workers(suite, capsys):
    assert score(suite, "hyper-adamw", "--problems", "wide", "--workers", "2") == 0
    assert score(suite, "hyper-adamw", "--problems", "wide", out="other") == 0
    (one,), (two,) = (FILE.load(suite.parent / name).arms for name in ("out", "other"))
    for key, values in one.metrics.items():
        np.testing.assert_array_equal(values, two.metrics[key])
    capsys.readouterr()
    assert score(suite, "hyper-adamw", "--problems", "wide,deep") == 0
    assert "1 finished cells of an earlier run were used again" in capsys.readouterr().err


def test_the_report_is_made_again(suite, capsys):
    assert score(suite, "hyper-adamw", "--problems", "wide") == 0
    out = suite.parent / "out"
    before = {
        name: (out / name).read_bytes()
        for name in ("score.csv", "score.md", "score.html", "score.png")
    }
    for name in before:
        (out / name).unlink()
    assert main(["report", str(out)]) == 0
    assert {name: (out / name).read_bytes() for name in before} == before


def test_verifying_runs_adamw_again(suite, capsys):
    assert score(suite, "--verify", "--problems", "wide,deep") == 0
    stored = place(suite)
    data = json.loads(stored.read_text())
    deep = next(one for one in data["results"] if one["task"] == "deep")
    deep["metrics"]["last_loss"][0] *= 1.02
    stored.write_text(json.dumps(data))
    capsys.readouterr()
    assert score(suite, "--verify", "--problems", "wide,deep", out="fresh") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "differs by more than 1%: deep " in error
    assert "wide" not in error
    deep["metrics"]["last_loss"][0] *= 1 / 1.02 * 1.005  # below one percent
    stored.write_text(json.dumps(data))
    assert score(suite, "--verify", "--problems", "wide,deep", out="third") == 0


def test_a_part_of_a_suite_is_tuned_again(suite, capsys):
    before = json.loads(place(suite).read_text())
    suite.write_text(json.dumps({"problems": [*PROBLEMS[:2], {**PROBLEMS[2], "steps": 20}]}))
    assert score(suite, "hyper-adamw") == 2
    assert "long (its text, shapes or tuning)" in capsys.readouterr().err
    assert score(suite, "--tune", "--problems", "long") == 0
    after = json.loads(place(suite).read_text())
    assert after["results"][:2] == before["results"][:2]
    assert after["origins"]["long"] != before["origins"]["long"]
    assert score(suite, "hyper-adamw") == 0


@pytest.mark.parametrize(
    "words, problem",
    [
        ([], "nothing to score"),
        (["hyper-adamv"], "no file and no learned optimizer (did you mean"),
        (["hyper-adamw", "--seeds", "2"], "at least 3"),
        (["hyper-adamw", "--problems", "wid"], 'did you mean "wide"'),
        (["hyper-adamw", "--seed-offset", "1"], "without --seed-offset"),
        (["hyper-adamw", "--steps", "5"], "unknown option '--steps'"),
        (["--tune", "--problems", "wide", "--seeds", "4"], "on the same seeds"),
    ],
)
def test_bad_input_is_one_line(suite, capsys, words, problem):
    assert score(suite, *words) == 2
    error = capsys.readouterr().err
    assert problem in error and error.count("\n") == 1
    assert not (suite.parent / "out").exists()


def test_a_second_row_has_the_best_multiple_of_the_step(suite, capsys):
    """A fraction of the step is worse; at the multiple that is chosen, runs are those of a rule
    with that rate.
    """
    words = ("hyper-adamw:lr=0.0001", "hyper-adamw:lr=0.01", "--step-scales", "1,100")
    assert score(suite, *words) == 0
    result = FILE.load(suite.parent / "out")
    own, tuned, hundred, _ = result.learned
    assert tuned == f"{own} (step tuned)"
    for problem in PROBLEMS:
        chosen = result.arm(problem["name"], tuned)
        assert chosen.settings["last_loss"] == {"scale": 100.0} and chosen.learned
        losses = (result.arm(problem["name"], name).metrics["last_loss"] for name in (own, hundred))
        small, large = losses
        assert (chosen.metrics["last_loss"] < small).all()
        np.testing.assert_allclose(chosen.metrics["last_loss"], large, rtol=1e-2)
    assert f"score {tuned}: speed-up" in capsys.readouterr().out
    assert score(suite, "hyper-adamw", "--step-scales", "0", out="no") == 2
    assert "--step-scales" in capsys.readouterr().err
