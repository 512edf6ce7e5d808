"""Roles by the types of modules whatever the names, and what lists of names and of shapes tell."""

from __future__ import annotations

from itertools import groupby

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from lo_framework.layout import POSITIONS, Layout, Slot
from lo_framework.learned.grouping import make_grouping
from lo_framework.roles import (
    ROLES,
    layer_number,
    may_hold_embedding,
    model_order,
    roles_by_module,
)
from tests.lo_framework.optim.metaadamw import models
from tests.lo_framework.small_models import GPT, LSTM


def slots_of(model: nn.Module) -> dict[str, Slot]:
    shapes = {name: p.shape for name, p in model.named_parameters()}
    return {slot.name: slot for slot in Layout.of(shapes, roles_by_module(model)).slots}


def roles_of(model: nn.Module) -> dict[str, str]:
    return {name: slot.role for name, slot in slots_of(model).items()}


def test_a_gpt_whose_names_say_nothing() -> None:
    """Tied weights once, as the embedding that owns them first."""
    model = GPT(layers=2)
    slots = slots_of(model)
    assert list(slots) == [name for name, _ in model.named_parameters()]
    expected = {"a.weight": "embedding", "b.weight": "embedding"}
    block = {
        "p": ("norm", "norm"),
        "q": ("matrix", "bias"),
        "r": ("matrix", "bias"),
        "s": ("norm", "norm"),
        "t": ("matrix", "bias"),
        "u": ("matrix", "bias"),
    }
    for k in range(2):
        for name, pair in block.items():
            expected |= {f"c.{k}.{name}.weight": pair[0], f"c.{k}.{name}.bias": pair[1]}
    expected |= {"d.weight": "norm", "d.bias": "norm"}
    assert {name: slot.role for name, slot in slots.items()} == expected
    assert [word for word, _ in groupby(s.position for s in slots.values())] == [*POSITIONS]
    assert slots["a.weight"].position == slots["c.0.q.bias"].position == "first"
    assert slots["c.0.r.weight"].position == slots["c.1.t.bias"].position == "hidden"
    assert slots["c.1.u.weight"].position == slots["d.bias"].position == "last"
    assert slots["c.1.u.weight"].fan_in == slots["d.bias"].fan_in == 32


@pytest.mark.parametrize("name", ["e", "embed", "norm", "attention"])
def test_an_lstm_whatever_its_embedding_is_called(name: str) -> None:
    model = LSTM(name)
    slots = slots_of(model)
    assert [slot.role for slot in slots.values()] == (
        ["embedding", "matrix", "matrix", "bias", "bias", "matrix", "bias"]
    )
    layout = Layout(tuple(slots.values()))
    made = make_grouping(layout, "fine_grained")
    kinds = [made.labels[k].split()[0] for k in made.index.tolist()]
    assert kinds == ["embedding", *["linear"] * 6]


class Scale(nn.Module):
    """A class of a person's own: a matrix, a gain, and parameters of one row."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Parameter(torch.ones(4, 4))
        self.position = nn.Parameter(torch.ones(1, 9, 4))
        self.token = nn.Parameter(torch.ones(1, 1, 4))
        self.row = nn.Parameter(torch.ones(1, 4))


class OwnRMSNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))


class Conv1D(nn.Module):
    """A linear layer ``[in, out]``, as the released GPT-2 has them."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(3, 8)), nn.Parameter(torch.ones(8))


class Embedded(nn.Embedding):
    pass


CASES: list[tuple[nn.Module, list[str]]] = [
    (Embedded(9, 4), ["embedding"]),
    (nn.EmbeddingBag(9, 4), ["embedding"]),
    (nn.LayerNorm((3, 4, 5)), ["norm", "norm"]),
    (nn.LayerNorm(4, bias=False), ["norm"]),
    (nn.RMSNorm(4), ["norm"]),
    (OwnRMSNorm(), ["norm"]),
    (nn.GroupNorm(2, 4), ["norm", "norm"]),
    (nn.BatchNorm1d(4), ["norm", "norm"]),
    (nn.Conv1d(2, 4, 3), ["conv", "bias"]),
    (nn.ConvTranspose2d(2, 4, 3), ["conv", "bias"]),
    (Conv1D(), ["matrix", "bias"]),
    (nn.Bilinear(2, 3, 4), ["matrix", "bias"]),
    (nn.GRUCell(3, 4), ["matrix", "matrix", "bias", "bias"]),
    (nn.MultiheadAttention(4, 2), ["matrix", "bias", "matrix", "bias"]),
    (
        nn.MultiheadAttention(4, 2, kdim=3, vdim=5, add_bias_kv=True),
        ["matrix", "matrix", "matrix", "bias", "bias", "bias", "matrix", "bias"],
    ),
    (parametrizations.spectral_norm(nn.Linear(3, 4)), ["bias", "matrix"]),
    (parametrizations.weight_norm(nn.Linear(3, 4)), ["bias", "norm", "matrix"]),
    (Scale(), ["matrix", "matrix", "bias", "matrix"]),
]


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("module, roles", CASES, ids=lambda x: type(x).__name__)
def test_roles_of_modules(module: nn.Module, roles: list[str], inside: bool) -> None:
    model = nn.Sequential(nn.Linear(2, 4), module) if inside else module
    found = list(roles_of(model).values())
    assert found == ["matrix", "bias"] * inside + roles and set(found) <= {*ROLES}


