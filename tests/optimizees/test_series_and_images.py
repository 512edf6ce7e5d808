"""``ett`` and ``resnet`` in what trains and judges optimizers: meta-gradients, meta-training,
transfer, sharpness; and trained on real files.
"""

from __future__ import annotations

import math

import pytest
import torch

from lo_framework.eval.baselines import make_baseline, make_thetas
from lo_framework.inner.rollout import rollout
from lo_framework.optimizees import forecasting, make_tasks
from lo_framework.optimizees.datasets import ett
from tests.optimizees.contract import (
    make,
    meta_gradients_are_those_of_any_engine,
    meta_trains,
    seeded,
    sharpness_is_measured,
    transferred,
)
from tests.optimizees.datasets.files import ett_csv, write

SPECS = (
    "ett:size=tiny,window=5,horizon=2,width=4,ffn=4,dropout=0.1,batch=2",
    "resnet:size=tiny,width=2,dropout=0.1,augment=1,batch=2",
)


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
    meta_gradients_are_those_of_any_engine(make(spec, folder))


def test_meta_training(folder, tmp_path):
    meta_trains(",".join(SPECS), folder, tmp_path / "run")


def test_transfer_shows_the_tasks_own_metric(folder, tmp_path, capsys):
    content = transferred(",".join(SPECS), folder, tmp_path / "out")
    shown = capsys.readouterr().out
    assert "test MAE" in shown and "test acc." in shown
    for arm in content["arms"]:
        series = arm["task"].startswith("ett")
        for runs in arm["runs"]:
            assert ("test_mae" in runs["metrics"]) == series
            assert ("test_accuracy" in runs["metrics"]) != series
        assert ("test_mae" in arm["chosen"]) == series


def test_sharpness(folder, tmp_path):
    """Batch normalisation is in evaluation mode there: a row's loss is a function of the row."""
    sharpness_is_measured(",".join(SPECS), folder, tmp_path / "out")
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
