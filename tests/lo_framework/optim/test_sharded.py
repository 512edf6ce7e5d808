"""Parameters that are sharded over processes: two of them come to the weights of one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from tests.lo_framework.optim import sharded, tools
from tests.lo_framework.optim.sharded import DOUBLE, STEPS, Named, distance, make, network, spawned

SINGLE = torch.float32
# What `scaled` rounds, its orthogonal directions make a thousand times larger within 20 steps: in
# float32 two orders of one sum are 1e-4 apart, in float64 1e-12.
ROUGH = ("general", "scaled", "celo2")
QUICK = ["general", "attention-mlp", "metaadamw", "metaoptimize|tensor"]
MORE = ["general|decay", "general|guard", "hyper-adamw", "hyper-adamw|decay", "attention", "mlp"]
MORE += ["mlp:features=39", "lstm", "celo2", "scaled:controller=attention", "metaoptimize"]
MORE += ["sam", "s2sam"]


def cases(specs: list[str]) -> list[tuple[str, torch.dtype]]:
    return [(spec, DOUBLE if spec.startswith(ROUGH) else SINGLE) for spec in specs]


def alone(spec: str, dtype: torch.dtype) -> list[torch.Tensor]:
    model = network(dtype)
    sharded.train(make(spec, model), model, range(STEPS))
    return sharded.whole(model)


@pytest.mark.parametrize("specs", [QUICK, pytest.param(MORE, marks=pytest.mark.slow)])
def test_two_processes_are_as_one(specs: list[str], tmp_path: Path) -> None:
    """``fully_shard``, with uneven and empty shards."""
    found = spawned("trained", cases(specs), tmp_path)
    for case, result in found.items():
        bound = 1e-9 if case[1] == DOUBLE else 1e-6
        assert distance(result["weights"], alone(*case)) < bound, case
        assert distance(result["weights"], network(case[1]).parameters()) > 1e-3, case
        # one call for the statistics of all tensors, where no whole matrices are needed
        name = case[0].partition("|")[0]
        if name in ("attention-mlp", "attention", "metaadamw", "metaoptimize"):
            assert len(result["calls"]) == 1, case
        if case[0] in ("hyper-adamw", "lstm"):
            assert not result["calls"], case
        assert sum(result["calls"]) < 600, case


@pytest.mark.slow
def test_any_placement(tmp_path: Path) -> None:
    """Sharded on another dimension, copied, and no DTensor at all in one optimizer; gradients that
    are placed otherwise.
    """
    specs = [*QUICK, *(spec for spec in MORE if spec not in ("general|guard", "sam", "s2sam"))]
    for case, result in spawned("placed", [(spec, DOUBLE) for spec in specs], tmp_path).items():
        params = tools.parameters(dtype=DOUBLE)
        optimizer = make(case[0], Named(params))
        tools.run(optimizer, params, range(STEPS))  # type: ignore[arg-type]
        assert distance(result["weights"], params) < 1e-9, case


@pytest.mark.slow
def test_meshes_of_two_dimensions(tmp_path: Path) -> None:
    """FSDP2 over tensor parallelism (strided shards), and over copies."""
    specs = [*QUICK, "mlp:features=39"]
    given = [(spec, DOUBLE) for spec in specs]
    for case, result in spawned("two_dimensions", given, tmp_path, world=4).items():
        for way, weights in result.items():
            assert distance(weights, alone(*case)) < 1e-9, (case, way)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_resumed_through_a_checkpoint(tmp_path: Path) -> None:
    """By as many processes, and by one: torch shards the state anew."""
    specs = ["general", "hyper-adamw", "mlp:features=39", "metaadamw", "metaoptimize", "sam"]
    for case, result in spawned("resumed", [(s, DOUBLE) for s in specs], tmp_path).items():
        assert distance(result["resumed"], result["weights"]) < 1e-9, case
        assert distance(result["from whole"], result["weights"]) < 1e-9, case
        model = network(DOUBLE)
        optimizer = make(case[0], model)
        sharded.load(model, optimizer, tmp_path / case[0].replace("|", "-"))
        sharded.train(optimizer, model, range(sharded.HALF, STEPS))
        assert distance(sharded.whole(model), result["weights"]) < 1e-9, case


@pytest.mark.slow
def test_all_processes_take_notice_of_one_loss(tmp_path: Path) -> None:
    ((_, result),) = spawned("guarded", [("any", DOUBLE)], tmp_path).items()
    assert all(x.isfinite().all() for x in result["weights"])
    assert any("starts anew" in line for line in result["said"])


@pytest.mark.slow
def test_copies_stay_copies_whatever_loss_a_process_tells(tmp_path: Path) -> None:
    ((_, result),) = spawned("replicated", [("any", DOUBLE)], tmp_path).items()
    assert result["activations"] == 0


@pytest.mark.slow
def test_what_cannot_be_is_refused(tmp_path: Path) -> None:
    ((_, result),) = spawned("refused", [("any", SINGLE)], tmp_path).items()
    words = ["whole tensors", "whole tensors", "needs whole parameters", "other processes"]
    assert len(result["lines"]) == len(words)
    assert all(word in line for word, line in zip(words, result["lines"], strict=True))
    assert not any("\n" in line for line in result["lines"])


def test_a_plain_list_has_no_parts() -> None:
    optimizer = make("general", nn.Linear(3, 2))
    assert optimizer._here is optimizer._params  # type: ignore[attr-defined]
