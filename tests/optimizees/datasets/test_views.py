"""Views of digits, and teachers: inputs, targets, noise, names, and what is kept."""

import pytest
import torch

from lo_framework.optimizees import datasets, make_tasks
from lo_framework.optimizees.datasets import load
from lo_framework.spec import UserError


def rows(spec, split="train"):
    return load(spec).splits[split]


def test_a_projection_is_one_matrix_for_all_splits():
    plain, seen = load("digits"), load("digits:project=16,seed=5")
    assert seen.shape == (16,) and seen.num_classes == 10
    x = torch.cat([plain.splits[s][0].flatten(1) for s in plain.splits])
    y = torch.cat([seen.splits[s][0] for s in seen.splits])
    matrix = torch.linalg.lstsq(x, y, driver="gelsd").solution
    torch.testing.assert_close(x @ matrix, y, atol=1e-4, rtol=1e-4)
    size = x.square().mean() / y.square().mean()
    assert 0.5 < size < 2
    for split in plain.splits:
        assert torch.equal(rows("digits", split)[1], rows("digits:project=16,seed=5", split)[1])
    assert not torch.equal(
        y, torch.cat([rows("digits:project=16,seed=6", s)[0] for s in plain.splits])
    )


@pytest.mark.parametrize("spec", ["digits", "teacher"])
def test_noise_replaces_a_share_of_the_training_labels(spec):
    x, y = rows(f"{spec}:seed=3" if spec == "teacher" else spec)
    noisy_x, noisy = rows(f"{spec}:noise=0.3,seed=3")
    assert torch.equal(x, noisy_x)
    classes = load(spec).num_classes
    assert (y != noisy).float().mean() == pytest.approx(0.3 * (1 - 1 / classes), abs=0.04)
    for split in ("valid", "test"):
        assert torch.equal(
            rows(f"{spec}:seed=3", split)[1], rows(f"{spec}:noise=0.3,seed=3", split)[1]
        )


@pytest.mark.parametrize("spec", ["digits:", "teacher:inputs=20,"])
def test_regression_targets_are_a_function_of_the_inputs(spec):
    seen = load(f"{spec}target=regress,outputs=3,seed=2")
    assert (seen.num_classes, seen.outputs, seen.reconstructs) == (None, 3, False)
    _, y = seen.splits["train"]
    assert y.shape[1] == 3 and y.dtype == torch.float32
    torch.testing.assert_close(y[:1024].mean(0), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(y[:1024].std(0), torch.ones(3), atol=1e-4, rtol=0)
    assert 0.5 < seen.splits["valid"][1].std() < 1.5  # the function of the training rows, elsewhere


def test_a_reconstruction_has_its_inputs_as_targets():
    for spec in ("digits:target=reconstruct", "digits:target=reconstruct,project=17"):
        seen = load(spec)
        assert seen.reconstructs and seen.num_classes is None
        for x, y in seen.splits.values():
            assert torch.equal(x.flatten(1), y)


def test_a_view_has_one_name():
    assert load("digits:seed=4").name == "digits"
    assert (
        load("digits:seed=4,target=reconstruct,noise=0.1,outputs=2").name
        == "digits:target=reconstruct"
    )
    assert load("digits:outputs=7") is load("digits")
    assert load("digits:seed=4,noise=0.1").name == "digits:noise=0.1,seed=4"
    assert load("teacher:target=reconstruct,outputs=9,seed=1").name == (
        "teacher:target=reconstruct,seed=1"
    )


def test_a_teacher():
    seen = load("teacher:inputs=24,outputs=5,rows=2000,seed=1")
    assert {split: len(x) for split, (x, _) in seen.splits.items()} == {
        "train": 1500,
        "valid": 250,
        "test": 250,
    }
    assert seen.shape == (24,) and load("teacher:inputs=64").shape == (1, 8, 8)
    _, y = seen.splits["train"]
    assert set(y.tolist()) == set(range(5)) and y.bincount().min() > 60
    again = rows("teacher:inputs=24,outputs=5,rows=2000,seed=2")
    assert not torch.equal(seen.splits["train"][0], again[0])
    deviations = torch.linalg.svdvals(rows("teacher:inputs=64,decay=1")[0].flatten(1))
    assert deviations[0] / deviations[-1] > 30
    assert rows("teacher:inputs=64,decay=1")[0].std() == pytest.approx(1, abs=0.3)


def test_few_drawn_views_are_kept():
    first = load("teacher:rows=8,seed=1")
    assert load("teacher:rows=8,seed=1") is first
    for seed in range(2, datasets.DRAWN + 2):
        load(f"teacher:rows=8,seed={seed}")
    assert len(datasets._drawn) == datasets.DRAWN
    again = load("teacher:rows=8,seed=1")
    assert again is not first
    assert all(torch.equal(a, b) for a, b in zip(again.splits["train"], first.splits["train"]))


@pytest.mark.parametrize(
    ("optimizee", "spec", "words"),
    [
        ("mlp", "digits:target=regres", '(did you mean "regress"?)'),
        ("mlp", "digits:noise=1.5", "at least 0 and at most 1"),
        ("mlp", "teacher:outputs=1", "outputs=1: labels are of at least 2 classes"),
        ("mlp", "techer", '(did you mean "teacher"?)'),
        ("cnn", "digits:project=32", "cnn needs images: digits:project=32 has rows of 32 numbers"),
        ("transformer", "teacher:inputs=20", "transformer needs images"),
        ("mlp", "mnist:project=4", 'unknown option "project"'),
    ],
)
def test_bad_views(optimizee, spec, words):
    with pytest.raises(UserError) as error:
        make_tasks(optimizee, spec)
    assert words in str(error.value) and "\n" not in str(error.value)
