"""The pages of `eval transfer` and `eval score`; that of `eval sharpness` is tested with its
command, as it takes measurements.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lo_framework.eval.report import numbers
from lo_framework.eval.report.base import Report
from lo_framework.eval.report.drawing import canvas
from lo_framework.eval.report.page import Picture
from lo_framework.eval.report.score import ScoreReport
from lo_framework.eval.report.svg import svg
from lo_framework.eval.report.transfer import TransferReport
from lo_framework.eval.statistics import least_p, pairs_needed
from lo_framework.eval.studies.result import Arm, Result, Runs
from tests.eval.report.browser import PROGRAM
from tests.eval.report.pages import look_at, read
from tests.eval.report.test_score import arm, scores


def transfer(seeds: int = 2, steps: int = 400) -> TransferReport:
    """Two tasks, a learned optimizer with a tuned form, and AdamW."""
    draw = np.random.default_rng(0)
    arms = []
    for task in ("mlp/digits", "cnn/digits"):
        for label, speed in (("mine", 3.0), ("mine (step tuned)", 4.0), ("adamw", 2.0)):
            level = np.exp(-speed * np.linspace(0, 1, steps)) * (1 + 0.1 * draw.random((seeds, 1)))
            names = ("mean_loss", "final_loss", "test_loss", "test_accuracy")
            runs = Runs(
                setting={} if label == "mine" else {"lr": 0.1},
                metrics={name: level[:, -1] / (1 + i) for i, name in enumerate(names)},
                curves=level.astype(np.float32),
                diverged=np.zeros(seeds, dtype=bool),
                seconds_per_step=0.001,
            )
            tuned = () if label == "mine" else ({"lr": 0.1},)
            more: dict[str, Any] = dict(runs=(runs,), chosen=dict.fromkeys(names, 0), tuned=tuned)
            arms.append(Arm(task=task, optimizer=label, learned="mine" in label, **more))
    return TransferReport(
        Result(
            tasks=("mlp/digits", "cnn/digits"),
            learned=("mine", "mine (step tuned)"),
            baselines=("adamw",),
            arms=tuple(arms),
            tuning_seeds=(10000,),
            report_seeds=tuple(range(20000, 20000 + seeds)),
            steps=steps,
            provenance={"command": ["lo-eval", "transfer"], "commit": "c0ffee"},
        )
    )


def score() -> ScoreReport:
    arms = [arm(x, label, last=(0.5, 0.6, 0.7)) for x in "abcd" for label in ("mine", "base")]
    return ScoreReport(scores(*arms))


REPORTS = {"transfer": transfer, "score": score}


@pytest.mark.parametrize("kind", REPORTS)
def test_a_page_explains_itself_and_needs_nothing_else(kind: str) -> None:
    report: Report[Any] = REPORTS[kind]()
    text = report.html()
    page = read(text, report.words())
    assert page.pictures >= 2 and text == report.html(), "the same numbers make the same page"
    for line in (*report.findings(), *report.cautions()):
        assert " ".join(line.split()) in page.text
    assert f"{report.file.command}.html" in dict(report.files())


def test_the_summary_of_one_task_and_of_several() -> None:
    report = transfer()
    assert report.findings()[0].startswith("mine, final loss: 0.3")
    assert "over 2 tasks: " in report.findings()[0]
    one = report.result.tasks[:1]
    arms = tuple(arm for arm in report.result.arms if arm.task in one)
    alone = TransferReport(
        type(report.result)(**{**vars(report.result), "tasks": one, "arms": arms})
    )
    assert alone.findings()[0].startswith("mlp/digits, mine, final loss: 0.3")
    assert "times adamw's" in alone.findings()[0]


def test_what_so_few_seeds_cannot_show() -> None:
    assert [least_p(n) for n in (1, 2, 5, 6)] == [1.0, 0.5, 0.0625, 0.03125]
    assert [pairs_needed(m) for m in (1, 2, 36)] == [6, 7, 11]
    assert 36 * least_p(10) >= 0.05 > 36 * least_p(11)
    assert numbers.few_seeds(6, 1) == numbers.few_seeds(11, 36) == numbers.few_seeds(2, 0) == ""
    line = numbers.few_seeds(2, 36)
    assert "2 seeds: " in line and "p-value below 0.5 " in line
    assert "It takes 6 seeds" in line and "11 for one of the 36 of a task" in line
    assert "It takes 11 for one of the 36" in numbers.few_seeds(8, 36)
    (shown,) = transfer().cautions()
    assert shown.startswith("2 seeds: ") and transfer(seeds=12).cautions() == []
    (shown,) = score().cautions()
    assert shown.startswith("3 seeds: ") and "below 0.25 " in shown


def test_many_optimizers_share_a_picture_however_small_a_ratio_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from lo_framework.eval.report import transfer as module

    report = transfer()
    for each in report.result.arms:
        if each.learned:
            each.runs[0].metrics["final_loss"] *= 1e-3
    alone = read(report.html(), report.words()).pictures
    monkeypatch.setattr(module, "MANY", 1)
    assert read(report.html(), report.words()).pictures == alone - 1


def test_long_runs_make_small_pages() -> None:
    assert len(transfer(steps=20_000).html()) < 1.2 * len(transfer(steps=400).html())


def test_pictures_have_the_colours_of_the_page_and_no_common_id() -> None:
    pictures = []
    for number in (1, 2):
        title = "a < b & $c$"
        figure, (axes,) = canvas(1, 1, (4, 3))
        axes.plot([0, 1], [0.123456789, 1], color="#0072B2")
        axes.set_title(title.replace("$", r"\$"))
        pictures.append(Picture(svg(figure), "").numbered(number))
    first, second = pictures
    assert "var(--c0)" in first and "var(--text)" in first and "#0072b2" not in first
    assert "a &lt; b &amp; $c$" in first and "white" not in first
    ids = [{part.split('"')[0] for part in x.split(' id="')[1:]} for x in pictures]
    assert ids[0] and ids[1] and not ids[0] & ids[1]
    assert all(f"#{name}" in x for x, names in zip(pictures, ids) for name in names)
    assert "://" not in first + second


@pytest.mark.skipif(PROGRAM is None, reason="there is no Chromium to look at the pages with")
@pytest.mark.slow
@pytest.mark.parametrize("kind", REPORTS)
def test_a_browser_shows_the_page(kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"{kind}.html"
    path.write_text(REPORTS[kind]().html(), "utf-8")
    look_at(path)
