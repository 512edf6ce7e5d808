"""Step sizes as users see them: by name, and as scalars for plots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lo_framework.optim.metaopt.blocks import Blocks


def by_name(
    blocks: Blocks, alphas: Tensor, params: Sequence[Tensor], of_weights: bool
) -> dict[str, Tensor]:
    """``alphas [m]`` by block; by tensor where each has several, shaped as the tensor if there is
    one a weight.
    """
    if not blocks.by_tensor:
        return dict(zip(blocks.names, alphas.unbind()))
    parts = [alphas[first : first + count] for first, count in blocks.spreads]
    shapes = [p.shape if of_weights else part.shape for p, part in zip(params, parts)]
    return {name: part.view(shape) for name, part, shape in zip(blocks.names, parts, shapes)}


def scalars(step_sizes: Mapping[str, Tensor], many: bool) -> dict[str, float]:
    """One value a name; if there are many a name: least, median and greatest."""
    values = {}
    for name, x in step_sizes.items():
        if not many:
            values[name] = x
        elif x.numel():
            values.update(
                {f"{name}/min": x.min(), f"{name}/median": x.median(), f"{name}/max": x.max()}
            )
    return dict(zip(values, torch.stack([*values.values()]).tolist()))
