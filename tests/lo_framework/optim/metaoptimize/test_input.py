"""What MetaOptimize refuses when it is built, and what blocks, bounds and meta steps are."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch

from lo_framework.optim import MetaOptimize
from lo_framework.spec import UserError
from tests.lo_framework.optim.metaoptimize import tools
from tests.lo_framework.optim.metaoptimize.reference import BASES, D, vec

BAD: list[tuple[dict[str, Any], str]] = [
    ({"base": "adam"}, r'unknown base "adam" \(did you mean "adamw"\?\)'),
    ({"meta": "lyon"}, r'unknown meta "lyon" \(did you mean "lion"\?\)'),
    ({"trace": "hessianfree"}, r'unknown trace "hessianfree" \(did you mean "hessian-free"\?\)'),
    ({"trace": "2x2", "products": "jiont"}, r'unknown products "jiont" \(did you mean "joint"\?\)'),
    ({"blocks": "scaler"}, r'unknown blocks "scaler" \(did you mean "scalar"\?\)'),
    ({"trace": "l", "base": "rmsprop"}, 'trace "l" is for the bases sgd, sgdm, adamw and lion'),
    ({"trace": "full"}, 'trace "full" is for base "sgd", meta "sgd" and blocks "scalar" only'),
    ({"alpha0": 0.0}, "alpha0 is a step size: it must be positive"),
    ({"alpha0": 0.2}, "alpha0=0.2 is outside the bounds 1e-10 to 0.1 of the step size"),
    ({"alpha0": 1e-11}, "outside the bounds"),
    ({"alpha0": 0.05, "base": "lion"}, "outside the bounds 1e-10 to 0.03"),
    ({"beta_bounds": (-5.0, -2.0)}, "alpha0=1e-06 is outside the bounds"),
    ({"beta_bounds": (-2.0, -5.0)}, "low < high"),
    ({"beta_bounds": (-2.0,)}, "beta_bounds must be"),
    ({"beta_bounds": "wide"}, r"beta_bounds must be \(low, high\)"),
    ({"max_change": 0.0}, "max_change must be positive"),
    ({"meta_lr": -1.0}, "meta_lr must be at least 0"),
    ({"gamma": 1.1}, r"gamma must be in \[0, 1\]"),
    ({"meta_every": 0}, "meta_every must be a whole number"),
    ({"meta_every": math.nan}, "meta_every must be a whole number of at least 1, not nan"),
    ({"meta_every": "10"}, "meta_every must be a whole number of at least 1, not '10'"),
    ({"meta_every": None}, "meta_every must be a whole number of at least 1, not None"),
    ({"weight_decay": -0.1}, "weight_decay must be at least 0"),
    ({"eps": -1.0}, "eps must be at least 0"),
    ({"betas": (0.9,)}, 'base "adamw" has 2 betas, got 1'),
    ({"betas": (0.9, 1.0)}, r"betas must be in \[0, 1\)"),
    ({"meta_betas": (0.9, 0.9, 0.9)}, 'meta "lion" has 2 meta_betas, got 3'),
    ({"blocks": {}}, "blocks is an empty dict"),
    ({"blocks": {"a": "body", "b": "tail"}}, 'block "b": "tail" matches no parameter'),
    ({"blocks": {"a": [], "b": None}}, 'block "a" is empty'),
    (
        {"blocks": {"a": "body", "b": "weight", "c": None}},
        "overlap: both hold parameter .body.weight.",
    ),
    (
        {"blocks": {"a": ["head.wight"], "b": None}},
        r'no parameter "head.wight" \(did you mean "head.weight"\?\)',
    ),
    ({"blocks": {"a": "body"}}, 'parameter "scale" is in no block'),
    ({"blocks": {"a": ".", "b": None}}, 'block "b" is empty'),
    ({"blocks": {"a": None, "b": None}}, "both ask for the rest"),
    ({"blocks": {"a": "("}}, "is not a regular expression"),
    ({"blocks": "weight", "trace": "l", "products": "per-block"}, "more than 64"),
]


@pytest.mark.parametrize(("options", "words"), BAD)
def test_bad_arguments(options: dict[str, Any], words: str) -> None:
    shapes = [(3, 20), (3,), (), (2, 2, 2)]
    with pytest.raises(UserError, match=words) as caught:
        MetaOptimize(tools.named(tools.parameters(shapes=shapes)), **options)
    assert "\n" not in str(caught.value)


def test_bad_parameters() -> None:
    with pytest.raises(UserError, match="blocks by name need named parameters"):
        MetaOptimize(tools.parameters(), blocks={"a": "."})
    with pytest.raises(UserError, match="lr is a multiplier of the step size"):
        MetaOptimize([{"params": tools.parameters(), "lr": -1.0}])
    with pytest.raises(ValueError, match="empty parameter list"):
        MetaOptimize([])
    optimizer = MetaOptimize(
        tools.named(tools.parameters()), blocks={"body": "body", "rest": ["scale", "head.weight"]}
    )
    more = ("tail", tools.parameters()[0])
    before = repr(optimizer.state_dict())
    with pytest.raises(UserError, match='parameter "tail" is in no block'):
        optimizer.add_param_group({"params": [more]})
    assert repr(optimizer.state_dict()) == before and len(optimizer._params) == 4
    exact = MetaOptimize(tools.parameters(), blocks="tensor", trace="l", products="per-block")
    with pytest.raises(UserError, match="more than 64"):
        exact.add_param_group({"params": tools.parameters(shapes=[(1,)] * 61)})
    assert len(exact._params) == 4 and len(exact.step_sizes()) == 4


def test_the_smallest_and_greatest_default_step_sizes_are_within_bounds() -> None:
    for base, high in zip(BASES, (10.0, 10.0, 0.1, 0.1, 0.03)):
        for alpha0 in (1e-10, 1e-7, 1e-2, high):
            sizes = MetaOptimize(tools.parameters(), alpha0, base=base).step_sizes()
            assert sizes["all"].item() == pytest.approx(alpha0)


def test_names_of_blocks() -> None:
    pairs = tools.named(tools.parameters())
    groups = [{"params": pairs[:2]}, {"params": pairs[2:]}]

    def names(blocks: Any) -> list[str]:
        return [*MetaOptimize(groups, blocks=blocks).step_sizes()]

    assert names("scalar") == ["all"] and names("group") == ["group 0", "group 1"]
    assert names("tensor") == names("node") == names("weight") == tools.NAMES
    by_name = MetaOptimize(
        pairs, blocks={"head": ["head.weight"], "norms": "bias|scale", "rest": None}
    )
    assert [spread.first for spread in by_name._blocks.spreads] == [2, 1, 1, 0]
    sizes = MetaOptimize(pairs, blocks="node").step_sizes()
    assert [x.shape for x in sizes.values()] == [(3,), (3,), (1,), (2,)]
    sizes = MetaOptimize(pairs, blocks="weight").step_sizes()
    assert [x.shape for x in sizes.values()] == [p.shape for _, p in pairs]


def test_bounds_and_cap_hold() -> None:
    params = tools.parameters()
    low, high = vec(0.019).log().item(), vec(0.021).log().item()
    bounded = tools.make(
        params, "adamw", "sgd", blocks="tensor", meta_lr=100.0, beta_bounds=(low, high)
    )
    capped = tools.make(
        tools.parameters(), "adamw", "sgd", blocks="tensor", meta_lr=100.0, max_change=0.125
    )
    before = tools.beta_of(capped)
    for t in range(3):
        tools.run(bounded, params, [t])
        tools.run(capped, capped.param_groups[0]["params"], [t])
        after = tools.beta_of(capped)
        assert (after - before).abs().max() <= 0.125 + 1e-12
        before = after
    beta = tools.beta_of(bounded)
    assert (
        (beta >= low - 1e-9).all()
        and (beta <= high + 1e-9).all()
        and (beta - high).abs().min() < 1e-9
    )
    assert (tools.beta_of(capped) - vec(0.02).log()).abs().max() > 0.2


def test_meta_every_moves_step_sizes_now_and_then_and_the_trace_always() -> None:
    params, others = tools.parameters(), tools.parameters()
    optimizer = tools.make(params, "adamw", "sgd", meta_every=3, max_change=math.inf)
    betas, traces = [], []
    for t in range(7):
        tools.run(optimizer, params, [t])
        betas.append(tools.beta_of(optimizer).item())
        traces.append(tools.held(optimizer, params))
    assert betas[0] == betas[1] != betas[2] == betas[4] != betas[5] == betas[6]
    assert all(not torch.equal(x, y) for x, y in pairwise(traces))
    plain = tools.make(others, "adamw", "sgd", max_change=math.inf, meta_lr=0.0)
    tools.run(plain, others, range(2))
    tools.give_grads(others, 2)
    z = tools.held(plain, others) @ tools.flat([p.grad for p in others])
    assert betas[2] == pytest.approx(betas[1] - 0.05 * z.item(), abs=1e-13)


def test_meta_every_of_an_exact_trace() -> None:
    """Between meta steps beta persists: with gamma below 1, Y stays where it is."""
    params = tools.parameters()
    optimizer = tools.make(params, "sgd", "sgd", trace="2x2", meta_every=4, gamma=0.9)
    tools.run(optimizer, params, range(3))
    assert optimizer._exact is not None
    torch.testing.assert_close(
        optimizer._exact.tangents["beta"], torch.ones(1, 1, dtype=D), rtol=0, atol=1e-15
    )
    tools.run(optimizer, params, [3])
    assert (optimizer._exact.tangents["beta"] - 1).abs() > 1e-6
