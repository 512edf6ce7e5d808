"""A user's own task and learned optimizer from the command line, and ``--inner-backend higher``."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from lo_framework.learned import load_optimizer, make_learned
from lo_framework.meta_train.cli import main
from lo_framework.plugin import load_plugins
from tests.meta_train.tools import Forker, command, metrics, same_run, train

HERE = Path(__file__).parent
TASKS, LEARNED = str(HERE / "plugin_tasks.py"), str(HERE / "plugin_learned.py")
TRAINING = str(HERE / "plugin_training.py")
OWN = {
    "estimator": "spsa:sigma=0.02",
    "objective": "valid+overfit:power=2",
    "weighting": "last_heavy",
    "optimizees": "mlp:hidden=2,batch=4",
}


def test_a_task_of_ones_own(tmp_path: Path) -> None:
    argv = command(tmp_path / "run", "--plugin", TASKS, optimizees="sick:share=0")
    assert main(argv) == 0
    assert list(metrics(tmp_path / "run")[0]["families"]) == ["sick:share=0"]


def test_without_its_plugin_it_is_unknown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(tmp_path / "run", optimizees="sick")) == 2
    assert 'unknown optimizee "sick"' in capsys.readouterr().err


def test_a_learned_optimizer_of_ones_own(tmp_path: Path) -> None:
    argv = command(tmp_path / "run", "--plugin", LEARNED, learned="slope:lr=0.2")
    assert main(argv) == 0
    file = load_optimizer(tmp_path / "run" / "optimizer.safetensors")
    assert file.kind == "slope" and file.config == {"lr": 0.2}
    learned = make_learned(file.kind, **file.config)
    learned.load_theta(file.tensors)
    assert set(learned.theta()) == {"head.weight", "head.bias"}


def test_plugins_reach_the_workers_and_start_alike_everywhere(
    forker: Forker, tmp_path: Path
) -> None:
    """Three shards of two families on two processes: an uneven share. The start was drawn from the
    global generator.
    """
    settings: dict[str, Any] = {
        "optimizees": "sick,quadratic:dim=2",
        "learned": "slope",
        "num_tasks": 3,
        "shards": 3,
        "outer_steps": 2,
        "validate_every": 1,
    }
    for workers in (1, 2):
        argv = command(
            tmp_path / str(workers),
            "--plugin",
            TASKS,
            "--plugin",
            LEARNED,
            workers=workers,
            **settings,
        )
        assert forker.run(argv) == 0, forker.printed()
    same_run(tmp_path / "1", tmp_path / "2")


def test_an_estimator_a_term_and_a_weighting_of_ones_own(forker: Forker, tmp_path: Path) -> None:
    """In one file, on one process or two, killed and resumed."""
    for workers in (1, 2):
        argv = command(tmp_path / str(workers), "--plugin", TRAINING, workers=workers, **OWN)
        assert forker.run(argv) == 0, forker.printed()
    same_run(tmp_path / "1", tmp_path / "2")
    rows = metrics(tmp_path / "1")
    assert [row["weights"] for row in rows] == [{"valid": 1, "overfit": i} for i in range(4)]
    for row in rows:
        (family,) = row["families"].values()
        expected = row["terms"]["valid"] + row["weights"]["overfit"] * row["terms"]["overfit"]
        assert family["meta_loss"] == pytest.approx(expected, rel=1e-4)
        assert row["grad_norm"] > 0
    argv = command(tmp_path / "cut", "--plugin", TRAINING, "--max-seconds", "1e-9", **OWN)
    assert forker.run(argv) == 0, forker.printed()
    argv = command(tmp_path / "cut", "--plugin", TRAINING, "--resume", **OWN)
    assert forker.run(argv) == 0, forker.printed()
    assert metrics(tmp_path / "cut") == rows


@pytest.mark.parametrize("name", ["estimator", "objective", "weighting"])
def test_without_their_plugin_they_are_unknown(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    known = {"estimator": "tbptt", "objective": "combined", "weighting": "sum"}
    argv = command(tmp_path / "run", **{**OWN, **known, name: OWN[name] + "_"})
    assert main(argv) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"unknown {name}" in line and "known: " in line


@pytest.mark.slow
def test_a_data_loader_with_processes_of_its_own(forker: Forker, tmp_path: Path) -> None:
    for workers in (1, 2):
        argv = command(
            tmp_path / str(workers), "--plugin", TASKS, workers=workers, optimizees="loaded"
        )
        assert forker.run(argv) == 0, forker.printed()
    same_run(tmp_path / "1", tmp_path / "2")


def test_higher_gives_the_same_run_as_vmap(tmp_path: Path) -> None:
    """The first outer step, from the same data: the same meta-loss and the same gradient."""
    rows = []
    for backend in ("torch", "higher"):
        settings: dict[str, Any] = {
            "inner_backend": backend,
            "optimizees": "quadratic:dim=3,mlp:hidden=2,batch=4",
        }
        train(tmp_path / backend, outer_steps=3, **settings)
        rows.append(metrics(tmp_path / backend)[0])
    for key in ("meta_loss", "grad_norm"):
        assert rows[0][key] == pytest.approx(rows[1][key], rel=1e-4)
    assert rows[1]["nonfinite"] == 0


def test_higher_takes_what_vmap_cannot(tmp_path: Path) -> None:
    """Meta-training, validation and a resume, all without ``vmap``."""
    load_plugins([TASKS])
    settings: dict[str, Any] = {
        "optimizees": "recurrent",
        "inner_backend": "higher",
        "plugins": (TASKS,),
    }
    best = train(tmp_path / "whole", **settings)
    assert best.kind == "hyper-adamw" and best.score <= 1.0
    assert all(row["skipped"] == 0 and row["grad_norm"] > 0 for row in metrics(tmp_path / "whole"))
    train(tmp_path / "cut", max_seconds=1e-9, **settings)
    train(tmp_path / "cut", resume=True, **settings)
    assert metrics(tmp_path / "cut") == metrics(tmp_path / "whole")


def test_tasks_that_fall_ill_with_higher(tmp_path: Path) -> None:
    load_plugins([TASKS])
    best = train(
        tmp_path / "run", optimizees="sick", inner_backend="higher", plugins=(TASKS,), num_tasks=4
    )
    assert any(row["nonfinite"] > 0 for row in metrics(tmp_path / "run"))
    assert all(torch.isfinite(x).all() for x in best.theta.values())


def test_the_warnings_of_higher_are_kept_out() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        from lo_framework.estimators.higher import import_higher

        import_higher()
