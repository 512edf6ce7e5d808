"""Statistics of tensors for the tokens: ``[F, S]`` means of what the network measures, nothing read back.

`learned.group_features.measured` is the definition. Here norms of whole lists take the place of its products: one call
a statistic, whatever the number of tensors.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lo_framework.learned.attention import Attention


@torch.no_grad()
def statistics(
    network: Attention, params: Sequence[Tensor], grads: Sequence[Tensor | None], states: Sequence[dict[str, Tensor]]
) -> Tensor:
    """A missing gradient is zero."""
    ms, vs = [s["exp_avg"] for s in states], [s["exp_avg_sq"] for s in states]
    gs = [torch.zeros_like(m) if g is None else _as(g, m) for g, m in zip(grads, ms)]
    ps = [_as(p, m) for p, m in zip(params, ms)]
    first = params[0].device
    one_place = all(m.device == first for m in ms)

    def stacked(parts: Sequence[Tensor]) -> Tensor:
        return torch.stack(list(parts) if one_place else [x.to(first) for x in parts])

    rows = [stacked(torch._foreach_norm(x)).square_() for x in (gs, ms, ps)]
    rows.append(stacked([torch.dot(g.reshape(-1), m.reshape(-1)) for g, m in zip(gs, ms)]))
    rows.append(stacked([v.sum() for v in vs]))
    names = network.spec.stats
    if "v^2" in names:
        rows.append(stacked(torch._foreach_norm(vs)).square_())
    sizes = rows[0].new_tensor([p.numel() for p in params])
    if "g=0" in names:
        rows += [sizes - stacked(torch._foreach_norm(x, 0)) for x in (gs, ms)]
    return (torch.stack(rows) / sizes).to(network.head.dtype)


def _as(x: Tensor, like: Tensor) -> Tensor:
    return x.detach() if x.dtype == like.dtype else x.detach().to(like.dtype)
