"""States that MetaAdamW refuses, of another kind or damaged: in one line, and before anything
changes.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from lo_framework.errors import UserError
from tests.lo_framework.optim.metaadamw import tools
from tests.lo_framework.optim.metaadamw.tools import rejected

OTHERS: list[tuple[dict[str, Any], str]] = [
    ({"features": "basic_plus"}, "another network"),
    ({"network": {"width": 16, "heads": 2}}, "another network"),
    ({"network": {**tools.SMALL, "layers": 2}}, "another network"),
    ({"gating": True}, "another network"),
    ({"alpha_range": 0.5}, "another network"),
    ({"grouping": "tensor"}, "another network"),
    ({"grouping": {"first": "0", "rest": None}}, "another network|another grouping"),
    ({"objective": "gradient"}, "another objective"),
    ({"weighting": "sum"}, "another objective"),
    ({"reproduce": "paper", "network": {"width": 12}}, "another network"),
]


@pytest.mark.parametrize(
    ("options", "words"), OTHERS, ids=lambda x: ",".join(x) if isinstance(x, dict) else ""
)
def test_states_of_another_kind(options: dict[str, Any], words: str) -> None:
    model, twin = tools.network(), tools.network()
    other, optimizer = (
        tools.make(twin.named_parameters(), **options),
        tools.make(model.named_parameters()),
    )
    tools.run(other, twin, range(2), meta_every=2)
    tools.run(optimizer, model, range(3), meta_every=2)
    rejected(
        optimizer,
        model,
        lambda: optimizer.load_state_dict(other.state_dict()),
        f"of {words}.*as it was saved",
    )


def test_states_of_another_grouping() -> None:
    model = tools.network()
    one, two = (
        tools.make(model.named_parameters(), grouping=g)
        for g in ({"first": "0", "rest": None}, {"last": "4", "rest": None})
    )
    tools.run(one, model, range(2))
    tools.run(two, model, range(1))
    rejected(
        two,
        model,
        lambda: two.load_state_dict(one.state_dict()),
        "another grouping or other parameters",
    )


def test_states_of_other_behaviour() -> None:
    model = tools.network()
    paper, reference = (
        tools.make(model.named_parameters(), network={"width": 12}, reproduce=r)
        for r in ("paper", "reference")
    )
    tools.run(paper, model, range(2))
    rejected(
        reference, model, lambda: reference.load_state_dict(paper.state_dict()), "another behaviour"
    )


def test_states_of_other_classes_and_parameters() -> None:
    model = tools.network()
    optimizer = tools.make(model.named_parameters())
    tools.run(optimizer, model, range(2))
    adamw = torch.optim.AdamW(tools.network().parameters())
    rejected(
        optimizer,
        model,
        lambda: optimizer.load_state_dict(adamw.state_dict()),
        "another optimizer class",
    )
    wide = nn.Sequential(
        nn.Linear(4, 7), nn.Tanh(), nn.Linear(7, 6), nn.Tanh(), nn.Linear(6, 3)
    ).double()
    wrong = tools.make(wide.named_parameters())
    tools.run(wrong, wide, range(1))
    words = r"other parameters: parameter 0 has shape \(6, 4\), its exp_avg has \(7, 4\)"
    rejected(optimizer, model, lambda: optimizer.load_state_dict(wrong.state_dict()), words)
    scalar, vector = (nn.Parameter(torch.zeros(shape)) for shape in ((), (3,)))
    state = tools.make([vector])
    vector.grad = torch.ones(3)
    state.step()
    with pytest.raises(UserError, match=r"parameter 0 has shape \(\), its exp_avg has \(3,\)"):
        tools.make([scalar]).load_state_dict(state.state_dict())


def drop(name: str) -> Callable[[dict[str, Any]], Any]:
    return lambda state: state["metaadamw"].pop(name)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        *(
            (drop(name), f"damaged: it has no {name}")
            for name in ("meta", "network", "factors", "updates", "weighting")
        ),
        (
            lambda s: s["metaadamw"]["network"].update(head=torch.zeros(2, 2)),
            "damaged: its network has other weights",
        ),
        (
            lambda s: s["metaadamw"]["meta"].pop("optimizer"),
            "what trains the network does not fit it",
        ),
        (
            lambda s: s["metaadamw"]["meta"]["optimizer"]["state"][0].update(
                exp_avg=torch.zeros(7)
            ),
            "does not fit it",
        ),
        (
            lambda s: s["metaadamw"]["meta"]["optimizer"]["param_groups"][0]["params"].pop(),
            "does not fit it",
        ),
        (
            lambda s: s["metaadamw"]["factors"]["active"].append(99),
            "its factors are of other parameters",
        ),
        (lambda s: s["metaadamw"]["weighting"].clear(), "its weighting has no s"),
        (lambda s: s["state"][0].pop("exp_avg_sq"), "damaged: parameter 0 has no exp_avg_sq"),
        (lambda s: s["state"][0].update(exp_avg_sq=torch.zeros(3)), r"its exp_avg_sq has \(3,\)"),
        (
            lambda s: s["state"][0].update(exp_avg_sq=torch.zeros(2, 6, 4)),
            r"parameter 0 has shape \(6, 4\), its exp_avg_sq has \(2, 6, 4\)",
        ),
        (lambda s: s["param_groups"][0].update(lr=-3.0), "lr must be at least 0"),
    ],
)
def test_damaged_states_change_nothing(damage: Callable[[dict[str, Any]], Any], words: str) -> None:
    model = tools.network()
    optimizer = tools.make(model.named_parameters())
    tools.run(optimizer, model, range(4), meta_every=2)
    state = copy.deepcopy(optimizer.state_dict())
    tools.run(optimizer, model, range(4, 6))
    damage(state)
    rejected(optimizer, model, lambda: optimizer.load_state_dict(state), words)
