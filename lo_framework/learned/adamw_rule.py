"""AdamW's update with per-tensor hyper-parameters, the common trunk of the growing family of
learned optimizers.

Loshchilov & Hutter 2019 with torch's conventions: decoupled decay of the old parameters, eps
outside the square root. Betas may change from step to step, so bias correction uses running
products instead of powers (in logarithms).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

TINY = (
    1e-30  # keeps the derivative of sqrt finite at an exactly zero second moment; far below any eps
)


class AdamWChannels(NamedTuple):
    """Per-tensor (``[S]``) or per-parameter (``[n]``) quantities of one AdamW step."""

    step_size: Tensor  # lr / (1 - prod beta1)
    decay: Tensor  # lr * weight_decay
    keep1: Tensor  # 1 - beta1
    keep2: Tensor  # 1 - beta2
    unbias2: Tensor  # 1 / (1 - prod beta2)
    eps: Tensor


def moments(c: AdamWChannels, grads: Tensor, m: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """The two exponential moving averages after this gradient."""
    return m + c.keep1 * (grads - m), v + c.keep2 * (grads * grads - v)


def inverse_rms(c: AdamWChannels, v: Tensor) -> Tensor:
    """1 / (sqrt(v_hat) + eps)."""
    return 1.0 / ((v * c.unbias2 + TINY).sqrt() + c.eps)


def channels(
    lr: Tensor, weight_decay: Tensor, keep: Tensor, log_power: Tensor, eps: Tensor
) -> tuple[AdamWChannels, Tensor]:
    """Channels for hyper-parameters ``[S]``; ``keep`` and ``log_power [2, S]``: 1 - betas, log of
    the products of betas so far.

    Logarithms because 1 - beta2^t cancels: in float32 its first value would be wrong by 1e-5.
    Returns also the new logs.
    """
    log_power = log_power + torch.log1p(-keep)
    unbias = -1.0 / torch.expm1(log_power)
    return AdamWChannels(
        lr * unbias[0], lr * weight_decay, keep[0], keep[1], unbias[1], eps
    ), log_power


def stack(c: AdamWChannels) -> Tensor:
    """``[6, S]``, to be broadcast to parameters in one operation."""
    return torch.stack(list(c))


def unstack(rows: Tensor) -> AdamWChannels:
    return AdamWChannels(*rows[: len(AdamWChannels._fields)].unbind(0))
