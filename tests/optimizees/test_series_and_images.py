"""``ett`` and ``resnet`` in what trains and judges optimizers: meta-gradients, meta-training,
transfer, sharpness; and trained on real files.
"""

from __future__ import annotations

import json
import math

import pytest
import torch

from lo_framework.estimators import Truncation, make_estimator
from lo_framework.eval.baselines import make_baseline, make_thetas
from lo_framework.eval.cli import main
from lo_framework.inner.rollout import rollout
from lo_framework.inner.step import Family
from lo_framework.learned import make_learned
from lo_framework.meta_train.cli import main as meta_train
from lo_framework.objectives import make_objective
from lo_framework.optimizees import forecasting, make_tasks
from lo_framework.optimizees.datasets import ett
from tests.eval.sharpness.evaluations import optimizer_file, tiny_level
from tests.optimizees.datasets.files import ett_csv, write
from tests.optimizees.texts.contract import seeded

SPECS = (
    "ett:size=tiny,window=5,horizon=2,width=4,ffn=4,dropout=0.1,batch=2",
    "resnet:size=tiny,width=2,dropout=0.1,augment=1,batch=2",
)
FLAGS = [*("--steps", "3", "--seeds", "2", "--tuning-seeds", "1", "--grid-size", "2")]
FLAGS += ["--progress", "none", "--workers", "1"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A data folder with a short series."""
    monkeypatch.setattr(ett, "ROWS", 100)
    monkeypatch.setattr(forecasting, "MONTH", 5)
    monkeypatch.delenv("LO_DATA_DIR", raising=False)
    write(tmp_path / "data" / "ETT-small", {"ETTh1.csv": ett_csv(100)[0]})
    return tmp_path / "data"


@pytest.mark.parametrize("spec", SPECS)
def test_meta_gradients_through_second_derivatives(folder, spec):
    """By the plain engine and by the recording one: the same bits."""
    (task,) = make_tasks(spec, data_dir=folder)
    learned, found = make_learned("hyper-adamw"), []
    for engine in ("eager", "graph"):
        estimator = make_estimator(
            "tbptt",
            Family(task, learned, engine),
            make_objective("valid"),
            Truncation(unroll_length=3, episode=(3, 3)),
            2,
        )
        theta = learned.theta()
        found.append(estimator.estimate(theta, estimator.init_state(theta, seeded()))[0].grad)
    assert any(v.any() for v in found[0].values())
    for key, value in found[0].items():
        assert torch.isfinite(value).all()
        assert torch.equal(value, found[1][key]), key


def test_meta_training(folder, tmp_path):
    flags = {
        **{"out": tmp_path / "run", "optimizees": ",".join(SPECS), "data-dir": folder},
        **{"learned": "hyper-adamw", "outer-steps": 2, "unroll-length": 3, "episode-length": 3},
        **{"num-tasks": 2, "shards": 2, "workers": 1, "probes": "none"},
    }
    words = [str(x) for key, value in flags.items() for x in (f"--{key}", value)]
    assert meta_train([*words, "--no-evaluate"]) == 0
    assert (tmp_path / "run" / "optimizer.safetensors").is_file()


def test_transfer_shows_the_tasks_own_metric(folder, tmp_path, capsys):
    out = tmp_path / "out"
    specs = ["--optimizees", ",".join(SPECS), "--data-dir", str(folder)]
    file = str(optimizer_file(tmp_path / "run"))
    assert main(["transfer", "--learned", file, *specs, *FLAGS, "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "test MAE" in shown and "test acc." in shown
    for arm in json.loads((out / "transfer.json").read_text())["arms"]:
        series = arm["task"].startswith("ett")
        for runs in arm["runs"]:
            assert ("test_mae" in runs["metrics"]) == series
            assert ("test_accuracy" in runs["metrics"]) != series
        assert ("test_mae" in arm["chosen"]) == series
    assert main(["report", str(out)]) == 0


def test_sharpness(folder, tmp_path):
    """Batch normalisation is in evaluation mode there: a row's loss is a function of the row."""
    out = tmp_path / "out"
    specs = ["--optimizees", ",".join(SPECS), "--data-dir", str(folder)]
    more = ["--radii", "0.01", "--baselines", "adamw"]
    file = str(optimizer_file(tmp_path / "run"))
    with tiny_level():
        done = main(["sharpness", "--learned", file, *specs, *FLAGS, *more, "--out", str(out)])
    assert done == 0
    for arm in json.loads((out / "sharpness.json").read_text())["arms"]:
        assert arm["failure"] == ""
        for run in arm["runs"]:
            assert run["failure"] == "" and run["equal"]["failures"] == {}
    (task,) = make_tasks(SPECS[1])
    params, buffers = task.init(seeded())
    x, y = task.full("valid")
    whole = task.metrics(params, buffers, (x, y))["loss"]
    alone = [task.metrics(params, buffers, (x[i : i + 1], y[i : i + 1]))["loss"] for i in range(9)]
    first = task.metrics(params, buffers, (x[:9], y[:9]))["loss"]
    torch.testing.assert_close(torch.stack(alone).mean(), first)
    assert math.isfinite(whole)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spec", "dataset"), [("ett", "digits"), ("resnet", "cifar10:size=16")], ids=["ett", "resnet"]
)
def test_adamw_learns_real_files(data_dir, spec, dataset):
    """At least 20% below the loss of the last value, or of the shares of the classes."""
    (task,) = make_tasks(spec, dataset, data_dir)
    adamw = make_baseline("adamw")
    thetas = make_thetas(adamw, [{"lr": 0.003, "cosine": 1.0}])
    loss = float(rollout(task, adamw, thetas, [0], 300, splits=("test",)).final["test.loss"])
    yardstick = task.naive_loss("test")
    print(f"\n{task.name}: test loss {loss:.3f}, yardstick {yardstick:.3f}")
    assert loss < 0.8 * yardstick
