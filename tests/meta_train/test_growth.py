"""Growth with an incumbent, every kind and estimator, several families, and what is saved in the
end.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lo_framework.learned import LearnedOptimizer, load_optimizer, make_learned
from lo_framework.meta_train import growth
from lo_framework.meta_train.config import Program
from lo_framework.meta_train.growth import Stage, plan_stages
from lo_framework.meta_train.incumbent import measure, score, tuned_start, with_lr
from lo_framework.meta_train.run import MetaTraining
from lo_framework.meta_train.workers import Workers, WorkerSetup
from lo_framework.optimizees.datasets import DATASETS
from lo_framework.spec import UserError
from tests.meta_train.tools import command, metrics, tiny, train

SMALL = "attention-mlp:width=4,heads=1,hidden=2,context=1"


def loaded(path: Path) -> LearnedOptimizer:
    """As any user of a saved file would."""
    file = load_optimizer(path)
    learned = make_learned(file.kind, **file.config)
    learned.load_theta(file.tensors)
    return learned


def quality(learned: LearnedOptimizer) -> list[dict[str, float]]:
    config = tiny()
    workers = Workers(WorkerSetup(config, Program(workers=1)), config.shards)
    values = {name: getattr(learned.config, name) for name in learned.config.__dataclass_fields__}
    return measure(workers, Stage(learned.kind, values), [learned.theta()])[0]


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("grown") / "run"
    train(out, learned=SMALL, outer_steps=9, validate_every=1)
    return out


def test_the_chain(grown: Path) -> None:
    kinds = [row["kind"] for row in metrics(grown)]
    assert list(dict.fromkeys(kinds)) == ["hyper-adamw", "attention", "attention-mlp"]
    assert [row["stage"] for row in metrics(grown)] == sorted(
        row["stage"] for row in metrics(grown)
    )


def test_the_incumbent_never_gets_worse(grown: Path) -> None:
    scores = [row["score"] for row in metrics(grown)]
    assert scores == sorted(scores, reverse=True) and scores[0] <= 1.0
    assert scores[-1] < 1.0, "a few steps on a quadratic beat the start"
    assert load_optimizer(grown / "optimizer.safetensors").summary["score"] == scores[-1]


def test_what_is_saved_is_what_was_measured(grown: Path) -> None:
    """The file alone rebuilds the incumbent: its score on the validation seeds is the one it
    claims.
    """
    path = grown / "optimizer.safetensors"
    summary, learned = load_optimizer(path).summary, loaded(path)
    again = quality(learned)
    assert again == summary["quality"]
    assert score(again, summary["reference"]) == summary["score"]
    assert summary["run"]["learned"] == SMALL and summary["steps"] == 9


@pytest.mark.parametrize(
    ("smaller", "larger"),
    [
        ("hyper-adamw", "attention:width=4,heads=1"),
        ("attention:width=4,heads=1", SMALL),
        ("hyper-adamw", SMALL),
        (
            "hyper-adamw:beta1=0.8,weight_decay=0.1",
            "attention:width=4,heads=1,beta1=0.8,weight_decay=0.1",
        ),
    ],
)
def test_a_stage_starts_as_the_function_of_the_incumbent(smaller: str, larger: str) -> None:
    """What the smaller one has learned, the larger one does before its first update."""
    before, after = make_learned(smaller), make_learned(larger)
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in before.parameters():
            p.add_(0.02 * torch.randn(p.shape, generator=g))
    after.grow_from(before)
    for name, value in quality(before)[0].items():
        assert quality(after)[0][name] == pytest.approx(value, rel=1e-6)


def test_training_that_destroys_the_weights_is_not_saved(tmp_path: Path) -> None:
    """Steps far too large: what is saved is the start, tuned AdamW."""
    best = train(tmp_path / "run", outer_lr=1e4, validate_every=1)
    assert best.step == 0 and best.score == 1.0
    learned = loaded(tmp_path / "run" / "optimizer.safetensors")
    assert (
        quality(learned)
        == load_optimizer(tmp_path / "run" / "optimizer.safetensors").summary["reference"]
    )


@pytest.mark.parametrize(
    ("learned", "estimator"),
    [
        ("mlp:hidden=4", "tbptt:second_order=false"),
        ("mlp:features=39,hidden=4", "es"),
        ("lstm:hidden=2", "pes"),
        ("lstm:hidden=2,layers=1", "tbptt:segments=0"),
        ("hyper-adamw", "pes:sigma=0.05"),
        ("attention:head=bounded,width=4,heads=2", "tbptt:clip_task=1"),
    ],
)
def test_every_kind_and_estimator(learned: str, estimator: str, tmp_path: Path) -> None:
    best = train(tmp_path / "run", learned=learned, estimator=estimator, outer_steps=3)
    assert all(torch.isfinite(x).all() for x in best.theta.values())
    assert loaded(tmp_path / "run" / "optimizer.safetensors").kind == best.kind
    rows = metrics(tmp_path / "run")
    assert len(rows) == 3 and all(
        row["meta_loss"] is not None and row["skipped"] == 0 for row in rows
    )


def test_a_first_stage_with_settings_of_its_own_is_measured(tmp_path: Path) -> None:
    """AdamW with another beta is not the AdamW that was tuned: its score is not 1 by definition."""
    best = train(tmp_path / "run", learned="hyper-adamw:beta1=0.3", outer_lr=1e4)
    assert best.step == 0 and best.score != 1.0
    assert quality(loaded(tmp_path / "run" / "optimizer.safetensors")) == best.quality


def test_families_are_the_full_product(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two optimizees x two data sets and one that needs no data; every family has metrics of its
    own.
    """
    monkeypatch.setitem(DATASETS, "others", replace(DATASETS["digits"], name="others"))
    settings: dict[str, Any] = {
        "optimizees": "mlp:hidden=2,batch=4,cnn:channels=2,batch=4,quadratic:dim=2",
        "datasets": "digits,others",
        "outer_steps": 1,
        "unroll_length": 1,
        "episode_length": "2",
        "shards": 1,
    }
    train(tmp_path / "run", **settings)
    names = list(metrics(tmp_path / "run")[0]["families"])
    mlp, cnn = "mlp:hidden=2,batch=4", "cnn:channels=2,batch=4"
    assert names == [
        f"{mlp}/digits",
        f"{mlp}/others",
        f"{cnn}/digits",
        f"{cnn}/others",
        "quadratic:dim=2",
    ]
    assert len(load_optimizer(tmp_path / "run" / "optimizer.safetensors").summary["quality"]) == 5


