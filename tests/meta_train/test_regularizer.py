"""``--regularizer``, ``--absorb``, ``--control`` and ``sam_rho`` from the command line to the saved
optimizer.
"""

from __future__ import annotations

import math
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from lo_framework.absorb.absorption import decompose
from lo_framework.inner.rollout import rollout
from lo_framework.inner.step import Family
from lo_framework.learned import load_optimizer
from lo_framework.meta_train.config import RadiusConfig
from lo_framework.meta_train.growth import Stage
from lo_framework.meta_train.outer import Radius
from lo_framework.meta_train.presets import compute_factor
from lo_framework.meta_train.workers import ShardHost, Unit, WorkerSetup
from lo_framework.optim import Learned, Regularized
from lo_framework.spec import UserError
from tests.meta_train.test_bad_input import refused
from tests.meta_train.tools import (
    Forker,
    command,
    final_state,
    metrics,
    same_run,
    shared_out_and_resumed,
    tiny,
    train,
)

REAL: dict[str, Any] = {
    "optimizees": "mlp:hidden=4,batch=8",
    "unroll_length": 3,
    "episode_length": "6",
}


@pytest.mark.parametrize("estimator", ["tbptt", "pes"])
def test_a_regularizer_changes_the_run_and_is_logged(tmp_path: Path, estimator: str) -> None:
    for name in ("none", "sam:rho=0.5"):
        train(tmp_path / name, estimator=estimator, regularizer=name, **REAL)
    plain, sharp = (metrics(tmp_path / name) for name in ("none", "sam:rho=0.5"))
    families = [row["families"]["mlp:hidden=4,batch=8/digits"] for row in (plain[0], sharp[0])]
    assert "penalty" not in families[0] and families[1]["penalty"] > 0
    assert families[1]["meta_loss"] == pytest.approx(
        families[0]["meta_loss"] + families[1]["penalty"], rel=1e-5
    )
    assert plain[0]["grad_norm"] != sharp[0]["grad_norm"]
    saved = load_optimizer(tmp_path / "sam:rho=0.5" / "optimizer.safetensors")
    assert saved.summary["run"]["regularizer"] == "sam:rho=0.5"


def test_gsam_decomposes_the_mean_of_all_shards(tmp_path: Path) -> None:
    settings = {**REAL, "regularizer": "gsam:rho=0.5,alpha=0.6"}
    train(tmp_path, **settings, outer_steps=1)
    host = ShardHost(WorkerSetup(tiny(**settings, outer_steps=1)), [0, 1])
    learned_kind = final_state(tmp_path)[2]["stages"][0][0]
    theta = start_of(tmp_path)
    host.build(Stage(learned_kind, {}), None)
    found = host.estimate(theta)
    grads, plains = ([found[s][i] for s in (0, 1)] for i in (0, 2))
    mean = [{n: sum(g[n] for g in each) / 2 for n in theta} for each in (grads, plains)]
    whole = decompose(mean[1], mean[0], 0.6)
    norm = math.sqrt(sum(float((x.double() ** 2).sum()) for x in whole.values()))
    assert metrics(tmp_path)[0]["grad_norm"] == pytest.approx(norm, rel=1e-5)
    assert norm != pytest.approx(
        math.sqrt(sum(float((x.double() ** 2).sum()) for x in mean[0].values())), rel=1e-4
    )


def start_of(out: Path) -> dict[str, torch.Tensor]:
    """Theta before the first outer step: hyper-adamw at the tuned learning rate."""
    from lo_framework.learned import make_learned
    from lo_framework.meta_train.incumbent import with_lr

    learned = make_learned("hyper-adamw")
    theta = learned.theta()
    theta["default"] = with_lr(theta["default"], learned.config, final_state(out)[2]["start_lr"])
    return theta


@pytest.mark.parametrize("regularizer", ["fsam", "gsam"])
def test_resumed_and_shared_out_runs_have_the_same_bits(
    forker: Forker, tmp_path: Path, regularizer: str
) -> None:
    """Friendly SAM carries a state of its own from truncation to truncation."""
    settings = {**REAL, "regularizer": regularizer, "absorb": "when=late", "outer_steps": 6}
    shared_out_and_resumed(forker, tmp_path, settings)


