"""Groups of MetaAdamW: the published ones on its five models, and the corrected ones.

Where the released code asks for the class of the module that owns a parameter, an optimizer has
names, shapes and order only. So the two cannot agree where names say nothing: on a LayerNorm called
``ln``, an Embedding called ``tok``, a MultiheadAttention called ``mix``, a matrix of a class of
one's own, and on parameters without names.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lo_framework.layout import Layout
from lo_framework.learned.grouping import TYPES, Grouping, make_grouping
from tests.lo_framework.optim.metaadamw import models
from tests.lo_framework.optim.metaadamw.reference import features as slow
from tests.lo_framework.optim.metaadamw.settings import build


def groups_of(model: nn.Module, published: bool) -> Grouping:
    return make_grouping(
        Layout.of({name: p.shape for name, p in model.named_parameters()}),
        "fine_grained",
        published=published,
    )


def labels(model: nn.Module) -> dict[str, str]:
    """The corrected group of each parameter."""
    made = groups_of(model, False)
    return {
        name: made.labels[k] for (name, _), k in zip(model.named_parameters(), made.index.tolist())
    }


@pytest.mark.parametrize("task", models.PUBLISHED)
def test_published_groups_of_the_published_models(task: str) -> None:
    """As many as were counted there, and of the same table in the same order."""
    build, count = models.PUBLISHED[task]
    model = build()
    keys, made = slow.fine_grained(model), groups_of(model, True)
    assert len(set(keys)) == made.num == count
    index = made.index.tolist()
    assert slow.partition(index) == slow.partition(keys)
    kinds = {"layernorm": "norm"}
    for k, table in enumerate(slow.partition(keys)):
        kind, bucket, vector = keys[table[0]]
        place = ("early", "middle", "late")[bucket]
        assert (
            made.labels[k]
            == f"{kinds.get(kind, kind)} {place} {'vectors' if vector else 'weights'}"
        )


@pytest.mark.parametrize("reproduce", [None, "paper", "reference"])
def test_the_optimizer_has_published_groups_where_it_reproduces(reproduce: str | None) -> None:
    model = models.resnet18()
    optimizer = build(model.named_parameters(), reproduce=reproduce)
    published = len({group for group, _, _ in optimizer.table.groups}) == 4
    assert published == (reproduce is not None)


def test_without_names_published_types_are_unknown() -> None:
    """Released: ("unknown", middle, is it a bias); the corrected groups go by shapes and order."""
    shapes = [(2, 3), (3,), (4, 2, 3, 3), (4,), (5, 4), ()]
    params = [nn.Parameter(torch.ones(shape)) for shape in shapes]
    for reproduce, index in (("reference", [0, 1, 0, 1, 0, 0]), (None, [0, 1, 2, 3, 4, 5])):
        optimizer = build(params, reproduce=reproduce)
        plan = optimizer.table.plan(tuple(range(len(params))))
        assert plan.grouping.index.tolist() == index


def test_names_decide_before_shapes_and_in_the_published_order() -> None:
    """embed, attention, feed-forward, norm."""
    names = {
        "embed_norm": "embedding",
        "attn.norm.weight": "attention",
        "mlp.norm.weight": "ffn",
        "normal.bias": "norm",
        "plain.weight": "linear",
    }
    layout = Layout.of(dict.fromkeys(names, (2, 2)))
    for published in (True, False):
        made = make_grouping(layout, "fine_grained", published=published)
        found = [made.labels[k].split()[0] for k in made.index.tolist()]
        assert found == list(names.values())


@pytest.mark.parametrize(
    "numbers", [(None,), (0, 1), (0, 1, 2), (0, 1, 2, 3), (0, 5, 11), (3,), (0, 1, None)]
)
def test_published_depth_buckets(numbers: tuple[int | None, ...]) -> None:
    """Of the first number in the name against the greatest; inactive up to two layers."""
    names = [f"w{i}.weight" if n is None else f"blocks.{n}.9.weight" for i, n in enumerate(numbers)]
    made = make_grouping(Layout.of(dict.fromkeys(names, (2, 2))), "fine_grained", published=True)
    largest = max([n or 0 for n in numbers])
    for name, n, k in zip(names, numbers, made.index.tolist()):
        bucket = 1
        if n is not None and largest > 1:
            bucket = 0 if n < largest / 3 else 2 if n > 2 * largest / 3 else 1
        assert made.labels[k].split()[1] == ("early", "middle", "late")[bucket], name


def test_a_bias_by_name_is_a_vector_as_published_whatever_its_shape() -> None:
    layout = Layout.of({"fc.weight": (2, 2), "relative_bias": (2, 2)})
    assert "vectors" in make_grouping(layout, "fine_grained", published=True).labels[1]
    assert "vectors" not in " ".join(make_grouping(layout, "fine_grained").labels)


@pytest.mark.parametrize("build", [models.etth1, models.resnet18, models.imdb])
def test_corrected_depth_has_three_thirds_in_shallow_and_in_nested_nets(build: object) -> None:
    """Where the published buckets are all "middle"."""
    model = build()  # type: ignore[operator]
    assert {label.split()[1] for label in labels(model).values()} == {"early", "middle", "late"}
    assert {label.split()[1] for label in groups_of(model, True).labels} == {"middle"}


def test_two_layers_are_early_and_late() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    found = labels(model)
    assert found["0.weight"] == "linear early weights" and found["0.bias"] == "linear early vectors"
    assert found["2.weight"] == "linear late weights" and found["2.bias"] == "linear late vectors"


def test_convolutions_are_a_type_and_their_biases_are_of_it() -> None:
    """Normalisations too, whatever they are called; also in a bare list of parameters."""
    model = nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Conv2d(2, 4, 3), nn.Flatten(), nn.Linear(4, 3)
    )
    expected = ["conv", "conv", "norm", "norm", "conv", "conv", "linear", "linear"]
    assert [label.split()[0] for label in labels(model).values()] == expected
    bare = Layout.of({f"parameter{i}": p.shape for i, p in enumerate(model.parameters())})
    made = make_grouping(bare, "fine_grained")
    assert [made.labels[k].split()[0] for k in made.index.tolist()] == expected


def test_biases_of_an_lstm_are_no_normalisation() -> None:
    """Two equal vectors after a weight look like one."""
    found = labels(models.imdb())
    assert found["lstm.bias_ih_l0"] == found["lstm.bias_hh_l0"] == "linear early vectors"
    assert "norm" not in " ".join(found.values())


def test_original_groups_are_the_parameter_groups() -> None:
    layout = Layout.of(dict.fromkeys("abcd", (2, 2)))
    made = make_grouping(layout, "original", [1, 0, 1, 3])
    assert made.index.tolist() == [0, 1, 0, 2] and made.num == 3
    assert make_grouping(layout, "original").num == 1


def test_means_and_variances_of_groups_are_those_of_their_tensors() -> None:
    layout = Layout.of(dict.fromkeys("abcdef", (2, 2)))
    made = make_grouping(layout, "original", [0, 1, 0, 2, 1, 1])
    x = torch.randn(3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for k, table in enumerate([[0, 2], [1, 4, 5], [3]]):
        torch.testing.assert_close(made.mean(x)[:, k], x[:, table].mean(1), rtol=0, atol=1e-15)
        torch.testing.assert_close(
            made.variance(x)[:, k], x[:, table].var(1, correction=0), rtol=0, atol=1e-15
        )
        assert torch.equal(made.spread(made.mean(x))[:, table[0]], made.mean(x)[:, k])
    assert len(TYPES) == 7
