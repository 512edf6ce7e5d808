"""The flat arena: offsets, roles read off shapes and order, reductions against their plain
definitions.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from lo_framework.layout import Layout, Slot
from lo_framework.roles import ROLES

SHAPES = {"a": (3, 4), "b": (4,), "c": (2, 3, 2, 2), "d": (), "e": (1, 5)}


def roles_of(module: nn.Module, named: bool = True) -> list[str]:
    shapes = {
        (n if named else str(i)): p.shape for i, (n, p) in enumerate(module.named_parameters())
    }
    return [slot.role for slot in Layout.of(shapes).slots]


@pytest.fixture
def layout() -> Layout:
    return Layout.of(SHAPES)


@pytest.fixture
def x(layout: Layout) -> torch.Tensor:
    return torch.randn(2, 3, layout.size, generator=torch.Generator().manual_seed(0))


def test_offsets_and_sizes(layout: Layout) -> None:
    assert [s.offset for s in layout.slots] == [0, 12, 16, 40, 41]
    assert layout.sizes == [12, 4, 24, 1, 5] and (layout.size, layout.num) == (46, 5)
    with pytest.raises(ValueError, match="at least one"):
        Layout.of({})


def test_flatten_and_unflatten_are_inverse_and_unflatten_is_a_view(
    layout: Layout, x: torch.Tensor
) -> None:
    tensors = layout.unflatten(x)
    assert {n: tuple(t.shape) for n, t in tensors.items()} == {
        n: (2, 3, *shape) for n, shape in SHAPES.items()
    }
    assert torch.equal(layout.flatten(tensors), x)
    tensors["c"].zero_()
    assert x[..., 16:40].abs().sum() == 0


def test_mean_and_expand(layout: Layout, x: torch.Tensor) -> None:
    means = layout.mean(x)
    for s, slot in enumerate(layout.slots):
        part = x[..., slot.offset : slot.offset + slot.numel]
        torch.testing.assert_close(means[..., s], part.sum(-1) / slot.numel)
    wide = layout.expand(means)
    assert wide.shape == x.shape
    for s, slot in enumerate(layout.slots):
        part = wide[..., slot.offset : slot.offset + slot.numel]
        assert torch.equal(part, means[..., s, None].expand_as(part))


def test_reductions_under_vmap(layout: Layout, x: torch.Tensor) -> None:
    def both(row: torch.Tensor) -> torch.Tensor:
        return layout.expand(layout.mean(row))

    assert torch.equal(torch.vmap(both)(x), both(x))


def test_axis_means_against_loops(layout: Layout) -> None:
    x = torch.rand(layout.size, generator=torch.Generator().manual_seed(1))
    rows, cols = layout.axis_mean(x, -2), layout.axis_mean(x, -1)
    tensors, row, col = layout.unflatten(x), layout.unflatten(rows), layout.unflatten(cols)
    for i in range(
        3
    ):  # "a" is 3 x 4: rows are means over the smaller of its axes, columns over the larger
        for j in range(4):
            assert row["a"][i, j] == pytest.approx(
                float(sum(tensors["a"][k, j] for k in range(3))) / 3
            )
            assert col["a"][i, j] == pytest.approx(
                float(sum(tensors["a"][i, k] for k in range(4))) / 4
            )
    for i in range(2):  # "c" is 2 x 3 x 2 x 2: its last axis counts as the second largest
        for k in range(2):
            part = tensors["c"][i, :, k]  # [3, 2]
            torch.testing.assert_close(row["c"][i, :, k], part.mean(1, keepdim=True).expand(3, 2))
            torch.testing.assert_close(col["c"][i, :, k], part.mean(0, keepdim=True).expand(3, 2))
    both = torch.stack([x, 2 * x])
    assert torch.equal(layout.axis_mean(both, -1), torch.stack([cols, 2 * cols]))
    for name in ("b", "d"):  # a vector is its own mean
        assert torch.equal(row[name], tensors[name]) and torch.equal(col[name], tensors[name])
    assert layout.vector_mask.tolist() == [
        len(SHAPES[n]) < 2 for n, t in tensors.items() for _ in range(t.numel())
    ]


def test_roles_of_plain_and_normalised_nets() -> None:
    mlp = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    assert roles_of(mlp) == ["matrix", "bias", "matrix", "bias"]
    conv = nn.Sequential(
        nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6)
    )
    assert roles_of(conv) == ["conv", "norm", "norm", "conv", "bias", "norm", "norm"]
    norms = [nn.LayerNorm(4) for _ in range(3)]
    wide = nn.Sequential(nn.Linear(4, 4), norms[0], nn.Linear(4, 4, bias=False), *norms[1:])
    assert roles_of(wide) == [
        "matrix",
        "bias",
        "norm",
        "norm",
        "matrix",
        "norm",
        "norm",
        "norm",
        "norm",
    ]
    assert roles_of(wide, named=False) == roles_of(wide)


def test_roles_of_a_transformer_and_embeddings() -> None:
    block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = nn.ModuleDict({"embed": nn.Embedding(11, 8), "block": block, "head": nn.Linear(8, 11)})
    expected = ["embedding", "matrix", "bias", "matrix", "bias", "matrix", "bias", "matrix"]
    assert roles_of(model)[:8] == expected
    assert roles_of(model)[-2:] == ["matrix", "bias"]
    # Without names an embedding looks like any matrix, and everything else stays what it was.
    assert roles_of(model, named=False) == ["matrix", *roles_of(model)[1:]]


def test_depth_counts_layers() -> None:
    slots = Layout.of({"w0": (2, 2), "b0": (2,), "w1": (2, 2), "w2": (2, 2), "b2": (2,)}).slots
    assert [s.depth for s in slots] == [0, 0, 0.5, 1, 1]
    assert [s.third for s in slots] == [0, 0, 1, 2, 2]
    assert [s.role_key for s in slots] == [0, 6, 1, 2, 8]
    single = Layout.of({"bias": (3,)}).slots[0]
    assert single == Slot("bias", (3,), 0, 3, "bias", 0.0)


def test_descriptors_and_role_keys(layout: Layout) -> None:
    d = layout.descriptors
    assert d.shape == (Layout.DESCRIPTORS, layout.num)
    torch.testing.assert_close(d[0], torch.tensor([math.log(s.numel) / 10 for s in layout.slots]))
    assert torch.equal(d[2:].sum(0), torch.ones(layout.num))
    assert [ROLES[int(i)] for i in d[2:].argmax(0)] == [s.role for s in layout.slots]
    assert layout.role_keys.tolist() == [s.role_key for s in layout.slots]


def test_constants_follow_the_device(layout: Layout) -> None:
    assert layout.to(torch.device("cpu")) is layout
    moved = layout.to(torch.device("meta"))
    assert moved == layout
    assert {
        moved.descriptors.device.type,
        moved.role_keys.device.type,
        moved.vector_mask.device.type,
    } == {"meta"}
