"""The report of a score: what failed or diverged counts, and names do nothing but show."""

from __future__ import annotations

import csv
import io

import numpy as np
import pytest

from lo_framework.eval.report.score import ScoreReport
from lo_framework.eval.score.measures import Scored
from lo_framework.eval.score.suite import Problem
from lo_framework.eval.studies.score import FILE, Scores

HOSTILE = "=1+1 $x$ `<b>` | \x1b[31m"


def arm(task, optimizer, last=(1.0, 1.0, 1.0), steps=(20.0, 20.0, 20.0), **more):
    metrics = {
        "last_loss": np.array(last),
        "test_loss": np.array(last),
        "first_loss": np.full(3, 2.0),
        "peak_loss": np.array([2.0, 2.0, 3.0]),
        "steps": np.array(steps),
    }
    diverged = ~np.isfinite(metrics["last_loss"])
    told = dict(task=task, optimizer=optimizer, learned=optimizer != "base", **more)
    return Scored(metrics={} if more else metrics, diverged=diverged, **told)


def scores(*arms, names=("a", "b", "c", "d")):
    problems = [Problem(name=name, axis=f"axis of {name}", optimizee="mlp") for name in names]
    setting = {"lr": 0.01, "cosine": 1.0}
    settings = {"last_loss": setting, "test_loss": setting}
    adamw = [arm(x, "adamw") for x in names]
    return Scores(
        tasks=tuple(names),
        learned=("mine",),
        baselines=("base",),
        arms=tuple(arms),
        problems=tuple(problems),
        adamw=tuple(Scored(**{**vars(one), "settings": settings}) for one in adamw),
        tuning_seeds=(10000,),
        report_seeds=(20000, 20001, 20002),
    )


@pytest.fixture
def report():
    never = (np.nan,) * 3
    mine = [
        arm("a", "mine", last=(0.5, 0.5, 9.0), steps=(10, 10, np.nan)),
        arm("b", "mine", failure="out of memory"),
        arm("c", "mine", last=(0.8, 0.8, 0.8), steps=(16, 16, 16)),
        arm("d", "mine", last=(np.inf, np.inf, 1.0), steps=never),
    ]
    return ScoreReport(scores(*mine, *(arm(x, "base") for x in "abcd")))


def test_what_failed_or_diverged_is_infinitely_bad(report):
    values = {task: report.value(task, "mine", "final") for task in "abcd"}
    assert values == {"a": 0.5, "b": np.inf, "c": 0.8, "d": np.inf}
    assert [report.value(task, "mine", "speed_up") for task in "abcd"] == [2, 0, 1.25, 0]
    # of four problems the middle two count: 0 and 1.25
    assert report.overall("mine", "speed_up").value == pytest.approx(0.625)
    assert report.overall("mine", "final").value == np.inf
    assert report.value("a", "mine", "spike") == 1.0 and report.value("a", "mine", "early") == 1.0
    shown = report.plain()
    assert "FAILED\n  b, mine: out of memory" in shown
    assert "worst inf (b)" in shown and "2 runs diverged, 4 problems" in shown
    assert "score base: speed-up 1" in shown


def test_it_is_written_and_read_again(report, tmp_path):
    written = report.save(tmp_path)
    names = ["score.json", "score.csv", "score.md", "score.html", "score.png"]
    assert [path.name for path in written] == names
    again = ScoreReport(FILE.load(tmp_path))
    assert again.plain() == report.plain() and again.csv() == report.csv()
    rows = list(csv.DictReader(io.StringIO(report.csv())))
    assert len(rows) == 4 * 2 * 3
    assert {row["seed"] for row in rows} == {"20000", "20001", "20002"}
    failed = [row for row in rows if (row["problem"], row["optimizer"]) == ("b", "mine")]
    assert [(row["speed_up"], row["last_loss"]) for row in failed] == [("0", "")] * 3


def test_names_show_as_text_and_do_nothing_else(tmp_path):
    names = (HOSTILE, "b")
    arms = [arm(name, optimizer) for name in names for optimizer in ("mine", "base")]
    report = ScoreReport(scores(*arms, names=names))
    report.save(tmp_path)
    assert "\x1b" not in report.plain() + report.csv() + report.markdown()
    assert "\n'=1+1" in report.csv() and "<b>" not in report.markdown()


def test_numbers_that_do_not_fit_are_refused(report, tmp_path):
    report.save(tmp_path)
    path = tmp_path / "score.json"
    text = path.read_text()
    path.write_text(text.replace('"steps": [ 10.0, 10.0, null ]', '"steps": [ 10.0 ]'))
    assert path.read_text() != text
    with pytest.raises(Exception, match=r"is damaged: a, mine: steps: expected \[3\] values"):
        FILE.load(tmp_path)
