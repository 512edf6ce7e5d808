"""``hyper-adamw``: AdamW whose own hyper-parameters and schedules are the meta-parameters.

For every hyper-parameter the value in force is (in log or logit space)

    start value + gain * ( default + by_role[role x depth third] + schedule(progress) )

with everything learned starting at zero: it begins exactly as torch's AdamW. ``default`` serves
every tensor, also on a model whose roles were never seen; ``schedule`` is piecewise linear in the
fraction of the episode done, with knots dense early, where most of the loss falls. ``gain`` puts
perturbations of size .01 in theta at 10% in the hyper-parameter, so one ES noise and one outer
learning rate suit these few scalars and the networks that grow on them alike.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from lo_framework.errors import UserError
from lo_framework.layout import DEPTH_THIRDS, Layout
from lo_framework.learned import adamw_rule
from lo_framework.learned.base import Clock, LearnedOptimizer, State, Theta, register_learned, zeros
from lo_framework.learned.law import hats
from lo_framework.regularizers import Regularizer
from lo_framework.regularizers.s2sam import S2SAM
from lo_framework.regularizers.sam import SAM, SAMConfig
from lo_framework.roles import ROLES
from lo_framework.schema import Checked, NotNegative, Positive, Share

HYPER = ("log_lr", "logit_beta1", "logit_beta2", "log_weight_decay", "log_eps")
FACTORS = ("default", "by_role", "schedule", "log_rho")  # the meta-parameters of this rule
KNOTS = (0.0, 0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9, 1.0)


@dataclass(frozen=True, kw_only=True)
class HyperAdamWConfig(Checked):
    """Start values (torch's defaults) and the gain from theta to log space.

    ``sam_rho`` above 0: the rule works on explicit SAM's gradients, and that radius is where the
    learned one starts. ``sam_gradients``: 2 is SAM, 1 single-step SAM, which needs one a step.
    """

    lr: Positive = 1e-3
    beta1: Share = 0.9
    beta2: Share = 0.999
    weight_decay: NotNegative = 1e-2
    eps: Positive = 1e-8
    gain: Positive = 10.0
    sam_rho: NotNegative = 0.0
    sam_gradients: Literal[1, 2] = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sam_gradients == 1 and not self.sam_rho:
            raise UserError("sam_gradients=1 needs a radius: sam_rho above 0, as sam_rho=0.05")


def logit(x: float) -> float:
    return math.log(x) - math.log1p(-x)


@register_learned
class HyperAdamW(LearnedOptimizer):
    """AdamW with learned per-role hyper-parameters and schedules (H = 5, R = roles x depth thirds,
    P knots).
    """

    kind = "hyper-adamw"
    Config = HyperAdamWConfig
    per_param: ClassVar[tuple[str, ...]] = ("m", "v")
    knots: Tensor
    start: Tensor

    def __init__(self, config: HyperAdamWConfig) -> None:
        super().__init__()
        self.config = config
        h = len(HYPER)
        self.default = zeros(h)
        self.by_role = zeros(len(ROLES) * DEPTH_THIRDS, h)
        self.schedule = nn.Parameter(torch.zeros(h, len(KNOTS)))
        if config.sam_rho:
            self.log_rho = zeros()
        start = [
            math.log(config.lr),
            logit(config.beta1),
            logit(config.beta2),
            math.log(max(config.weight_decay, 1e-12)),
            math.log(config.eps),
        ]
        self.register_buffer("start", torch.tensor(start), persistent=False)
        self.register_buffer("knots", torch.tensor(KNOTS), persistent=False)

    def outer_scale(self, name: str) -> float:
        return 1.0 if name in FACTORS else super().outer_scale(name)

    def explicit(self, theta: Theta) -> Regularizer | None:
        """Explicit SAM whose radius is a meta-parameter. It is learned well only on held-out data:
        on the training loss, the best radius is 0.
        """
        if not self.config.sam_rho:
            return None
        rho = self.config.sam_rho * torch.exp(self.config.gain * theta["log_rho"])
        rule = S2SAM if self.config.sam_gradients == 1 else SAM
        return rule(SAMConfig(rho=self.config.sam_rho), rho=rho)

    def init_state(self, layout: Layout, params: Tensor) -> State:
        return {
            "step": params.new_zeros(()),
            "log_power": params.new_zeros(
                2, layout.num
            ),  # logs of the products of beta1 and of beta2 so far
            "m": torch.zeros_like(params),
            "v": torch.zeros_like(params),
        }

    def scheduled(self, progress: Tensor) -> Tensor:
        """Piecewise-linear schedule at ``progress``: ``[H]``."""
        return self.schedule @ hats(self.knots, progress)

    def hyper(self, layout: Layout, progress: Tensor) -> Tensor:
        """Raw hyper-parameters ``[H, S]`` in log/logit space, before any modulation."""
        everywhere = self.default + self.scheduled(progress)
        learned = self.by_role[layout.role_keys].T + everywhere[:, None]
        return self.start[:, None] + self.config.gain * learned

    def modulate(
        self, layout: Layout, raw: Tensor, stats: Tensor, state: State, progress: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Hook of the optimizers that grow on this one: raw ``[H, S]`` to (raw', extra channels
        ``[E, S]``).
        """
        return raw, raw[:0]

    def condition(
        self, layout: Layout, stats: Tensor, state: State, loss: Tensor | None, clock: Clock
    ) -> tuple[Tensor, Tensor, State]:
        progress = clock.progress
        raw, extra = self.modulate(layout, self.hyper(layout, progress), stats, state, progress)
        lr, weight_decay, eps = raw[0].exp(), raw[3].exp(), raw[4].exp()
        keep = torch.sigmoid(-raw[1:3])  # 1 - beta, exact for beta near 1
        c, log_power = adamw_rule.channels(lr, weight_decay, keep, state["log_power"], eps)
        reduced = {"step": state["step"] + 1, "log_power": log_power}
        return torch.cat([adamw_rule.stack(c), extra]), progress[None], reduced

    def quantities(
        self, layout: Layout, channels: Tensor, shared: Tensor, state: State, clock: Clock
    ) -> State:
        """AdamW's ``step_size`` (lr), ``weight_decay`` (times lr), ``beta1``, ``beta2``, ``eps``;
        and ``factor``, what else than roles and schedule has made of lr (1 for this rule).
        """
        c = adamw_rule.unstack(channels)
        lr = c.step_size * -torch.expm1(state["log_power"][0])
        plain = self.hyper(layout, clock.progress)[0].exp()
        betas = {"beta1": 1.0 - c.keep1, "beta2": 1.0 - c.keep2}
        decay = c.decay / lr
        return {"step_size": lr, "factor": lr / plain, "weight_decay": decay, **betas, "eps": c.eps}

    def update(
        self, channels: Tensor, shared: Tensor, params: Tensor, grads: Tensor, state: State
    ) -> tuple[Tensor, State]:
        c = adamw_rule.unstack(channels)
        m, v = adamw_rule.moments(c, grads, state["m"], state["v"])
        params = params - c.decay * params - c.step_size * m * adamw_rule.inverse_rms(c, v)
        return params, {"m": m, "v": v}
