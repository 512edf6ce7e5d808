"""What trains MetaAdamW's network: its meta-gradient, agreed on by all processes, and Adam (as
published: SGD).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from lo_framework.learned.attention import Attention
from lo_framework.optim.metaadam.differences import Differences
from lo_framework.optim.metaadam.network import penalty, trained_names
from lo_framework.spec import UserError


def mean_over_processes(x: Tensor) -> Tensor:
    """Each of several processes sees batches of its own; what they learn must be the same."""
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return x
    x = x.clone()
    dist.all_reduce(x)
    return x / dist.get_world_size()


class MetaOptimizer:
    """
    Attributes:
        skipped: meta steps left out because their gradient or a term was not finite.
    """

    def __init__(self, network: Attention, differences: Differences, lr: float | None) -> None:
        self.lr = differences.meta_lr if lr is None else lr
        if not 0 <= self.lr < math.inf:
            raise UserError(f"meta_lr must be at least 0 and finite, not {self.lr}")
        self.network, self.differences = network, differences
        own = dict(network.named_parameters())
        self.params = [own[name] for name in trained_names(network, differences)]
        kind = torch.optim.Adam if differences.meta_optimizer == "adam" else torch.optim.SGD
        self.optimizer: torch.optim.Optimizer = kind(self.params, lr=self.lr)
        self.skipped = 0

    def take(self, outputs: Sequence[Tensor], slopes: Sequence[Tensor]) -> None:
        """Pull ``slopes`` of the meta-loss by the network's ``outputs`` back to its weights, into
        their ``.grad``.
        """
        for p in self.network.parameters():
            p.grad = None
        extra = penalty(self.network, self.differences)
        pairs = [(x, d.to(x)) for x, d in zip(outputs, slopes) if x.requires_grad]
        if extra.requires_grad:
            pairs.append((extra, torch.ones_like(extra)))
        if pairs:
            torch.autograd.backward(
                [x for x, _ in pairs], [d for _, d in pairs], inputs=self.params
            )
        self._agree()

    def step(self, values: Tensor) -> None:
        """Move the network along its gradient, unless that or one of the ``values`` of the terms is
        not finite.
        """
        grads = [p.grad for p in self.params if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(grads)
        if not bool(torch.isfinite(norm) & torch.isfinite(values).all()):
            self.skipped += 1
            return
        if self.differences.clip:
            torch.nn.utils.clip_grads_with_norm_(self.params, self.differences.clip, norm)
        self.optimizer.step()

    def _agree(self) -> None:
        for p in self.params:
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad
        flat = mean_over_processes(torch.cat([p.grad.reshape(-1) for p in self.params]))  # type: ignore[union-attr]
        for p, part in zip(self.params, flat.split([p.numel() for p in self.params])):
            p.grad = part.view_as(p)

    def state_dict(self) -> dict[str, Any]:
        return {"optimizer": self.optimizer.state_dict(), "skipped": self.skipped}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(
            copy.deepcopy(saved["optimizer"])
        )  # torch would share its tensors
        self.skipped = saved["skipped"]
