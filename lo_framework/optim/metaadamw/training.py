"""The training of MetaAdamW's network: its meta-gradient, agreed on by all processes, and Adam (as
published: SGD).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from lo_framework.errors import check_number
from lo_framework.learned.attention import Attention
from lo_framework.optim.metaadamw.network import HYPER_PART
from lo_framework.optim.metaadamw.published import Variant
from lo_framework.optim.shards import are_several


def mean_over_processes(x: Tensor) -> Tensor:
    """The mean of ``x``: each process sees batches of its own, and all must learn the same."""
    if not are_several():
        return x
    x = x.clone()
    dist.all_reduce(x)
    return x / dist.get_world_size()


def trained_names(network: Attention, variant: Variant) -> list[str]:
    """Meta-parameters that a meta step moves."""
    left_out = HYPER_PART if variant.gates_learn else (*HYPER_PART, "gates")
    return [name for name, _ in network.named_parameters() if name not in left_out]


def penalty(network: Attention, variant: Variant) -> Tensor:
    """The penalties in the meta-loss: as released, norms (not squared) of encoder and head; and
    sizes of gates.
    """
    total = network.head.new_zeros(())
    if variant.norm_penalty:
        weights: list[Tensor] = [network.head]
        for name, w in network.blocks.named_parameters():
            # Two norms' gains, and two norms' shifts, are one tensor each here.
            weights += w.unbind() if name.endswith(("gains", "shifts")) else [w]
        total = total + variant.norm_penalty * sum(torch.linalg.vector_norm(w) for w in weights)
    if network.config.gating and variant.gates_learn:
        published = network.config.encoder == "published"
        size = network.gates.abs() if published else torch.sigmoid(network.gates)
        total = total + variant.gate_penalty * size.sum()
    return total


class NetworkTrainer:
    """The network's own optimizer.

    Attributes:
        skipped: meta steps left out because their gradient or a term was not finite.
    """

    def __init__(self, network: Attention, variant: Variant, lr: float) -> None:
        """``lr`` 0: the usual one of the variant."""
        self.lr = check_number("meta_lr", lr) or variant.meta_lr
        self.network, self.variant = network, variant
        weights = dict(network.named_parameters())
        self.params = [weights[name] for name in trained_names(network, variant)]
        kind = torch.optim.Adam if variant.meta_optimizer == "adam" else torch.optim.SGD
        self.optimizer: torch.optim.Optimizer = kind(self.params, lr=self.lr)
        self.skipped = 0

    def pull_back(self, outputs: Sequence[Tensor], slopes: Sequence[Tensor]) -> None:
        """Put into the weights' ``.grad`` what ``slopes``, the meta-loss's derivatives by the
        network's ``outputs``, and the penalties come to.
        """
        for p in self.network.parameters():
            p.grad = None
        extra = penalty(self.network, self.variant)
        pairs = [(x, d.to(x)) for x, d in zip(outputs, slopes) if x.requires_grad]
        if extra.requires_grad:
            pairs.append((extra, torch.ones_like(extra)))
        if pairs:
            ends, by_ends = zip(*pairs)
            torch.autograd.backward(ends, by_ends, inputs=self.params)
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.params]
        flat = mean_over_processes(torch.cat([g.reshape(-1) for g in grads]))
        for p, part in zip(self.params, flat.split([p.numel() for p in self.params])):
            p.grad = part.view_as(p)

    def step(self, values: Tensor) -> None:
        """Move the network along its gradient, unless that or one of the ``values`` of the terms is
        not finite.
        """
        grads = [p.grad for p in self.params if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(grads)
        if not bool(torch.isfinite(norm) & torch.isfinite(values).all()):
            self.skipped += 1
            return
        if self.variant.clip:
            torch.nn.utils.clip_grads_with_norm_(self.params, self.variant.clip, norm)
        self.optimizer.step()

    def state_dict(self) -> dict[str, Any]:
        return {"optimizer": self.optimizer.state_dict(), "skipped": self.skipped}

    def fits(self, saved: dict[str, Any]) -> bool:
        """Whether `load_state_dict` can take it."""
        shapes, inner = [p.shape for p in self.params], saved.get("optimizer", {})
        sizes = [len(group["params"]) for group in inner.get("param_groups", ())]
        fits = "skipped" in saved and sizes == [len(shapes)]
        for k, state in inner.get("state", {}).items():
            tensors = [x for x in state.values() if isinstance(x, Tensor) and x.dim()]
            fits = fits and k in range(len(shapes)) and all(x.shape == shapes[k] for x in tensors)
        return fits

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        # torch would share the tensors of what it loads
        self.optimizer.load_state_dict(copy.deepcopy(saved["optimizer"]))
        self.skipped = saved["skipped"]
