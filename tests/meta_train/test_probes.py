"""Probes: which there are, how they are scored, what they veto."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest

import lo_framework as lo
from lo_framework.learned import load_optimizer, make_learned
from lo_framework.meta_train import judges
from lo_framework.meta_train.config import Program
from lo_framework.meta_train.growth import Stage
from lo_framework.meta_train.incumbent import START_LRS, with_lr
from lo_framework.meta_train.judges import ByProbes
from lo_framework.meta_train.problems import USUAL
from lo_framework.meta_train.run import MetaTraining
from lo_framework.meta_train.workers import Workers, WorkerSetup
from lo_framework.spec import UserError
from tests.meta_train.tools import metrics, tiny, train


def probes(**changes: Any) -> list[str]:
    setup = WorkerSetup(tiny(**changes))
    pool = setup.make_pool()
    return [problem.name for problem in setup.make_problems(pool)[len(pool) :]]


def test_the_usual_ones_are_for_families_that_vary() -> None:
    assert probes(optimizees="mlp") == []
    assert probes(optimizees="mlp", vary="usual", probes="none") == []
    usual = probes(optimizees="mlp,cnn", vary="usual")
    assert len(usual) == len(USUAL)
    assert usual[0] == "mlp-relu:hidden=256x256/digits@100" and "mlp/digits@1000" in usual


def test_usual_ones_inside_the_pool_are_left_out() -> None:
    wide = probes(optimizees="mlp-relu:hidden=8..512,layers=1..3,cnn", episode_length="200")
    assert "mlp-relu:hidden=256x256/digits@100" not in wide and len(wide) == len(USUAL) - 1


def test_data_set_and_steps() -> None:
    given = "mlp:hidden=300,cnn:channels=64,batch=32/digits@70"
    expected = ["mlp:hidden=300/digits@200", "cnn:channels=64,batch=32/digits@70"]
    assert probes(probes=given) == expected


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("mlp:hidden=16x100", 'is in the pool, among "mlp:'),
        ("mlp:hidden=16x100@300", "is in the pool"),
        ("mlp:hidden=200@", "expected steps after @"),
        ("mlp:hidden=200@0", "expected steps after @"),
        ("mlp:hidden=200@ten", "expected steps after @"),
        ("mpl:hidden=200", '"mlp"'),
        ("mlp:hiden=200", '"hidden"'),
        ("mlp:hidden=200/digit", '"digits"'),
        ("mlp:hidden=200,mlp:hidden=200@200", "twice"),
        ("mlp,,cnn", "empty"),
    ],
)
def test_bad_probes(given: str, expected: str) -> None:
    with pytest.raises(UserError) as error:
        probes(optimizees="mlp", vary="usual", probes=given, episode_length="300")
    assert expected in str(error.value) and "\n" not in str(error.value)


def test_longer_episodes_are_outside() -> None:
    assert probes(optimizees="mlp", vary="usual", probes="mlp:hidden=16@7", episode_length="6")


def test_a_radius_is_learned_on_families(tmp_path: Any) -> None:
    config = tiny(regularizer="sam:rho=0.1", learn_rho="phase=2", probes="quadratic:dim=9@3")
    with pytest.raises(UserError, match="--probes none"):
        MetaTraining(WorkerSetup(config, Program(out=str(tmp_path / "run"))))


def judge(count: int = 2) -> ByProbes:
    problems = [SimpleNamespace(name=f"probe {n}") for n in range(count)]
    workers: Any = SimpleNamespace(problems=problems, pool=[])
    return ByProbes(workers)


def quality(*ratios: float, rise: float = 1.0) -> list[dict[str, float]]:
    return [
        {"mean": 2 * ratio, "final": ratio, "valid": 3 * ratio, "rise": rise} for ratio in ratios
    ]


REFERENCE = quality(1.0, 1.0, rise=1.5)


def test_the_score_is_a_geometric_mean_of_clipped_ratios() -> None:
    score = judge().score
    assert score(REFERENCE, REFERENCE) == 1
    assert score(quality(0.5, 0.8), REFERENCE) == pytest.approx(math.sqrt(0.4))
    assert score(quality(0.01, 1.0), REFERENCE) == pytest.approx(math.sqrt(0.1))
    for lost in (1e9, math.inf, math.nan):
        assert score(quality(lost, 1.0), REFERENCE) == pytest.approx(math.sqrt(10))
    uneven = [{"mean": 1.0, "final": 2.0, "valid": 3.0, "rise": 1.0}] * 2
    assert score(uneven, REFERENCE) == pytest.approx(1.0)


def test_an_early_rise_counts_beyond_that_of_adamw() -> None:
    score = judge().score
    assert score(quality(1.0, 1.0, rise=1.5), REFERENCE) == 1
    assert score(quality(1.0, 1.0, rise=6.0), REFERENCE) == pytest.approx(4**judges.RISE)
    diverged = quality(1.0, 1.0, rise=math.inf)
    assert score(diverged, REFERENCE) == pytest.approx(10**judges.RISE)


@pytest.mark.parametrize(
    ("best", "new", "vetoed"),
    [
        ((0.9, 0.9), (0.5, 1.0), ""),
        ((0.9, 0.9), (0.3, 1.09), "probe 1 is at 1.09 of tuned AdamW, and was at 0.90"),
        ((0.9, 1.4), (0.3, 1.51), "probe 1 is at 1.51 of tuned AdamW, above 1.5"),
        ((3.0, 1.4), (2.0, 1.6), ""),  # none has passed yet
        ((3.0, 1.4), (2.0, 1.7), "probe 1"),
        ((3.0, 1.4), (1.0, 1.5), ""),
        ((math.inf, 1.0), (math.inf, 0.9), ""),
        ((1.5, 1.0), (math.inf, 0.1), "probe 0 is at 10.00"),
    ],
)
def test_vetoes(best: tuple[float, ...], new: tuple[float, ...], vetoed: str) -> None:
    found = judge().veto(quality(*new), quality(*best), REFERENCE)
    assert found.startswith(vetoed) if vetoed else found == ""


def test_the_reference_is_the_best_of_a_grid(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judges, "LRS", (1e-4, 1e-2, 1e3))
    workers = Workers(
        WorkerSetup(tiny(probes="mlp:hidden=4,batch=8@30"), Program(workers=1)), shards=2
    )
    probes = ByProbes(workers)
    tried: list[Any] = []
    measure = probes.measure
    monkeypatch.setattr(probes, "measure", lambda *given: tried.extend(measure(*given)) or tried)
    (best,) = probes.reference()
    slow, good, far = (each[0] for each in tried)
    assert best == good and good["final"] < slow["final"]
    assert good["rise"] < 1.2 and not far["final"] < good["final"]
    assert probes.names == ["mlp:hidden=4,batch=8/digits@30"]


def test_the_log_says_how_probes_stand(tmp_path: Any) -> None:
    train(tmp_path / "run", probes="quadratic:dim=9@4,quadratic:dim=8@4")
    rows = [row for row in metrics(tmp_path / "run") if "probes" in row]
    assert [row["step"] for row in rows] == [2, 4]
    assert set(rows[0]["probes"]) == {"quadratic:dim=9@4", "quadratic:dim=8@4"}
    summary = load_optimizer(tmp_path / "run" / "optimizer.safetensors").summary
    assert [set(q) for q in summary["quality"]] == [{"mean", "final", "valid", "rise"}] * 2


def test_the_start_is_tuned_on_probes() -> None:
    config = tiny(probes="mlp:hidden=4,batch=8@20,quadratic:dim=9@20")
    probes = ByProbes(Workers(WorkerSetup(config, Program(workers=1)), shards=2))
    stage = Stage("hyper-adamw", {})
    lr, theta, quality = probes.start(stage, None)
    assert (
        lr in START_LRS
        and with_lr(theta["default"] * 0, stage.build().config, lr)[0] == (theta["default"][0])
    )
    reference = probes.reference()
    for other in START_LRS:
        own = stage.build().theta()
        own["default"] = with_lr(own["default"], stage.build().config, other)
        again = probes.start(stage, own)
        assert again[0] == 1 and again[1] is own
        assert probes.score(again[2], reference) >= probes.score(quality, reference) - 1e-9
    assert probes.start(Stage("lstm", {"hidden": 2}), None)[0] == 1


def test_a_run_on_probes_from_weights_of_ones_own(tmp_path: Any) -> None:
    learned = make_learned("hyper-adamw:lr=0.05")
    settings = {"outer_steps": 1, "num_tasks": 2, "shards": 1, "unroll_length": 2}
    found = lo.train(
        "quadratic:dim=3",
        learned,
        quiet=True,
        out=tmp_path / "run",
        episode_length="4",
        probes="quadratic:dim=9@5",
        **settings,
    )
    assert found.config == learned.config
    summary = load_optimizer(tmp_path / "run" / "optimizer.safetensors").summary
    assert summary["reference_lr"] == 1 and len(summary["reference"]) == 1
