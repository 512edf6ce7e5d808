"""Statistics of tensors for the tokens: ``[F, S]`` means of what the network measures, nothing read back.

`learned.group_features.measured` is the definition, and what small tensors (biases, norms) get, side by side: what they
cost is the number of operations. For large ones, norms of whole lists take the place of its products, which would be
written to memory.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lo_framework.learned.attention import Attention
from lo_framework.optim.packs import SMALL

FEW = 4  # small tensors side by side are worth it from here on
State = dict[str, Tensor]


@torch.no_grad()
def statistics(
    network: Attention, params: Sequence[Tensor], grads: Sequence[Tensor | None], states: Sequence[State]
) -> Tensor:
    """A missing gradient is zero."""
    first, numel = params[0].device, [p.numel() for p in params]
    alike = [n <= SMALL and p.device == first for n, p in zip(numel, params)]
    if sum(alike) < FEW:
        alike = [False] * len(params)
    order = sorted(range(len(params)), key=lambda k: not alike[k])  # small ones first
    ms = [states[k]["exp_avg"] for k in order]
    vs = [states[k]["exp_avg_sq"] for k in order]
    gs = [torch.zeros_like(m) if (g := grads[k]) is None else _as(g, m) for k, m in zip(order, ms)]
    ps = [_as(params[k], m) for k, m in zip(order, ms)]
    cut, sizes = sum(alike), [numel[k] for k in order]
    found = []
    if cut:
        found.append(_side_by_side(network, ps[:cut], gs[:cut], ms[:cut], vs[:cut], sizes[:cut]))
    if cut < len(params):
        found.append(_by_norms(network, ps[cut:], gs[cut:], ms[cut:], vs[cut:], sizes[cut:], first))
    means = torch.cat(found, dim=1) / found[0].new_tensor(sizes)
    if cut:
        back = sorted(range(len(params)), key=order.__getitem__)
        means = means.index_select(1, torch.tensor(back, device=first))
    return means.to(network.head.dtype)


def _side_by_side(
    network: Attention, ps: list[Tensor], gs: list[Tensor], ms: list[Tensor], vs: list[Tensor],
    sizes: Sequence[int],
) -> Tensor:  # fmt: skip
    """Sums ``[F, tensors]``."""
    p, g, m, v = (torch.cat([_flat(x) for x in rows]) for rows in (ps, gs, ms, vs))
    measured = network.measure(p, g, {"m": m, "v": v})
    lengths = torch.tensor(sizes, device=measured.device).expand(measured.shape[0], -1).contiguous()
    return torch.segment_reduce(measured, "sum", lengths=lengths, axis=1, unsafe=True)


def _by_norms(
    network: Attention, ps: list[Tensor], gs: list[Tensor], ms: list[Tensor], vs: list[Tensor],
    sizes: Sequence[int], first: torch.device,
) -> Tensor:  # fmt: skip
    """The same; tensors may be on several devices."""
    one_place = all(m.device == first for m in ms)

    def stacked(parts: Sequence[Tensor]) -> Tensor:
        return torch.stack(list(parts) if one_place else [x.to(first) for x in parts])

    rows = [stacked(torch._foreach_norm(x)).square_() for x in (gs, ms, ps)]
    rows.append(stacked([torch.dot(_flat(g), _flat(m)) for g, m in zip(gs, ms)]))
    rows.append(stacked([v.sum() for v in vs]))
    names = network.spec.stats
    if "v^2" in names:
        rows.append(stacked(torch._foreach_norm(vs)).square_())
    if "g=0" in names:
        numel = rows[0].new_tensor(sizes)
        rows += [numel - stacked(torch._foreach_norm(x, 0)) for x in (gs, ms)]
    return torch.stack(rows)


def _as(x: Tensor, like: Tensor) -> Tensor:
    return x if x.dtype == like.dtype else x.to(like.dtype)


def _flat(x: Tensor) -> Tensor:
    return x if x.dim() == 1 else x.reshape(-1)
