"""The real files, where they are: what is in them, and that AdamW learns from them."""

from __future__ import annotations

import pytest

import lo_framework as lo
from lo_framework.eval.baselines import make_baseline, make_thetas
from lo_framework.inner.rollout import rollout
from lo_framework.optimizees.datasets import imdb, multi30k, wikitext


@pytest.fixture
def folder(data_dir):
    names = ("wikitext-2", "aclImdb_subset", "multi30k")
    if absent := [name for name in names if not (data_dir / name).is_dir()]:
        pytest.skip(f"no texts: expected {', '.join(absent)} in {data_dir}")
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


def test_multi30k_has_the_published_counts(folder):
    count = {part: len(each["en"]) for part, each in multi30k.read(str(folder)).items()}
    assert count == {"train": 29_000, "valid": 1014, "test": 1000}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spec", "steps", "on_test"),
    [
        ("wikitext:size=small", 1600, 0.82),
        ("imdb:size=small", 300, None),  # 1,800 reviews do not teach a network others
        ("multi30k:size=small", 1000, 0.6),
    ],
)
def test_adamw_trains_to_a_fifth_below_the_predictor_that_looks_at_nothing(
    folder, spec, steps, on_test
):
    """The losses in parts of that predictor's, of the training split and of the test split."""
    (task,) = lo.make_tasks(spec, data_dir=folder)
    adamw = make_baseline("adamw")
    thetas = make_thetas(adamw, [{"lr": 0.003, "cosine": 1.0}])
    run = rollout(task, adamw, thetas, [0], steps)
    assert float(run.final["train.loss"]) < 0.8 * task.naive_loss("train")
    if on_test is not None:
        assert float(run.final["test.loss"]) < on_test * task.naive_loss("test")