@pytest.mark.parametrize(
    "module, fan_in",
    [
        (nn.Linear(3, 8), 3),
        (Conv1D(), 3),
        (nn.Conv2d(6, 4, (3, 2)), 36),
        (nn.Conv2d(6, 4, 3, groups=2), 27),
        (nn.ConvTranspose2d(6, 4, (3, 2)), 36),
        (nn.ConvTranspose2d(6, 4, 3, groups=2), 27),
        (nn.MultiheadAttention(4, 2), 4),
        (nn.Embedding(9, 4), 4),
    ],
)
def test_fan_in_is_what_enters_an_output(module: nn.Module, fan_in: int) -> None:
    """Vectors have that of their layer."""
    assert {slot.fan_in for slot in slots_of(module).values()} == {fan_in}


def test_types_of_groups_come_from_modules_and_parts_of_a_block_from_names() -> None:
    parts = {
        "mix": nn.MultiheadAttention(4, 2),
        "embedding": nn.Linear(4, 4),
        "mlp": nn.Linear(4, 4),
        "attn": nn.ModuleDict({"q": nn.Linear(4, 4), "norm": nn.LayerNorm(4)}),
    }
    shapes = {name: p.shape for name, p in nn.ModuleDict(parts).named_parameters()}
    layout = Layout.of(shapes, roles_by_module(nn.ModuleDict(parts)))
    made = make_grouping(layout, "fine_grained")
    kinds = [made.labels[k].split()[0] for k in made.index.tolist()]
    expected = ["attention"] * 4 + ["linear"] * 2 + ["ffn"] * 2 + ["attention"] * 2 + ["norm"] * 2
    assert kinds == expected


@pytest.mark.parametrize(
    "model, suspect",
    [
        (GPT(), True),
        (LSTM("e"), True),
        (nn.Sequential(nn.Linear(3, 64), nn.Linear(64, 64)), False),
        (nn.Sequential(nn.Linear(3, 64, bias=False), nn.Linear(64, 64)), False),
        (nn.Sequential(nn.Conv2d(3, 64, 3), nn.Flatten(), nn.Linear(64, 9)), False),
        (nn.Sequential(nn.Embedding(50, 4)), False),
        (nn.LayerNorm(4), False),
    ],
)
def test_a_bare_list_that_may_hold_an_embedding(model: nn.Module, suspect: bool) -> None:
    assert may_hold_embedding([p.shape for p in model.parameters()]) == suspect


class Named(nn.Module):
    """Layers that are numbered at the ends of their names, down and up again, and some that are
    not.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Linear(4, 4), nn.LayerNorm(4)
        self.down1, self.down2 = nn.Linear(4, 4), nn.Linear(4, 4)
        self.up2, self.up1 = nn.Linear(4, 4), nn.Linear(4, 4)
        self.head = nn.Linear(4, 4)


ORDERED = {name: build() for name, (build, _) in models.PUBLISHED.items()} | {
    "GPT": GPT(layers=12),
    "MLP": nn.Sequential(*[nn.Linear(2, 2) for _ in range(12)]),
    "Named": Named(),
}


@pytest.mark.parametrize("name", ORDERED)
def test_groups_in_any_order_are_brought_into_the_models(name: str) -> None:
    """Decay and no decay either first, a group per layer from the last one, one per parameter."""
    sizes = {n: p.dim() for n, p in ORDERED[name].named_parameters()}
    names, vectors = list(sizes), [n for n, dims in sizes.items() if dims < 2]
    decay = [n for n in names if n not in vectors]
    layers = [list(group) for _, group in groupby(names, key=lambda n: layer_number(n))]
    for groups in (
        [names],
        [names[::-1]],
        [decay, vectors],
        [vectors, decay],
        layers,
        layers[::-1],
        [[n] for n in names],
        [[n] for n in names[::-1]],
    ):
        assert model_order(groups, vectors) == names


def test_a_list_of_names_that_are_no_modules_stays() -> None:
    names = ["w0", "b0", "w1", "b1", "scale", "head.weight", "head.bias"]
    assert model_order([names], ["b0", "b1", "scale", "head.bias"]) == names
