"""Scores of a step: weights, logarithm, and losses that are not numbers."""

from __future__ import annotations

import math

import pytest
import torch

from lo_framework.episode import Losses, Need
from lo_framework.objectives import FLOOR, make_objective
from lo_framework.spec import UserError
from tests.lo_framework.small_tasks import TinyNet

TASK = TinyNet()  # normalises by 0.7


def losses(train: list[float], held: list[float]) -> Losses:
    return Losses(
        *(torch.tensor(x, dtype=torch.float64) for x in (train, held)), torch.zeros(len(train))
    )


def test_valid_and_train() -> None:
    given = losses([0.7, 0.35], [0.07, 0.14])
    assert make_objective("valid").score(TASK, given).tolist() == pytest.approx([0.1, 0.2])
    assert make_objective("train").score(TASK, given).tolist() == pytest.approx([1.0, 0.5])
    assert make_objective("valid:train=0.25").score(TASK, given).tolist() == pytest.approx(
        [0.325, 0.275]
    )


def test_log_term_mixes_like_the_loss() -> None:
    given = losses([0.7], [0.07])
    expected = 0.25 * (1 + 0.2 * math.log(1 + FLOOR)) + 0.75 * (0.1 + 0.2 * math.log(0.1 + FLOOR))
    assert make_objective("valid:train=0.25,log=0.2").score(TASK, given).item() == pytest.approx(
        expected
    )


@pytest.mark.parametrize(
    "spec, held_out",
    [("valid", True), ("train", False), ("valid:train=1", False), ("valid:train=0.9", True)],
)
def test_held_out_data_are_drawn_only_if_scored(spec: str, held_out: bool) -> None:
    assert (Need.HELD in make_objective(spec).needs) is held_out


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e30, 0.0, -0.5])
def test_scores_and_their_gradients_are_finite_whatever_the_loss(value: float) -> None:
    """A loss below zero (a user's log-likelihood) has a score as well, although it has no
    logarithm.
    """
    given = losses([value, 0.7], [value, 0.7])
    leaves = [x.requires_grad_() for x in (given.train, given.held)]
    score = make_objective("valid:train=0.5,log=0.1").score(TASK, given)
    grads = torch.autograd.grad(score.sum(), leaves)
    assert torch.isfinite(score).all() and float(score[1].detach()) == pytest.approx(
        1 + 0.1 * math.log(1 + FLOOR)
    )
    assert all(torch.isfinite(g).all() and g[1] > 0 for g in grads)


@pytest.mark.parametrize("options", ["train=1.5", "train=-1", "log=-1", "train=nan", "lgo=1"])
def test_bad_specs(options: str) -> None:
    with pytest.raises(UserError, match="objective valid"):
        make_objective(f"valid:{options}")


def test_a_misspelt_name_gets_a_hint() -> None:
    with pytest.raises(UserError, match='did you mean "valid"'):
        make_objective("vaild")
