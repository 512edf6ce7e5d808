"""Tasks on texts in what trains and judges optimizers: meta-gradients, transfer, sharpness."""

from __future__ import annotations

import pytest
import torch

import lo_framework as lo
from lo_framework.optimizees import make_variations
from tests.optimizees.contract import (
    make,
    meta_gradients_are_those_of_any_engine,
    meta_trains,
    seeded,
    sharpness_is_measured,
    transferred,
)

SPECS = {
    "wikitext": "wikitext:size=tiny,width=4,context=5,vocab=12,batch=2,dropout=0.1",
    "imdb": "imdb:size=tiny,embed=3,hidden=3,length=5,vocab=12,batch=2,dropout=0.1",
    "multi30k": "multi30k:size=tiny,width=4,length=4,vocab=12,batch=2,dropout=0.1",
}


@pytest.mark.parametrize("name", SPECS)
def test_meta_gradients_through_second_derivatives(texts, name):
    meta_gradients_are_those_of_any_engine(make(SPECS[name], texts))


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
    meta_trains(SPECS[name], texts, tmp_path / "run")


def test_transfer_shows_the_tasks_own_metric_and_says_what_the_data_are(texts, tmp_path, capsys):
    content = transferred(",".join(SPECS.values()), texts, tmp_path / "out")
    shown = capsys.readouterr().out
    assert "test ppl" in shown and "test acc." in shown
    assert "trained on one half of WikiText-2's validation split" in shown
    assert "20 of IMDB's 25,000 training reviews" in shown
    for arm in content["arms"]:
        for runs in arm["runs"]:
            measured = runs["metrics"]
            if not arm["task"].startswith("imdb"):
                losses = torch.tensor(measured["test_loss"])
                expected = torch.tensor(measured["test_perplexity"])
                torch.testing.assert_close(losses.exp(), expected)
            assert ("test_perplexity" in measured) != arm["task"].startswith("imdb")


def test_sharpness(texts, tmp_path):
    sharpness_is_measured(",".join(SPECS.values()), texts, tmp_path / "out")


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
