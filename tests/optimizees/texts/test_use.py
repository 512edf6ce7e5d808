"""Tasks on texts in what trains and judges optimizers: meta-gradients, transfer, sharpness."""

from __future__ import annotations

import json

import pytest
import torch

import lo_framework as lo
from lo_framework.estimators import Truncation, make_estimator
from lo_framework.eval.cli import main
from lo_framework.inner.step import Family
from lo_framework.learned import make_learned
from lo_framework.meta_train.cli import main as meta_train
from lo_framework.objectives import make_objective
from lo_framework.optimizees import make_variations
from tests.eval.sharpness.evaluations import optimizer_file, tiny_level
from tests.optimizees.texts.contract import seeded

SPECS = {
    "wikitext": "wikitext:size=tiny,width=4,context=5,vocab=12,batch=2,dropout=0.1",
    "imdb": "imdb:size=tiny,embed=3,hidden=3,length=5,vocab=12,batch=2,dropout=0.1",
    "multi30k": "multi30k:size=tiny,width=4,length=4,vocab=12,batch=2,dropout=0.1",
}
FLAGS = [*("--steps", "3", "--seeds", "2", "--tuning-seeds", "1", "--grid-size", "2")]
FLAGS += ["--progress", "none", "--workers", "1"]


@pytest.mark.parametrize("name", SPECS)
def test_meta_gradients_through_second_derivatives(texts, name):
    """By the plain engine and by the recording one: the same bits."""
    (task,) = lo.make_tasks(SPECS[name], data_dir=texts)
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


@pytest.mark.parametrize("name", SPECS)
def test_on_another_device(texts, name):
    """All that a task holds goes there: masks, places, texts."""
    task = lo.make_tasks(SPECS[name], data_dir=texts)[0].to("meta")
    params, _ = task.init(seeded())
    batch = task.batch("train", seeded())
    loss, _ = task.loss(params, {}, batch, torch.tensor(0, device="meta"))
    found = [*params.values(), *batch, *task.full("test"), loss]
    assert {x.device.type for x in found} == {"meta"}


@pytest.mark.parametrize("name", SPECS)
def test_meta_training(texts, tmp_path, name):
    flags = {
        **{"out": tmp_path / "run", "optimizees": SPECS[name], "data-dir": texts},
        **{"learned": "hyper-adamw", "outer-steps": 2, "unroll-length": 3, "episode-length": 3},
        **{"num-tasks": 2, "shards": 1, "workers": 1, "probes": "none"},
    }
    words = [str(x) for key, value in flags.items() for x in (f"--{key}", value)]
    assert meta_train([*words, "--no-evaluate"]) == 0
    assert (tmp_path / "run" / "optimizer.safetensors").is_file()


def test_transfer_shows_the_tasks_own_metric_and_says_what_the_data_are(texts, tmp_path, capsys):
    out = tmp_path / "out"
    specs = ["--optimizees", ",".join(SPECS.values()), "--data-dir", str(texts)]
    file = str(optimizer_file(tmp_path / "run"))
    assert main(["transfer", "--learned", file, *specs, *FLAGS, "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "test ppl" in shown and "test acc." in shown
    assert "trained on one half of WikiText-2's validation split" in shown
    assert "20 of IMDB's 25,000 training reviews" in shown
    arms = json.loads((out / "transfer.json").read_text())["arms"]
    for arm in arms:
        for runs in arm["runs"]:
            measured = runs["metrics"]
            if not arm["task"].startswith("imdb"):
                losses = torch.tensor(measured["test_loss"])
                expected = torch.tensor(measured["test_perplexity"])
                torch.testing.assert_close(losses.exp(), expected)
            assert ("test_perplexity" in measured) != arm["task"].startswith("imdb")
    assert main(["report", str(out)]) == 0


def test_sharpness(texts, tmp_path):
    out = tmp_path / "out"
    specs = ["--optimizees", ",".join(SPECS.values()), "--data-dir", str(texts)]
    more = ["--radii", "0.01", "--baselines", "adamw"]
    file = str(optimizer_file(tmp_path / "run"))
    with tiny_level():
        done = main(["sharpness", "--learned", file, *specs, *FLAGS, *more, "--out", str(out)])
    assert done == 0
    for arm in json.loads((out / "sharpness.json").read_text())["arms"]:
        assert arm["failure"] == ""
        for run in arm["runs"]:
            assert run["failure"] == "" and run["equal"]["failures"] == {}


def test_options_may_be_ranges(texts):
    """What is not given is the size's, also where others are drawn."""
    specs = ["wikitext:size=tiny,width=8|16,context=4..9", "imdb:size=tiny,hidden=2..5"]
    specs.append("multi30k:size=tiny,width=4|8,batch=2..6")
    for family in make_variations(specs, data_dir=texts):
        drawn = {family.draw(seeded(k)).name for k in range(8)}
        assert len(drawn) > 2
        assert all("size=tiny" in name for name in drawn)
        named = family.named()
        assert named.name == f"{named.name.partition(':')[0]}:size=tiny"
