"""Objectives about steps in a run: terms and weights in the log, learned weights in the checkpoint,
bad input.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lo_framework.meta_train.presets import compute_factor
from lo_framework.objectives.weighting import make_weighting
from lo_framework.spec import UserError
from tests.meta_train.test_bad_input import refused
from tests.meta_train.test_records import KEYS, scalars
from tests.meta_train.tools import (
    Forker,
    command,
    final_state,
    metrics,
    shared_out_and_resumed,
    tiny,
    train,
)

REAL: dict[str, Any] = {
    "optimizees": "mlp:hidden=4,batch=8,quadratic:dim=3",
    "unroll_length": 3,
    "episode_length": "6",
}
HUW: dict[str, Any] = {
    **REAL,
    "objective": "combined",
    "weighting": "huw:lr=0.5",
    "priorities": "2,5,1",
}
TERMS = ["gradient", "loss_decrease", "gen_gap"]


@pytest.mark.parametrize("estimator", ["tbptt", "pes"])
def test_learned_weights_follow_the_terms(tmp_path: Path, estimator: str) -> None:
    """Each step's weights are those that the terms of the steps before it made."""
    train(tmp_path, estimator=estimator, **HUW)
    rows, curves = metrics(tmp_path), scalars(tmp_path / "tensorboard")
    expected = make_weighting("huw:lr=0.5", (2, 5, 1))
    for row in rows:
        assert set(row) == (KEYS | {"terms", "weights"}) - {"seconds", "rate"}
        assert list(row["terms"]) == list(row["weights"]) == TERMS
        assert list(row["weights"].values()) == list(expected.weights())
        for family in row["families"].values():
            score = sum(row["weights"][name] * family[f"term_{name}"] for name in TERMS)
            assert family["meta_loss"] == pytest.approx(score, rel=1e-4)
        for name in TERMS:
            each = [family[f"term_{name}"] for family in row["families"].values()]
            assert row["terms"][name] == pytest.approx(sum(each) / 2)
        expected.learn(torch.tensor(list(row["terms"].values()), dtype=torch.float64))
    assert rows[0]["weights"]["gradient"] == 0.5 != rows[1]["weights"]["gradient"]
    assert final_state(tmp_path)[1]["weighting.s"] == expected.dump()["s"].numpy().tobytes()
    for name in TERMS:
        drawn = [value for _, value in curves[f"weight/{name}"]]
        assert drawn == pytest.approx([row["weights"][name] for row in rows], rel=1e-5)
        for family in rows[0]["families"]:
            assert len(curves[f"term_{name}/{family}"]) == len(rows)


@pytest.mark.parametrize(
    ("weighting", "weights"), [("", [1, 1, 1]), ("fixed:weights=1x0.3x0.3", [1, 0.3, 0.3])]
)
def test_fixed_weights_stay(tmp_path: Path, weighting: str, weights: list[float]) -> None:
    train(tmp_path, objective="combined", weighting=weighting, outer_steps=2)
    assert [list(row["weights"].values()) for row in metrics(tmp_path)] == [weights, weights]
    assert not any(name.startswith("weighting") for name in final_state(tmp_path)[1])


@pytest.mark.parametrize("name", TERMS)
def test_one_term_alone(tmp_path: Path, name: str) -> None:
    train(tmp_path, objective=name, outer_steps=1)
    (row,) = metrics(tmp_path)
    (family,) = row["families"].values()
    assert "weights" not in row and family["meta_loss"] == pytest.approx(family[f"term_{name}"])
    assert math.isfinite(row["grad_norm"]) and row["grad_norm"] > 0


@pytest.mark.parametrize(
    "changes",
    [
        {"learned": "attention:width=4,heads=1"},
        pytest.param({"estimator": "pes"}, marks=pytest.mark.slow),
    ],
)
def test_resumed_and_shared_out_runs_are_the_same(
    forker: Forker, tmp_path: Path, changes: dict[str, Any]
) -> None:
    """Also where the run grows into another kind: the weights stay."""
    settings = {**HUW, "outer_steps": 6, **changes}
    shared_out_and_resumed(forker, tmp_path, settings)
    assert np.frombuffer(final_state(tmp_path / "1")[1]["weighting.s"]).any()


def test_engine_graph_has_the_same_bits(tmp_path: Path) -> None:
    for engine in ("eager", "graph"):
        train(tmp_path / engine, engine=engine, **HUW)
    ours, theirs = (final_state(tmp_path / engine)[1] for engine in ("eager", "graph"))
    assert ours == theirs


def test_control_counts_what_the_objective_costs() -> None:
    """Gradient evaluations beside the regularizer's: see `compute_factor`."""

    def plain(objective: str, estimator: str = "tbptt") -> float:
        return 1 / (
            compute_factor(tiny(control="sam", objective=objective, estimator=estimator)) - 1
        )

    assert plain("valid") == pytest.approx(5) and plain("train") == pytest.approx(4)
    assert plain("gradient") == pytest.approx(
        4 + 1 + 3
    )  # a gradient after the update and the pull-back through it
    assert plain("loss_decrease") == pytest.approx(5 + 1 / 3)  # the loss before it: no gradient
    assert plain("gen_gap") == pytest.approx(5 + 1)
    assert plain("combined") == pytest.approx(5 + 1 / 3 + 1 + 3)
    assert plain("combined", "pes") == pytest.approx(1 + 1 + 1 / 3 + 1)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"objective": "combnied"}, '"combined"'),
        ({"objective": "gradeint"}, '"gradient"'),
        ({"objective": "combined:flatnes=1"}, '"flatness"'),
        ({"objective": "gen_gap:x=1"}, '"x"'),
        ({"weighting": "huw"}, "--weighting"),
        ({"objective": "gradient", "weighting": "sum"}, "--weighting"),
        ({"priorities": "1,1,1"}, "--priorities"),
        ({"objective": "combined", "priorities": "1,1,1"}, "--weighting huw"),
        ({"objective": "combined", "weighting": "sum", "priorities": "1,1,1"}, "--weighting huw"),
        ({"objective": "combined", "weighting": "hwu"}, '"huw"'),
        ({"objective": "combined", "weighting": "huw:lrr=1"}, '"lr"'),
        ({"objective": "combined", "weighting": "huw", "priorities": "1,1"}, "3 priorities"),
        ({"objective": "combined", "weighting": "huw", "priorities": "1,1,0"}, "positive"),
        ({"objective": "combined", "weighting": "huw", "priorities": "1,one,1"}, "'1,one,1'"),
        ({"objective": "combined", "weighting": "fixed:weights=1x1"}, "3 numbers"),
        ({"objective": "combined", "inner_backend": "higher"}, "higher"),
        ({"objective": "gen_gap", "regularizer": "sam", "learn_rho": "phase=2"}, "held-out"),
        ({"objective": "combined", "learned": "hyper-adamw:sam_rho=0.05"}, "held-out"),
    ],
)
def test_bad_input(
    settings: dict[str, Any], expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert expected in refused(command(tmp_path / "run", **settings), tmp_path / "run", capsys)


def test_a_changed_weighting_is_another_run(tmp_path: Path) -> None:
    train(tmp_path, **{**HUW, "outer_steps": 2, "checkpoint_every": 1})
    with pytest.raises(UserError, match="--priorities was '2,5,1' and is now '1,1,1'"):
        train(
            tmp_path,
            resume=True,
            **{**HUW, "outer_steps": 2, "checkpoint_every": 1, "priorities": "1,1,1"},
        )
