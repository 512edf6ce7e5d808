"""The real files, where they are: what is in them, and that AdamW learns from them."""

from __future__ import annotations

import pytest

import lo_framework as lo
from lo_framework.eval.baselines import make_baseline, make_thetas
from lo_framework.inner.rollout import rollout
from lo_framework.optimizees.datasets import imdb, wikitext


@pytest.fixture
def folder(data_dir):
    if not ((data_dir / "wikitext-2").is_dir() and (data_dir / "aclImdb_subset").is_dir()):
        pytest.skip(f"no texts: expected wikitext-2/ and aclImdb_subset/ in {data_dir}")
    return data_dir


def test_wikitext_has_the_published_counts(folder):
    """Of words, with one for the end of each line."""
    streams = wikitext.load(str(folder), 10_000, True)
    count = {part: sum(map(len, lines)) for part, lines in streams.ids.items()}
    assert count["test"] == 245_569
    if streams.trained == "train":
        assert (count["train"], count["valid"]) == (2_088_628, 217_646)
    else:
        assert count["train"] + count["valid"] == 217_646
        assert 0.98 < count["train"] / count["valid"] < 1.02


def test_imdb_is_balanced(folder):
    for reviews in imdb.read(str(folder)).values():
        assert sum(r.label for r in reviews) * 2 == len(reviews)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spec", "rate", "steps", "lowest"),
    [("wikitext:size=small", 0.003, 1600, 0.8), ("imdb:size=small", 0.003, 300, 0.8)],
)
def test_adamw_trains_to_a_fifth_below_the_predictor_that_looks_at_nothing(
    folder, spec, rate, steps, lowest
):
    (task,) = lo.make_tasks(spec, data_dir=folder)
    adamw = make_baseline("adamw")
    thetas = make_thetas(adamw, [{"lr": rate, "cosine": 1.0}])
    run = rollout(task, adamw, thetas, [0], steps)
    assert float(run.final["train.loss"]) < lowest * task.naive_loss("train")
    if spec.startswith("wikitext"):  # 1,800 reviews do not teach a network new ones
        assert float(run.final["test.loss"]) < (lowest + 0.02) * task.naive_loss("test")
