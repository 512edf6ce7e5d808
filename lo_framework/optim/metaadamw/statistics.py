"""Statistics of tensors for the tokens: ``[F, S]`` means of the network's measurements, without
waiting for the device.

`learned.group_features.measured` is the definition, and what small tensors (biases, norms) get,
side by side: what they cost is the number of operations. For large ones, norms of whole lists take
the place of its products, which would be written to memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from lo_framework.learned.attention import Attention
from lo_framework.learned.kernels import kernels_of
from lo_framework.native import toolchain
from lo_framework.optim.learned.store import SMALL

FEW = 4  # small tensors side by side are worth it from here on
State = dict[str, Tensor]


class MeasuringOrder(NamedTuple):
    """The order in which tensors are measured: ``places [S]`` in their list, the first ``cut`` side
    by side.
    """

    places: tuple[int, ...]
    cut: int
    numel: Tensor  # [S], in this order
    back: Tensor  # [S], to the order of the list
    bounds: Tensor  # [S + 1], where each would begin if they lay one behind the other


def make_order(params: Sequence[Tensor]) -> MeasuringOrder:
    """Put small tensors first, to be measured side by side."""
    first = params[0].device
    small = [p.numel() <= SMALL and p.device == first for p in params]
    if sum(small) < FEW:
        small = [False] * len(params)
    places = sorted(range(len(params)), key=lambda k: not small[k])
    back = sorted(range(len(params)), key=places.__getitem__)
    numel = torch.tensor([params[k].numel() for k in places], device=first)
    bounds = torch.tensor([0, *accumulate(numel.tolist())])
    return MeasuringOrder(
        tuple(places), sum(small), numel, torch.tensor(back, device=first), bounds
    )


@torch.no_grad()
def statistics(
    network: Attention,
    order: MeasuringOrder,
    params: Sequence[Tensor],
    grads: Sequence[Tensor | None],
    states: Sequence[State],
) -> Tensor:
    """Means ``[F, S]`` of what the network measures; a missing gradient is zero."""
    ms = [states[k]["exp_avg"] for k in order.places]
    vs = [states[k]["exp_avg_sq"] for k in order.places]
    ps, gs = ([_as(xs[k], m) for k, m in zip(order.places, ms)] for xs in (params, grads))
    sums = _by_kernel(network, order, {"params": ps, "grads": gs, "m": ms, "v": vs})
    if sums is not None:
        return (sums / order.numel).index_select(1, order.back)
    parts = ((slice(order.cut), _side_by_side), (slice(order.cut, None), _by_norms))
    several = [
        sums_of(network, [x[part] for x in (ps, gs, ms, vs)], order.numel[part])
        for part, sums_of in parts
        if order.places[part]
    ]
    means = torch.cat(several, dim=1) / order.numel
    return (means.index_select(1, order.back) if order.cut else means).to(network.head.dtype)


def _by_kernel(
    network: Attention, order: MeasuringOrder, columns: dict[str, list[Tensor]]
) -> Tensor | None:
    """Sums ``[F, S]`` where a kernel can read all tensors as they lie; else None."""
    if order.numel.device.type != "cpu" or network.head.dtype != torch.float32:
        return None
    for x in (x for each in columns.values() for x in each):
        if x.dtype != torch.float32 or not (x.is_cpu and x.is_contiguous()):
            return None
    if toolchain.reason():
        return None
    return kernels_of(network).sums(network, columns, order.bounds)


def _side_by_side(network: Attention, tensors: list[list[Tensor]], numel: Tensor) -> Tensor:
    """Sums ``[F, tensors]`` of the measurements of tensors in one row."""
    p, g, m, v = (torch.cat([_flat(x) for x in each]) for each in tensors)
    measured = network.measure(p, g, {"m": m, "v": v})
    lengths = numel.expand(measured.shape[0], -1).contiguous()
    return torch.segment_reduce(measured, "sum", lengths=lengths, axis=1, unsafe=True)


def _by_norms(network: Attention, tensors: list[list[Tensor]], numel: Tensor) -> Tensor:
    """Sums ``[F, tensors]`` from norms; tensors may be on several devices."""
    names, (ps, gs, ms, vs) = network.spec.stats, tensors
    squared = [gs, ms, ps, vs] if "v^2" in names else [gs, ms, ps]
    counted = [gs, ms] if "g=0" in names else []
    measured: list[Sequence[Tensor]] = [torch._foreach_norm(x) for x in squared]
    dots = [torch.dot(_flat(g), _flat(m)) for g, m in zip(gs, ms)]
    measured[3:3] = [dots, [v.sum() for v in vs]]
    measured += [torch._foreach_norm(x, 0) for x in counted]
    numbers = [x for row in measured for x in row]
    if any(m.device != numel.device for m in ms):
        numbers = [x.to(numel.device) for x in numbers]
    sums = torch.stack(numbers).view(len(measured), -1)
    sums[:3].square_()
    sums[5 : len(squared) + 2].square_()
    if counted:
        sums[-2:] = numel - sums[-2:]
    return sums


def _as(x: Tensor | None, like: Tensor) -> Tensor:
    if x is None:
        return torch.zeros_like(like)
    return x if x.dtype == like.dtype else x.to(like.dtype)


def _flat(x: Tensor) -> Tensor:
    return x if x.dim() == 1 else x.reshape(-1)
