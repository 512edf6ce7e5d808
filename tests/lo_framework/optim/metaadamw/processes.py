"""What each of several processes does in the tests of MetaAdamW under DistributedDataParallel."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lo_framework.optim import MetaAdamW
from tests.lo_framework.optim.metaadamw import tools

Found = dict[str, list[Tensor]]


def work(rank: int, folder: str, order: str, inside: bool) -> None:
    """Train on batches of one's own, and write what came of it; ``inside``: `meta_step` runs the
    model itself, not its wrapper.
    """
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    try:
        # In a function of its own: a wrapper that outlives its group can wait for ever at its end.
        _train(rank, folder, order, inside)
    finally:
        dist.destroy_process_group()


def _train(rank: int, folder: str, order: str, inside: bool) -> None:
    model = tools.noisy_network()
    model.pop(3)  # without dropout: the generators of the processes are alike
    wrapped = nn.parallel.DistributedDataParallel(model)
    optimizer = tools.make(wrapped.named_parameters(), order=order)
    loss, found = (
        tools.loss_of(wrapped),
        Found(weights=[], theta=[], s=[], grads=[], buffers=[]),
    )
    for t in range(6):
        optimizer.zero_grad()
        loss(tools.batch(2 * t + rank)).backward()
        optimizer.step()
        if t % 2:
            one_meta_step(optimizer, model if inside else wrapped, t, rank, found)
    found["weights"].append(tools.weights(model))
    torch.save(found, Path(folder) / f"{rank}.pt")


def one_meta_step(optimizer: MetaAdamW, model: nn.Module, t: int, rank: int, found: Found) -> None:
    before = (
        tools.flat(model.buffers()),
        tools.flat(p.grad for p in model.parameters()),
        tools.weights(model),
    )
    optimizer.meta_step(
        tools.loss_of(model), *(tools.batch(500 + 10 * t + 2 * k + rank) for k in range(3))
    )
    after = (
        tools.flat(model.buffers()),
        tools.flat(p.grad for p in model.parameters()),
        tools.weights(model),
    )
    assert all(torch.equal(x, y) for x, y in zip(before, after))
    assert optimizer.meta_objective.weighting is not None
    found["buffers"].append(after[0])
    found["grads"].append(tools.flat(p.grad for p in optimizer._trainer.params))
    found["theta"].append(tools.theta(optimizer))
    found["weights"].append(tools.weights(model))
    found["s"].append(optimizer.meta_objective.weighting.dump()["s"])
