"""The outer loop's learners: Adam on theta, and the search of a regularizer's radius."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lo_framework.learned.base import LearnedOptimizer, Theta
from lo_framework.meta_train.config import RadiusConfig

WARM_UP = 5
FLOOR = 0.05
# What is validated and saved is an average over about five outer steps, a fifth of the gradient
# noise; over fifty where gradients are estimated from perturbations.
AVERAGING = 0.8
LONG_AVERAGING = 0.98
_STREAM = 0x4AD1


class OuterOptimizer:
    """Adam on theta for the outer steps of one stage: clipped, with a warm-up and a cosine."""

    def __init__(
        self,
        learned: LearnedOptimizer,
        lr: float,
        clip: float,
        steps: int,
        averaging: float = AVERAGING,
    ) -> None:
        self.params = {name: nn.Parameter(x.clone()) for name, x in learned.theta().items()}
        self.moving = [name for name, p in learned.named_parameters() if p.requires_grad]
        self.adam = torch.optim.Adam(
            [
                {"params": [self.params[name]], "full_lr": lr * learned.outer_scale(name)}
                for name in self.moving
            ],
            betas=(0.9, 0.99),
        )
        self.clip, self.steps, self.averaging = clip, steps, averaging
        self.average = {name: p.detach().clone() for name, p in self.params.items()}
        self.done = 0
        self.damping = 1.0  # halved by every return to the incumbent
        self.stale = 0  # validations since the incumbent last changed

    @property
    def theta(self) -> Theta:
        return {name: p.detach() for name, p in self.params.items()}

    def step(self, grad: Theta) -> dict[str, float]:
        """One update. A gradient that is not finite is skipped and reported; the clock moves on all
        the same.
        """
        rate = min(1.0, (self.done + 1) / WARM_UP) * self.damping
        cosine = math.cos(math.pi * min(1.0, self.done / self.steps))
        rate *= FLOOR + (1 - FLOOR) * 0.5 * (1 + cosine)
        self.done += 1
        squares = [(grad[name].double() ** 2).sum() for name in self.moving]
        norm = float(torch.stack(squares).sum().sqrt())
        if not math.isfinite(norm):
            return {"grad_norm": norm, "clip_ratio": 0.0, "skipped": 1.0}
        ratio = min(1.0, self.clip / max(norm, 1e-12))
        for name in self.moving:
            self.params[name].grad = grad[name] * ratio
        for group in self.adam.param_groups:
            group["lr"] = group["full_lr"] * rate
        self.adam.step()
        for name, p in self.params.items():
            self.average[name].lerp_(p.detach(), 1 - self.averaging)
        return {"grad_norm": norm, "clip_ratio": ratio, "skipped": 0.0}

    def back_to(self, theta: Theta) -> None:
        """Go on from ``theta`` at half the pace and with fresh moments."""
        with torch.no_grad():
            for name, p in self.params.items():
                p.copy_(theta[name])
                self.average[name].copy_(theta[name])
        self.adam.state.clear()
        self.damping *= 0.5
        self.stale = 0

    def dump(self) -> dict[str, Tensor]:
        out = {f"theta.{name}": p.detach() for name, p in self.params.items()}
        out |= {f"average.{name}": x for name, x in self.average.items()}
        out |= {
            "damping": torch.tensor(self.damping, dtype=torch.float64),
            "stale": torch.tensor(self.stale),
        }
        for name, p in self.params.items():
            for key, value in self.adam.state.get(p, {}).items():
                out[f"adam.{key}.{name}"] = value
        return out

    def load(self, tensors: dict[str, Tensor], done: int) -> None:
        """Go on from the tensors of :meth:`dump`."""
        self.adam.state.clear()
        for name, p in self.params.items():
            p.data.copy_(tensors[f"theta.{name}"])
            self.average[name].copy_(tensors[f"average.{name}"])
            if f"adam.step.{name}" in tensors:
                for key in ("step", "exp_avg", "exp_avg_sq"):  # copies: Adam writes into them
                    self.adam.state[p][key] = tensors[f"adam.{key}.{name}"].clone()
        self.done = done
        self.damping, self.stale = float(tensors["damping"]), int(tensors["stale"])


class Radius:
    """The radius of an absorbed regularizer, learned on held-out loss by evolution strategies.

    A radius cannot be learned on the training objective: the best one there is 0. Here the outer
    loop is what is perturbed: from one state, two branches of it run for a phase, with the radii
    ``rho exp(+-sigma eps)``; each is scored by the held-out loss that its optimizer reaches on the
    validation seeds, the difference moves log rho, and the run goes on in the better branch. That
    takes twice the outer steps.
    """

    def __init__(self, config: RadiusConfig, rho: float, seed: int) -> None:
        self.config, self.log_rho = config, math.log(rho)
        self.generator = torch.Generator().manual_seed((seed * 1_000_003 + _STREAM) % 2**63)

    @property
    def rho(self) -> float:
        return math.exp(self.log_rho)

    def pair(self) -> tuple[float, tuple[float, float]]:
        """A perturbation and the two radii that it makes."""
        eps = float(torch.randn((), generator=self.generator, dtype=torch.float64))
        shift = self.config.sigma * eps
        return eps, (math.exp(self.log_rho + shift), math.exp(self.log_rho - shift))

    def learn(self, eps: float, losses: Sequence[float]) -> None:
        """One ES step from the log held-out losses of the two branches."""
        sigma = self.config.sigma
        step = -self.config.lr * eps * (losses[0] - losses[1]) / (2 * sigma)
        if math.isfinite(step):
            self.log_rho += min(max(step, -sigma), sigma)

    def dump(self) -> dict[str, Tensor]:
        return {
            "log_rho": torch.tensor(self.log_rho, dtype=torch.float64),
            "generator": self.generator.get_state(),
        }

    def load(self, tensors: dict[str, Tensor]) -> None:
        self.log_rho = float(tensors["log_rho"])
        self.generator.set_state(tensors["generator"].clone())
