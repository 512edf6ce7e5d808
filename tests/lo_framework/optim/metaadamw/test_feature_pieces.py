"""Features of MetaAdamW under transforms and at edges: fast statistics, vmap, second derivatives at
zero, time.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from lo_framework.errors import UserError
from lo_framework.layout import Layout
from lo_framework.learned.attention import Attention, AttentionConfig
from lo_framework.learned.group_features import VERSIONS
from lo_framework.learned.grouping import make_grouping
from lo_framework.optim.metaadamw.statistics import make_order, statistics
from tests.lo_framework.optim.metaadamw import math_tools as tools
from tests.lo_framework.optim.metaadamw.reference import features as reference
from tests.lo_framework.optim.metaadamw.settings import build

SHAPES = {
    "embed.weight": (5, 3),
    "a.weight": (4, 3),
    "a.bias": (4,),
    "norm.weight": (4,),
    "b.weight": (2, 4),
    "s": (),
}
LAYOUT = Layout.of(SHAPES)


def random_state(seed: int) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """p, g and state, flat in float32; some entries are exact zeros."""
    generator = torch.Generator().manual_seed(seed)
    p, g, m, v = (torch.randn(LAYOUT.size, generator=generator) for _ in range(4))
    g[::4], m[::5] = 0.0, 0.0
    log_power = torch.tensor([[math.log(0.9)] * LAYOUT.num, [math.log(0.999)] * LAYOUT.num]) * 3
    return p, g, {"m": m, "v": v.square(), "step": torch.tensor(3.0), "log_power": log_power}


def network_of(version: str, scale: str, v_norms: bool = True) -> Attention:
    return Attention(AttentionConfig(features=version, scale=scale, v_norms=v_norms, gating=True))


@pytest.mark.parametrize("v_norms", [True, False])
@pytest.mark.parametrize("scale", ["log", "raw"])
@pytest.mark.parametrize("version", VERSIONS)
def test_statistics_by_lists_equal_the_means_that_define_them(
    version: str, scale: str, v_norms: bool
) -> None:
    """Also of a missing gradient, which is zero, and of half-precision tensors."""
    p, g, state = random_state(0)
    g = torch.cat([torch.zeros(15), g[15:].bfloat16().float()])
    p = p.bfloat16().float()
    network = network_of(version, scale, v_norms)
    expected = LAYOUT.mean(network.measure(p, g, state))
    params, grads, ms, vs = (
        list(LAYOUT.unflatten(x).values()) for x in (p, g, state["m"], state["v"])
    )
    some: list[Tensor | None] = [
        None,
        *(x.bfloat16() if i % 2 else x for i, x in enumerate(grads[1:])),
    ]
    params = [x.bfloat16() if i % 2 else x.mT if x.dim() == 2 else x for i, x in enumerate(params)]
    states = [{"exp_avg": m, "exp_avg_sq": v} for m, v in zip(ms, vs)]
    found = statistics(network, make_order(params), params, some, states)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("grouping", ["tensor", "fine_grained", "original"])
@pytest.mark.parametrize("scale", ["log", "raw"])
@pytest.mark.parametrize("version", VERSIONS)
def test_features_under_vmap_equal_a_loop(version: str, scale: str, grouping: str) -> None:
    if version.startswith("norm") and grouping == "original":
        return  # one group cannot be standardised
    network = network_of(version, scale)
    made = make_grouping(LAYOUT, grouping)
    rows = [random_state(seed) for seed in range(3)]
    progress = torch.tensor([0.1, 0.5, 0.9])

    def features(p: Tensor, g: Tensor, state: dict[str, Tensor], now: Tensor) -> Tensor:
        return network.tokens(LAYOUT, made, network.stats(LAYOUT, p, g, state), state, now)

    stacked = {name: torch.stack([state[name] for _, _, state in rows]) for name in rows[0][2]}
    inputs = torch.stack([row[0] for row in rows]), torch.stack([row[1] for row in rows])
    found = torch.func.vmap(features)(*inputs, stacked, progress)
    for i, (p, g, state) in enumerate(rows):
        torch.testing.assert_close(
            found[i], features(p, g, state, progress[i]), rtol=2e-5, atol=2e-5
        )


@pytest.mark.parametrize("start", ["zero", "zero but one"])
@pytest.mark.parametrize("scale", ["log", "raw"])
@pytest.mark.parametrize("version", VERSIONS)
def test_second_derivatives_are_finite_at_zero_gradients_and_moments(
    version: str, scale: str, start: str
) -> None:
    network = network_of(version, scale)
    made = make_grouping(LAYOUT, "fine_grained")
    size = LAYOUT.size
    g, m, v = (torch.zeros(size) for _ in range(3))
    if start != "zero":
        g[-1] = 1.0
    inputs = [x.requires_grad_() for x in (torch.zeros(size), g, m, v)]
    state = {"m": m, "v": v, "step": torch.zeros(()), "log_power": torch.zeros(2, LAYOUT.num)}
    tokens = network.tokens(
        LAYOUT, made, network.stats(LAYOUT, inputs[0], g, state), state, torch.tensor(0.0)
    )
    generator = torch.Generator().manual_seed(0)
    assert tokens.isfinite().all()
    total = (tokens * torch.randn(tokens.shape, generator=generator)).sum()
    first = torch.autograd.grad(total, inputs, create_graph=True, materialize_grads=True)
    assert all(d.isfinite().all() for d in first)
    along = sum((d * torch.randn(size, generator=generator)).sum() for d in first)
    second = torch.autograd.grad(along, inputs, materialize_grads=True)  # type: ignore[arg-type]
    assert all(d.isfinite().all() for d in second)


@pytest.mark.parametrize("total_steps", [None, 10, 2])
@pytest.mark.parametrize("reproduce", [None, "paper", "reference"])
def test_time_is_a_share_of_all_steps_or_saturates(
    reproduce: str | None, total_steps: int | None
) -> None:
    """The released code counts the step that is being made, and does not stop at 1."""
    optimizer = tools.make(
        nn.ParameterDict({"a": torch.ones(2, 2)}), reproduce=reproduce, total_steps=total_steps
    )
    t_glob = 3  # the third step
    seen = optimizer._rule.time(t_glob - 1)
    if reproduce is None:
        expected = math.tanh(2 / 2000) if total_steps is None else min(2 / total_steps, 1.0)
    else:
        expected = (
            2 / (1 + math.exp(-t_glob / 1000)) - 1 if total_steps is None else t_glob / total_steps
        )
    assert abs(seen - expected) < 1e-15


@pytest.mark.parametrize("options", ["", "v", "time", "v time", "v time gating", "time gating"])
@pytest.mark.parametrize("width", [11, 12, 16, 22])
@pytest.mark.parametrize("version", ["basic_plus", "norm_basic_plus"])
def test_the_released_plus_versions_are_a_part_of_the_enhanced_one(
    version: str, width: int, options: str
) -> None:
    """[mean gn, var gn, mean mn, var mn, zeros of g, zeros of m, mean ln(numel + 1), ...], as many
    as the width leaves beside an embedding of zeros. ``norm_`` standardises the first 8 + 2V, and
    with a wide vector the time among them.
    """
    p, g, state = random_state(1)
    p, g, m, v = (x.double() for x in (p, g, state["m"], state["v"]))
    made = make_grouping(LAYOUT, "fine_grained", published=True)
    groups = [[i for i, k in enumerate(made.index.tolist()) if k == j] for j in range(made.num)]
    v_norms, time, gating = ("v" in options.split(), "time" in options, "gating" in options)
    network = build(
        [("a.weight", nn.Parameter(torch.ones(2, 2))), ("b.bias", nn.Parameter(torch.ones(2)))],
        reproduce="reference",
        features=version,
        v_norms=v_norms,
        time=time,
        gating=gating,
        network={"width": width, "heads": 1, "layers": 1},
    ).network.double()
    stats = network.stats(LAYOUT, p, g, {"m": m, "v": v})
    found = network.tokens(LAYOUT, made, stats, state, torch.tensor(0.3, dtype=tools.D)).detach().T
    each = list(zip(*(LAYOUT.unflatten(x).values() for x in (g, m, p, v))))
    gates = [1.0] * width if gating else None  # where they start, and stay
    rows = reference.released_plus(
        version, list(SHAPES), each, groups, 0.3 if time else None, v_norms, width, gates
    )
    expected = torch.tensor(rows, dtype=tools.D)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    if width == 11:
        assert expected[:, :7].any() and not expected[:, 7:].any()


@pytest.mark.parametrize("features", ["norm_basic", "norm_basic_plus"])
@pytest.mark.parametrize("reproduce", [None, "paper", "reference"])
def test_one_group_is_not_standardised(reproduce: str | None, features: str) -> None:
    """The released code's standard deviation of one number is NaN, and so are all parameters."""
    with pytest.raises(UserError, match="standardise across groups and there is one"):
        tools.make(tools.Net(), reproduce=reproduce, features=features, grouping="original")


def test_a_single_number_is_a_vector_but_not_as_published() -> None:
    """Published: ends with "bias", or has one dimension."""
    layout = Layout.of({"a.weight": (2, 2), "scale": (), "b.bias": (3,), "c.bias": (2, 2)})
    for scale, expected in (("raw", [0.0, 0.0, 1.0, 1.0]), ("log", [0.0, 1.0, 1.0, 1.0])):
        network = network_of("enhanced", scale)
        x = torch.ones(layout.size)
        state = {"m": x, "v": x, "step": torch.ones(()), "log_power": torch.ones(2, layout.num)}
        made = make_grouping(layout, "tensor")
        stats = network.stats(layout, x, x, state)
        tokens = network.tokens(layout, made, stats, state, torch.tensor(0.0))
        torch.testing.assert_close(tokens[7], torch.tensor(expected) * tokens[7].max())
        assert tokens[7].max() > 0
