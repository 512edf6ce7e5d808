"""A second look at the point after an update: what objectives about steps need
(`objectives.steps`).

The gradient there, on a second training batch, carries a meta-gradient of its own: it is taken at
parameters that the learned optimizer made, and its derivative by them is a Hessian-vector product.
First-order mode keeps that derivative as well: there the gradient that the optimizer saw is a
constant, and without it nothing of the term would be left to learn from. Under ES and PES no graph
is kept.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lo_framework.episode import After, Draw, Need, Place
from lo_framework.flat_task import FlatTask
from lo_framework.objectives.terms import cosine


def look(
    needs: Need, flat: FlatTask, start: Tensor, end: Place, draw: Draw, seen: Tensor, alive: Tensor
) -> After:
    """Look at ``end`` (on held-out data), where the step from ``start [K, N]`` led by the gradient
    ``seen [K, N]``.

    Both sides of the step have the buffers that it left and the same dropout: they differ by
    parameters alone.
    """
    before = loss = torch.zeros_like(start[:, 0]).detach()
    squares = cosines = start.new_zeros(len(start), flat.layout.num)
    if Need.BEFORE in needs:
        with torch.no_grad():
            before, _ = flat.losses(end._replace(params=start.detach()))
    again = end._replace(batch=draw.second)
    if Need.SLOPE in needs:
        loss, grads, _ = flat.gradients(again, through=True)
        mean = flat.layout.mean
        squares = mean(grads * grads)
        cosines = cosine(mean(seen * grads), mean(seen * seen), squares)
    elif Need.SECOND in needs:
        loss, _ = flat.losses(again)
    return After(
        torch.where(alive, before, torch.inf),
        torch.where(alive, loss, torch.inf),
        torch.where(alive[:, None], squares, torch.inf),
        torch.where(alive[:, None], cosines, -1.0),
    )
