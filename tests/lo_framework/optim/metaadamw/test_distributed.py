"""MetaAdamW under DistributedDataParallel: processes that see batches of their own stay alike,
network and all.
"""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.lo_framework.optim.metaadamw import tools
from tests.lo_framework.optim.metaadamw.processes import work


def _beside_a_twin() -> None:
    model = tools.network()
    twin = copy.deepcopy(model)
    parallel = nn.parallel.DistributedDataParallel(model, gradient_as_bucket_view=True)
    one, two = tools.make(parallel.named_parameters()), tools.make(twin.named_parameters())
    tools.run(one, parallel, range(6), meta_every=2)
    tools.run(two, twin, range(6), meta_every=2)
    assert torch.equal(tools.weights(model), tools.weights(twin))
    assert torch.equal(tools.theta(one), tools.theta(two))


def test_one_process_is_as_none(tmp_path: Path) -> None:
    """Gradients that are views of reduction buckets, and a meta step through the wrapper."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1
    )
    try:
        # In a function of its own: a wrapper that outlives its group can wait for ever at its end.
        _beside_a_twin()
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize(
    ("order", "inside"),
    [
        ("difference", False),
        pytest.param("difference", True, marks=pytest.mark.slow),
        pytest.param("exact", False, marks=pytest.mark.slow),
    ],
)
def test_two_processes_stay_alike(order: str, inside: bool, tmp_path: Path) -> None:
    """Parameters, network and log variances after meta steps on different batches; the model's
    gradients and running statistics stay in place, though the wrapper hands statistics round in
    every pass.
    """
    torch.multiprocessing.spawn(work, (str(tmp_path), order, inside), nprocs=2)
    one, two = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    for name in ("weights", "theta", "s", "grads"):
        assert len(one[name]) >= 3
        for x, y in zip(one[name], two[name], strict=True):
            assert torch.equal(x, y), name
        assert not torch.equal(one[name][0], one[name][-1]), f"{name} never moved"
