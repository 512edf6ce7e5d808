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
