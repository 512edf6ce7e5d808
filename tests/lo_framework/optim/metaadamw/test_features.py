"""MetaAdamW's features against the slow reference: the published ones (raw norms) and the bounded
ones (logarithms).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from lo_framework.layout import Layout
from lo_framework.learned.attention import EMBEDDING, Attention, AttentionConfig
from lo_framework.learned.grouping import Grouping, make_grouping
from tests.lo_framework.optim.metaadamw.reference import features as slow

D = torch.float64
VERSIONS = ("basic", "norm_basic", "basic_plus", "norm_basic_plus", "enhanced")
SHAPES = {
    "embed.weight": (5, 3),
    "layers.0.attn.weight": (4, 3),
    "layers.0.attn.bias": (4,),
    "layers.0.norm.weight": (4,),
    "layers.0.norm.bias": (4,),
    "layers.3.linear.weight": (3, 4),
    "layers.3.linear.bias": (3,),
    "layers.1.conv.weight": (2, 2, 3),
    "layers.1.conv.bias": (2,),
    "head.weight": (2, 3),
    "head.bias": (2,),
}
AGES = [3, 3, 3, 0, 3, 3, 2, 3, 1, 3, 3]
Tensors = list[tuple[Tensor, Tensor, Tensor, Tensor]]


def tensors_of(seed: int = 0) -> Tensors:
    """(g, m, p, v) of each: of several scales, some with zeros, one without any gradient so far."""
    generator, found = torch.Generator().manual_seed(seed), []
    for i, shape in enumerate(SHAPES.values()):
        g, m, p, v = (
            torch.randn(shape, generator=generator, dtype=D) * 3.0 ** (k - i % 4) for k in range(4)
        )
        if i % 3 == 0:
            g.view(-1)[0], m.view(-1)[-1] = 0.0, 0.0
        still = float(AGES[i] > 0)
        found.append((g * still, m * still, p, v.square() * still))
    return found


def prepared(
    grouping: str, published: bool, parts: Sequence[int] | None, tensors: Tensors
) -> tuple[Layout, Grouping, dict[str, Tensor], list[list[int]], Tensor]:
    """Layout, groups, the state, the groups as lists, and g, m, p, v flat: ``[4, N]``."""
    layout = Layout.of(SHAPES)
    made = make_grouping(layout, grouping, parts, published=published)
    state = {
        "step": torch.tensor(3.0, dtype=D),
        "log_power": torch.tensor([[t * math.log(b) for t in AGES] for b in (0.9, 0.999)], dtype=D),
    }
    groups = [
        [i for i, k in enumerate(made.index.tolist()) if k == group] for group in range(made.num)
    ]
    flat = torch.stack([torch.cat([each[k].reshape(-1) for each in tensors]) for k in range(4)])
    return layout, made, state, groups, flat


def network_of(**settings: Any) -> Attention:
    network = Attention(AttentionConfig(**settings)).double()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, p in network.named_parameters():
            if name in ("gates", "group_embedding"):
                p.add_(torch.randn(p.shape, generator=generator, dtype=D))
    return network


def ours(
    network: Attention,
    layout: Layout,
    made: Grouping,
    state: dict[str, Tensor],
    flat: Tensor,
    now: float,
) -> Any:
    g, m, p, v = flat
    stats = network.stats(layout, p, g, {"m": m, "v": v})
    return network.tokens(layout, made, stats, state, torch.tensor(now, dtype=D)).detach().T


GROUPINGS: list[tuple[str, list[int] | None]] = [
    ("fine_grained", None),
    ("original", [0, 0, 1, 1, 1, 2, 2, 0, 1, 2, 2]),
    ("tensor", None),
]


@pytest.mark.parametrize(
    ("grouping", "parts"), GROUPINGS, ids=["fine-grained", "original", "tensor"]
)
@pytest.mark.parametrize("options", ["", "v", "time", "v time", "v time gating"])
@pytest.mark.parametrize("version", VERSIONS)
def test_published_features_equal_the_slow_reference(
    version: str, options: str, grouping: str, parts: list[int] | None
) -> None:
    """With zeros up to the width, and an embedding of the group at the end of the enhanced ones."""
    tensors = tensors_of()
    layout, made, state, groups, flat = prepared(grouping, True, parts, tensors)
    v_norms, time, gating = ("v" in options.split(), "time" in options, "gating" in options)
    network = network_of(
        features=version,
        scale="raw",
        v_norms=v_norms,
        time=time,
        gating=gating,
        encoder="published",
        head="bounded",
        width=16,
        heads=4,
    )
    found = ours(network, layout, made, state, flat, 0.3)
    gates = network.gates.tolist() if gating else None
    rows = slow.raw_features(
        version, list(SHAPES), tensors, groups, 0.3 if time else None, v_norms, gates
    )
    expected = torch.tensor(rows, dtype=D)
    assert expected.shape[1] == network.spec.columns
    torch.testing.assert_close(found[:, : expected.shape[1]], expected, rtol=1e-9, atol=1e-11)
    embedded = EMBEDDING if version == "enhanced" else 0
    assert found.shape[1] == 16 and not found[:, expected.shape[1] : 16 - embedded].any()
    if embedded:
        assert torch.equal(found[:, -EMBEDDING:].T, network.group_embedding[:, made.keys])


@pytest.mark.parametrize(
    ("grouping", "parts"), GROUPINGS, ids=["fine-grained", "original", "tensor"]
)
@pytest.mark.parametrize("options", ["", "v", "v time gating"])
@pytest.mark.parametrize("version", VERSIONS)
def test_bounded_features_equal_their_slow_definition(
    version: str, options: str, grouping: str, parts: list[int] | None
) -> None:
    tensors = tensors_of()
    layout, made, state, groups, flat = prepared(grouping, False, parts, tensors)
    v_norms, time, gating = ("v" in options.split(), "time" in options, "gating" in options)
    network = network_of(features=version, v_norms=v_norms, time=time, gating=gating)
    found = ours(network, layout, made, state, flat, 0.3)
    corrections = [(max(1 - 0.9**t, 1e-3), max(1 - 0.999**t, 1e-3)) for t in AGES]
    rows = slow.log_features(
        version,
        list(SHAPES),
        tensors,
        groups,
        0.3 if time else None,
        v_norms,
        corrections,
        [slot.depth for slot in layout.slots],
        network.gates.tolist() if gating else None,
    )
    expected = torch.tensor(rows, dtype=D)
    torch.testing.assert_close(found[:, : expected.shape[1]], expected, rtol=1e-9, atol=1e-9)
    assert found.shape[1] == expected.shape[1] + EMBEDDING * (version == "enhanced")
    if not (gating or version.startswith("norm")):
        assert found[:, : expected.shape[1]].abs().max() < 4


@pytest.mark.parametrize("scale", ["raw", "log"])
def test_a_feature_of_the_whole_model_stays_when_a_tensor_has_no_gradient(scale: str) -> None:
    """Depth is that of the tensor in the model, not among those that happen to take part in this
    step.
    """
    tensors = tensors_of()
    layout, made, state, _, flat = prepared("tensor", True, None, tensors)
    network = network_of(features="enhanced", scale=scale)
    whole = ours(network, layout, made, state, flat, 0.3)
    kept = [i for i, name in enumerate(SHAPES) if "3" not in name]
    part = layout.pick(kept)
    state["log_power"] = state["log_power"][:, kept]
    flat = torch.cat(
        [piece for i, piece in enumerate(flat.split(layout.sizes, -1)) if i in kept], -1
    )
    found = ours(network, part, make_grouping(part, "tensor", published=True), state, flat, 0.3)
    torch.testing.assert_close(found[:, :9], whole[kept][:, :9], rtol=0, atol=1e-12)


def test_one_tensor_has_the_columns_of_the_papers_example() -> None:
    """|g|, |m|, |p|, cos, |v|, time, by hand."""
    p, g, m, v = (
        torch.tensor(x, dtype=D) for x in ([3.0, 4.0], [1.0, 0.0], [1.0, 1.0], [0.6, 0.8])
    )
    layout = Layout.of({"fc.weight": (2, 1)})
    network = network_of(features="basic", scale="raw", v_norms=True)
    made = make_grouping(layout, "fine_grained", published=True)
    found = ours(network, layout, made, {}, torch.stack([g, m, p, v]), 0.01)
    expected = torch.tensor([[1.0, 2**0.5, 5.0, 0.5**0.5, 1.0, 0.01]], dtype=D)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