def test_a_radius_learned_across_phases_resumes_to_the_same_bits(
    forker: Forker, tmp_path: Path
) -> None:
    settings = {
        **REAL,
        "regularizer": "fsam:rho=0.3",
        "learn_rho": "phase=2,sigma=0.5,lr=50",
        "outer_steps": 5,
    }
    for workers in (1, 2):
        assert forker.run(command(tmp_path / str(workers), workers=workers, **settings)) == 0, (
            forker.printed()
        )
    same_run(tmp_path / "1", tmp_path / "2")
    rows = metrics(tmp_path / "1")
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5]
    assert rows[0]["rho"] == rows[1]["rho"] != rows[2]["rho"] and all(
        0.01 < row["rho"] < 10 for row in rows
    )
    assert forker.run(command(tmp_path / "cut", **settings), crash=12) == -signal.SIGKILL, (
        forker.printed()
    )
    assert len(metrics(tmp_path / "cut")) in range(2, 5)
    assert forker.run(command(tmp_path / "cut", "--resume", **settings)) == 0, forker.printed()
    same_run(tmp_path / "cut", tmp_path / "1")


def test_the_radius_moves_towards_the_better_branch() -> None:
    radius = Radius(RadiusConfig(sigma=0.3, lr=1.0), 0.1, 0)
    for _ in range(200):  # held-out log loss: a parabola in log rho, best at 0.4
        eps, rhos = radius.pair()
        radius.learn(eps, [0.5 * math.log(rho / 0.4) ** 2 for rho in rhos])
    assert radius.rho == pytest.approx(0.4, rel=0.02)
    eps, _ = radius.pair()
    before = radius.rho
    radius.learn(eps, [math.inf, math.inf])
    assert radius.rho == before


def test_engine_graph_has_the_same_bits(tmp_path: Path) -> None:
    for engine in ("eager", "graph"):
        train(tmp_path / engine, engine=engine, **REAL)
    ours, theirs = (final_state(tmp_path / engine)[1] for engine in ("eager", "graph"))
    assert ours == theirs


def test_control_gets_the_same_meta_compute(tmp_path: Path) -> None:
    """Counted in gradient evaluations: 1 + 1 + 3 per plain step of second-order TBPTT, one more
    with SAM.
    """
    config = tiny(control="sam", outer_steps=10)
    assert config.outer_steps == 12 and config.regularizer == "none"
    assert compute_factor(config) == pytest.approx(6 / 5)
    assert compute_factor(tiny(control="sam", absorb="batch=independent")) == pytest.approx(7 / 5)
    assert compute_factor(tiny(control="gsam")) == pytest.approx(8 / 5)  # it pulls back twice
    assert compute_factor(tiny(control="sam", absorb="when=end")) == pytest.approx(1 + 1 / 6 / 5)
    assert compute_factor(tiny(control="sam", absorb="when=last,last=3")) == pytest.approx(
        1 + 1 / 2 / 5
    )
    assert compute_factor(tiny(control="gam:exact=false", estimator="pes")) == pytest.approx(5 / 2)
    assert compute_factor(tiny(control="looksam")) == pytest.approx(6 / 5)  # in an unroll it is SAM
    assert compute_factor(tiny(control="s2sam")) == pytest.approx(6 / 5)
    ahead = "hyper-adamw:sam_rho=0.1,sam_gradients=1"  # which has no gradient at its weights
    assert compute_factor(tiny(control="sam", learned=ahead)) == pytest.approx(7 / 5)
    both = "hyper-adamw:sam_rho=0.1"
    assert compute_factor(tiny(control="sam", learned=both)) == pytest.approx(7 / 6)
    train(tmp_path, **REAL, control="sam", outer_steps=2)
    assert len(metrics(tmp_path)) == 3


