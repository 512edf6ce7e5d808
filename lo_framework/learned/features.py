"""Input features of learned optimizers. The only copy: a change of any of them is a new
``FEATURE_VERSION``.

Sources: time embedding, moment decays, per-tensor normalisation and the factored second moment
follow Metz et al. 2020/2022 (MLPLOpt, Adafac-MLP); the log-and-sign gradient preprocessing is
Andrychowicz et al. 2016.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from lo_framework.layout import Layout

# 2: the 39 features of ``mlp`` are the published ones, and log_and_sign has no upper cap. Whoever
# was trained on version 1 goes on with it: its config says so.
FeatureVersion = Literal[1, 2]
FEATURE_VERSION: FeatureVersion = 2
TIME_SCALES = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1e3, 3e3, 1e4, 3e4, 1e5)
TOKEN_STATS = ("g^2", "m^2", "p^2", "g*m", "v")


def second_moment_scale(mean_square: Tensor, eps: float = 1e-5) -> Tensor:
    """Factor that brings a feature to unit root mean square within its tensor: ``rsqrt(eps + mean
    x^2)``.
    """
    return torch.rsqrt(eps + mean_square)


def time_embedding(step: Tensor) -> Tensor:
    """``tanh(t / tau - 1)`` for eleven time scales tau: ``[11]``. The same for every parameter, so
    never tiled over them.
    """
    return torch.tanh(step / step.new_tensor(TIME_SCALES) - 1.0)


def factored_moments(
    layout: Layout, grads: Tensor, state: dict[str, Tensor], keep: Tensor, published: bool = True
) -> dict[str, Tensor]:
    """Row and column averages of squared gradients ``[D, N]`` for D decays (``keep [D, 1]``: 1 -
    decay), and what they make of the inverse root of a full second moment: ``factor``.

    ``published``: whether as since feature version 2, which also has a ``grad_factor`` for
    gradients.
    """
    squared = grads * grads + 1e-30
    ranks = (-1, -2) if published else (-2, -1)
    row, col = (layout.axis_mean(squared, rank) for rank in ranks)
    row = state["row"] + keep * (row - state["row"])
    col = state["col"] + keep * (col - state["col"])
    # What the rows are relative to: their mean within each slice of the two largest axes.
    mean = layout.axis_mean(row, -2) if published else layout.expand(layout.mean(row))
    factor = _safe_rsqrt(row / (mean + 1e-9)) * _safe_rsqrt(col)
    # A vector has no rows and columns: its full second moment stands in.
    is_vector = layout.vector_mask.to(grads.device)
    new = {"row": row, "col": col}
    new["factor"] = torch.where(is_vector, torch.rsqrt(row + 1e-6), factor)
    if published:  # the published code has another eps where the gradient is scaled
        new["grad_factor"] = torch.where(is_vector, _safe_rsqrt(row + 1e-9), factor)
    return new


def moment_features(
    params: Tensor, grads: Tensor, m: Tensor, v: Tensor, factored: dict[str, Tensor]
) -> list[Tensor]:
    """The features of Adafac-MLP in their published order, each ``[rows, n]``, from momenta ``m``,
    a second moment ``v [1, n]`` and `factored_moments`. Not yet normalised.
    """
    row, col, factor = factored["row"], factored["col"], factored["factor"]
    inverse = torch.rsqrt(v + 1e-6)
    return [
        grads[None],
        params[None],
        m,
        v,
        m * inverse,
        inverse,
        grads * factored.get("grad_factor", factor),
        row,
        col,
        torch.rsqrt(row + 1e-8),
        torch.rsqrt(col + 1e-8),
        m * factor,
    ]


def _safe_rsqrt(x: Tensor) -> Tensor:
    return torch.rsqrt(x.clamp_min(1e-9))


def log_and_sign(grads: Tensor, k: float = 5.0, version: int = FEATURE_VERSION) -> Tensor:
    """``(max(log|g| / k, -1), clip(g e^k, -1, 1))``: ``[2, n]``, for gradients of every magnitude;
    version 1 caps the logarithm at 1.
    """
    cap = 1.0 if version == 1 else None
    size = (torch.log(grads.abs() + 1e-16) / k).clamp(-1.0, cap)
    return torch.stack([size, (grads * math.exp(k)).clamp(-1.0, 1.0)])


TOKEN_WIDTH = 5 + Layout.DESCRIPTORS + 5


def token_features(
    layout: Layout, stats: Tensor, state: dict[str, Tensor], progress: Tensor
) -> Tensor:
    """The tokens that attention attends over, ``[TOKEN_WIDTH, S]``, bounded or logarithmic.

    ``stats [5, S]`` are the means of :data:`TOKEN_STATS` with the OLD moments, at meta-training and
    at use alike. Means instead of norms, so that a bias does not weigh as much as an embedding and
    nothing scales with the number of parameters.
    """
    unbias = 1.0 / (-torch.expm1(state["log_power"])).clamp_min(
        1e-3
    )  # zero moments at the first step stay zero
    tiny = 1e-14
    g2, m2, p2, gm, v = stats
    m2, gm, v = m2 * unbias[0] ** 2, gm * unbias[0], v * unbias[1]
    log_g = 0.5 * torch.log(g2 + tiny)
    moving = torch.stack(
        [
            log_g / 5.0,
            (0.5 * torch.log(m2 + tiny) - log_g).clamp(-3.0, 3.0),
            (0.5 * torch.log(v + tiny) - log_g).clamp(-3.0, 3.0),
            0.5 * torch.log(p2 + tiny) / 5.0,
            # Two roots, not one of the product: the derivative of rsqrt(1e-28) overflows float32,
            # and 0 * inf is NaN.
            gm * torch.rsqrt(m2 + tiny) * torch.rsqrt(g2 + tiny),
        ]
    )
    step = state["step"]
    time = torch.stack(
        [
            progress,
            2 * progress - 1,
            torch.exp(-step / 3.0),
            torch.exp(-step / 20.0),
            torch.log1p(step) / 10.0,
        ]
    )
    return torch.cat([moving, layout.descriptors.to(stats), time[:, None].expand(-1, layout.num)])
