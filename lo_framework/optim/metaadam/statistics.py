"""Statistics of tensors for the tokens: ``[F, S]`` means of what the network measures, nothing read
back.

`learned.group_features.measured` is the definition, and what small tensors (biases, norms) get,
side by side: what they cost is the number of operations. For large ones, norms of whole lists take
the place of its products, which would be written to memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lo_framework.learned.attention import Attention
from lo_framework.optim.learned.store import SMALL

FEW = 4  # small tensors side by side are worth it from here on
State = dict[str, Tensor]


class Order(NamedTuple):
    """In which tensors are measured: ``places [S]`` in their list, the first ``cut`` side by side."""

    places: tuple[int, ...]
    cut: int
    numel: Tensor  # [S], in this order
    back: Tensor  # [S], to the order of the list


def make_order(params: Sequence[Tensor]) -> Order:
    """Small ones first."""
    first = params[0].device
    alike = [p.numel() <= SMALL and p.device == first for p in params]
    if sum(alike) < FEW:
        alike = [False] * len(params)
    places = sorted(range(len(params)), key=lambda k: not alike[k])
    back = sorted(range(len(params)), key=places.__getitem__)
    numel = torch.tensor([params[k].numel() for k in places], device=first)
    return Order(tuple(places), sum(alike), numel, torch.tensor(back, device=first))


@torch.no_grad()
def statistics(
    network: Attention,
    order: Order,
    params: Sequence[Tensor],
    grads: Sequence[Tensor | None],
    states: Sequence[State],
) -> Tensor:
    """A missing gradient is zero."""
    ms = [states[k]["exp_avg"] for k in order.places]
    vs = [states[k]["exp_avg_sq"] for k in order.places]
    gs = [
        torch.zeros_like(m) if (g := grads[k]) is None else _as(g, m)
        for k, m in zip(order.places, ms)
    ]
    ps = [_as(params[k], m) for k, m in zip(order.places, ms)]
    cut, found = order.cut, []
    if cut:
        found.append(
            _side_by_side(network, ps[:cut], gs[:cut], ms[:cut], vs[:cut], order.numel[:cut])
        )
    if cut < len(params):
        found.append(_by_norms(network, ps[cut:], gs[cut:], ms[cut:], vs[cut:], order.numel[cut:]))
    means = torch.cat(found, dim=1) / order.numel
    return (means.index_select(1, order.back) if cut else means).to(network.head.dtype)


def _side_by_side(
    network: Attention,
    ps: list[Tensor],
    gs: list[Tensor],
    ms: list[Tensor],
    vs: list[Tensor],
    numel: Tensor,
) -> Tensor:
    """Sums ``[F, tensors]``."""
    p, g, m, v = (torch.cat([_flat(x) for x in rows]) for rows in (ps, gs, ms, vs))
    measured = network.measure(p, g, {"m": m, "v": v})
    lengths = numel.expand(measured.shape[0], -1).contiguous()
    return torch.segment_reduce(measured, "sum", lengths=lengths, axis=1, unsafe=True)


def _by_norms(
    network: Attention,
    ps: list[Tensor],
    gs: list[Tensor],
    ms: list[Tensor],
    vs: list[Tensor],
    numel: Tensor,
) -> Tensor:
    """The same; tensors may be on several devices."""
    names = network.spec.stats
    rows: list[Sequence[Tensor]] = [torch._foreach_norm(x) for x in (gs, ms, ps)]
    rows.append([torch.dot(_flat(g), _flat(m)) for g, m in zip(gs, ms)])
    rows.append([v.sum() for v in vs])
    if "v^2" in names:
        rows.append(torch._foreach_norm(vs))
    if "g=0" in names:
        rows += [torch._foreach_norm(x, 0) for x in (gs, ms)]
    parts = [x for row in rows for x in row]
    if any(m.device != numel.device for m in ms):
        parts = [x.to(numel.device) for x in parts]
    found = torch.stack(parts).view(len(rows), -1)
    found[:3].square_()
    if "v^2" in names:
        found[5].square_()
    if "g=0" in names:
        found[-2:] = numel - found[-2:]
    return found


def _as(x: Tensor, like: Tensor) -> Tensor:
    return x if x.dtype == like.dtype else x.to(like.dtype)


def _flat(x: Tensor) -> Tensor:
    return x if x.dim() == 1 else x.reshape(-1)