def test_augmented_episodes_resume_too(tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "augment": 100.0,
        "optimizees": "mlp:hidden=2,batch=4",
        "num_tasks": 4,
    }
    train(tmp_path / "a", **settings)
    train(tmp_path / "b", max_seconds=1e-9, **settings)
    train(tmp_path / "b", resume=True, **settings)
    assert metrics(tmp_path / "a") == metrics(tmp_path / "b")


@pytest.mark.parametrize(
    "shares", [growth.SHARES[3], (1 / 3, 1 / 3, 1 / 3), (0.9, 0.09, 0.01), (0.0, 0.0, 1.0)]
)
def test_stages_partition_the_steps(
    shares: tuple[float, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the shares and however short the run: every stage has a step."""
    monkeypatch.setitem(growth.SHARES, 3, shares)
    monkeypatch.setitem(growth.SHARES, 2, shares[1:])
    for steps in (1, 2, 3, 4, 5, 10, 100):
        stages = plan_stages(SMALL, steps)
        assert len(stages) == min(3, steps) and stages[-1].kind == "attention-mlp"
        assert [s.index for s in stages] == list(range(len(stages)))
        assert [stages[0].begin, *(s.end for s in stages)] == [*(s.begin for s in stages), steps]
        assert all(s.end > s.begin for s in stages)


def test_stages_share_the_settings_they_have_in_common() -> None:
    stages = plan_stages("attention-mlp:width=4,heads=2,hidden=3,lr=0.02,seed=5", 100)
    assert stages[0].config["lr"] == 0.02 and "width" not in stages[0].config
    assert stages[1].config["width"] == 4 and "hidden" not in stages[1].config
    assert stages[2].build().config.hidden == 3
    assert [s.kind for s in plan_stages("lstm", 10)] == ["lstm"]


def test_the_yardstick_is_the_best_common_learning_rate() -> None:
    config = tiny()
    workers = Workers(WorkerSetup(config, Program(workers=1)), config.shards)
    lr, reference = tuned_start(workers)
    learned = make_learned("hyper-adamw")
    theta = learned.theta() | {"default": with_lr(learned.theta()["default"], learned.config, lr)}
    assert measure(workers, Stage("hyper-adamw", {}), [theta])[0] == reference
    assert score(reference, reference) == 1.0
    learned.load_theta(theta)
    in_force = torch.exp(learned.start + learned.config.gain * theta["default"])[0]
    assert float(in_force) == pytest.approx(lr, rel=1e-5)


def alike(loss: float) -> list[dict[str, float]]:
    return [dict.fromkeys(("mean", "valid", "final"), loss)]


def test_scores_of_runs_that_diverged_are_finite() -> None:
    good, bad = alike(1.0), alike(float("inf"))
    assert score(bad, good) == score(bad, bad) == pytest.approx(10.0)
    assert score(good, bad) < 1.0 < score([{**good[0], "valid": float("nan")}], good)


@pytest.mark.parametrize("loss", [1.0, 1e-9, 0.0, -1e-3, -5.0])
def test_scores_of_losses_of_any_sign(loss: float) -> None:
    """Equal is 1, lower is better, also where a loss is a likelihood or reaches zero."""
    size = abs(loss) or 1e-6
    values = [score(alike(loss + step * size), alike(loss)) for step in (-2.0, -0.1, 0.0, 0.1, 2.0)]
    assert values == sorted(values) and values[2] == 1.0 and values[0] < 1.0 < values[-1] < 10.1
    assert loss == 0 or values[3] == pytest.approx(1.1, rel=0.02)


def test_losses_that_are_as_good_as_zero_are_equal() -> None:
    """A noise-free quadratic ends at 1e-20: that is no reason for a score other than 1."""
    assert score(alike(1e-20), alike(1e-20)) == score(alike(1e-30), alike(1e-20)) == 1.0


def test_an_optimizer_without_meta_parameters_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(LearnedOptimizer, "theta", lambda self: {})
    with pytest.raises(UserError, match="no meta-parameters"):
        MetaTraining(WorkerSetup(tiny(learned="lstm"), Program(out=str(tmp_path / "run"))))


def test_the_saved_settings_are_readable(grown: Path) -> None:
    assert json.loads((grown / "config.json").read_text())["learned"] == SMALL
    assert command(grown)  # the folder's own command line can be built from its settings
