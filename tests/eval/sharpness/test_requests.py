"""What a request of `eval sharpness` asks for: what chooses baselines, and what efforts measure."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lo_framework.eval.report.sharpness.page import SharpnessReport
from lo_framework.eval.sharpness.result import FILE, Result
from lo_framework.eval.sharpness.settings import CHOICES
from lo_framework.eval.studies.request import SharpnessRequest
from lo_framework.eval.studies.sharpness import SharpnessEvaluation
from lo_framework.learned import make_learned

SMALL: dict[str, Any] = dict(learned="", radii="0.1", probe="none", seeds=1, tuning_seeds=1)


def evaluated(**options: Any) -> Result:
    request = SharpnessRequest(**{**SMALL, **options})
    return SharpnessEvaluation(request, learned=make_learned("hyper-adamw")).run()


@pytest.mark.parametrize(
    ("by", "number"), [("training", "final_loss"), ("validation", "valid_loss")]
)
def test_baselines_are_chosen_by_the_loss_that_is_asked_for(by: str, number: str) -> None:
    few = "mlp-relu:hidden=64,batch=8"  # training on as long as this overfits
    options = dict(optimizees=few, datasets="digits:noise=0.5", steps=150, baselines="adamw")
    result = evaluated(**options, choose_by=by, grid_size=3)
    arm = result.arm(result.tasks[0], "adamw")
    scores = [np.mean(record["scores"][number]) for record in arm.tuned]
    assert arm.setting == arm.tuned[int(np.argmin(scores))]["setting"]
    assert FILE.read(FILE.write(result)).settings["choose_by"] == by
    report = SharpnessReport(result)
    assert f"best setting for the {CHOICES[by]}" in " ".join(report.heading())


def test_the_effort_balls_has_relative_and_adaptive_ones() -> None:
    result = evaluated(optimizees="mlp:hidden=4", steps=2, baselines="none", effort="balls")
    (run,) = result.arms[0].runs
    assert run.equal is not None and run.equal["rows"] == 1024 and not run.failure
    labels = {name: ball["labels"] for name, ball in run.equal["balls"].items()}
    assert labels["l2, relative"] == ["0.01 ‖w‖", "0.05 ‖w‖"]
    assert labels["adaptive l2"] == ["0.25", "1"]