def test_a_learned_radius_moves_and_the_face_asks_for_its_wrapper(tmp_path: Path) -> None:
    train(tmp_path, **REAL, learned="hyper-adamw:sam_rho=0.2")
    assert any(final_state(tmp_path)[1]["outer.theta.log_rho"])
    model = torch.nn.Linear(3, 2)
    inner = Learned(model.named_parameters(), tmp_path / "optimizer.safetensors", num_steps=10)
    x = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = (model(x) ** 2).mean()
        loss.backward()
        return loss

    optimizer: Any = inner
    with pytest.raises(UserError, match="Regularized"):
        inner.step(closure)
    assert inner.explicit is not None
    optimizer = Regularized(inner, inner.explicit)
    losses = [float(optimizer.step(closure).detach()) for _ in range(5)]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"learn_rho": "phase=2"}, "--regularizer"),
        ({"regularizer": "weight_decay", "learn_rho": "phase=2"}, "radius"),
        ({"regularizer": "sam+gam", "learn_rho": "phase=2"}, "radius"),
        ({"regularizer": "sam", "learn_rho": "phsae=2"}, '"phase"'),
        ({"regularizer": "sam", "learn_rho": "sigma=0"}, "sigma"),
        ({"regularizer": "sam", "learn_rho": "lr=1", "objective": "train"}, "held-out"),
        ({"regularizer": "smm"}, '"sam"'),
        ({"regularizer": "sam:roh=1"}, '"rho"'),
        ({"regularizer": "sam:rho=0"}, "rho"),
        ({"regularizer": "sam:rho=-0.1"}, "rho"),
        ({"regularizer": "sam", "absorb": "wehn=end"}, '"when"'),
        ({"regularizer": "sam", "absorb": "when=lats"}, "late"),
        ({"absorb": "when=end"}, "--regularizer"),
        ({"regularizer": "gsam+gam"}, "space=params"),
        ({"regularizer": "sam", "control": "sam"}, "--control"),
        ({"regularizer": "sam", "inner_backend": "higher"}, "--inner-backend"),
        ({"control": "smm"}, '"sam"'),
        ({"regularizer": "sam", "absorb": "attached=true", "estimator": "pes"}, "tbptt"),
        ({"regularizer": "fsam", "absorb": "attached=true"}, "scalar value"),
        ({"learned": "hyper-adamw:sam_rho=0.05", "objective": "train"}, "held-out"),
        ({"learned": "hyper-adamw:sam_rho=-1"}, "sam_rho"),
        ({"learned": "hyper-adamw:sam_gradients=1"}, "sam_rho above 0"),
        ({"learned": "hyper-adamw:sam_rho=0.1,sam_gradients=3"}, "sam_gradients"),
        ({"engine": "grpah"}, '"graph"'),
        ({"learned": "hyper-adamw:sam_rho=0.05", "inner_backend": "higher"}, "sam_rho"),
    ],
)
def test_bad_input(
    settings: dict[str, Any], expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert expected in refused(command(tmp_path / "run", **settings), tmp_path / "run", capsys)


def test_the_score_has_the_regularized_validation_loss() -> None:
    settings = {**REAL, "regularizer": "sam:rho=0.5", "absorb": "strength=3"}
    stage, found = Stage("hyper-adamw", {}), {}
    learned = stage.build()
    theta = learned.theta()
    for how in ("plain", "regularized"):
        host = ShardHost(WorkerSetup(tiny(**settings, score=how)), [])
        ((found[how], _),) = host.validate(stage, [theta], [Unit(0, 0)]).values()
    plain, raised = found["plain"], found["regularized"]
    for name in ("mean", "final", "rise"):
        assert plain[name] == raised[name]
    problem = host.problems[0]
    task, seeds = problem.task, problem.seeds[:8]
    done = rollout(task, learned, [theta], seeds, problem.steps, splits=("valid",))
    layout, batch = Family(task, learned).layout, task.full("valid")
    for s, params in enumerate(done.params[0]):
        w = params.requires_grad_()

        def loss(w: torch.Tensor) -> torch.Tensor:
            return task.loss(layout.unflatten(w), {}, batch, torch.tensor(0))[0]

        (g,) = torch.autograd.grad(loss(w), w)
        rise = loss(w + 0.5 * g / g.norm()) - loss(w)
        change = raised["valid"][0][s] - plain["valid"][0][s]
        assert change == pytest.approx(3 * rise.item(), rel=1e-4)


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({}, "give --regularizer"),
        ({"control": "sam"}, "give --regularizer"),
        ({"regularizer": "gam:exact=false"}, "scalar value"),
    ],
)
def test_a_regularized_score_needs_a_value(settings: dict[str, str], wanted: str) -> None:
    with pytest.raises(UserError, match=wanted):
        tiny(score="regularized", **settings)


def test_gsam_is_scored_by_the_loss_that_it_shares_with_sam() -> None:
    assert tiny(score="regularized", regularizer="gsam").absorption is not None
