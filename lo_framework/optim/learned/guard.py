"""When to stop trusting a learned optimizer, and what then happens to tensors.

`Guard` is pure logic on losses; `Fallback` has snapshots of the parameters, and AdamW in the
learned optimizer's place. Only parameters go back: buffers such as BatchNorm statistics are the
model's own, and recover by themselves unless they took in a value that is not finite.

The guard follows an exponential moving average (EMA) of the training loss. It is *violated* by a
loss that is not finite, or, after a warm-up, by an EMA above

    best + (factor - 1) |best| + margin |first|

with ``best`` the lowest EMA so far and ``first`` the first finite loss (for positive losses: factor
x best, plus a margin that lets a loss near zero move). Then AdamW steps in from the last good
snapshot, for a while, after which the learned optimizer gets another chance.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

DEFAULT_LR = 1e-3  # AdamW's, when the learned optimizer has not made a step yet
RETREAT = 0.1  # what multiplies AdamW's learning rate when the guard is violated under AdamW itself


@dataclass(frozen=True, kw_only=True)
class GuardConfig:
    """Settings of the guard.

    Attributes:
        factor: how many times its best value the average loss may reach; above 1.
        margin: what it may add to that, as a fraction of the first loss.
        decay: of the average: 0.9 looks back on about ten steps.
        warmup: steps before an average can violate the guard; a loss that is not finite always
            does.
        every: steps between snapshots of the parameters.
        steps: how many steps AdamW makes when it takes over.
        lr: AdamW's learning rate; None takes the geometric mean of the learned optimizer's recent
            updates (RMS per parameter), as of the snapshot that training goes back to.
        weight_decay: AdamW's.
    """

    factor: float = 2.0
    margin: float = 0.05
    decay: float = 0.9
    warmup: int = 20
    every: int = 50
    steps: int = 100
    lr: float | None = None
    weight_decay: float = 1e-2

    def __post_init__(self) -> None:
        if not (self.factor > 1 and self.margin >= 0 and 0 <= self.decay < 1):
            raise ValueError("guard: factor must be above 1, margin at least 0, decay in [0, 1)")
        if self.warmup < 0 or self.every < 1 or self.steps < 1:
            raise ValueError("guard: warmup must be at least 0, every and steps at least 1")
        if (self.lr is not None and not self.lr > 0) or self.weight_decay < 0:
            raise ValueError("guard: lr must be positive (or None), weight_decay at least 0")


@dataclass
class Trend:
    """Where training stands, as the guard sees it; goes back with the parameters."""

    seen: int = 0
    first: float = 0.0
    ema: float = 0.0
    best: float = math.inf
    log_rms: float | None = None  # EMA of log(RMS update) of the learned optimizer


class Guard:
    """The guard's memory and decisions. Every method takes and returns plain numbers.

    One step: ``violated(loss)``; if so, ``activate()`` and go back to the snapshot; else, if
    ``due``, take a snapshot and ``keep()``; update; ``updated(...)``.
    """

    def __init__(self, config: GuardConfig) -> None:
        self.config = config
        self.now = Trend()
        self.kept: Trend | None = None  # at the last snapshot
        self.since_kept = 0
        self.remaining = 0  # steps that AdamW still makes; 0: the learned optimizer is at work
        self.activations = 0
        self.lr = DEFAULT_LR  # AdamW's, of the current or last activation

    @property
    def limit(self) -> float:
        """The average loss above which the guard is violated."""
        c, best = self.config, self.now.best
        return best + (c.factor - 1.0) * abs(best) + c.margin * abs(self.now.first)

    def violated(self, loss: float) -> bool:
        """Take in the loss of this step (before its update) and say whether it breaks the guard."""
        if not math.isfinite(loss):
            return True
        now = self.now
        if now.seen == 0:
            now.first = loss
        now.ema = self._averaged(now.ema if now.seen else None, loss)
        now.seen += 1
        if now.seen > self.config.warmup and now.ema > self.limit:
            return True
        now.best = min(now.best, now.ema)
        return False

    @property
    def due(self) -> bool:
        """Time for a snapshot: there is none, or it is old and the average is nearer to the best
        than to the limit.
        """
        is_old = self.since_kept >= self.config.every
        return self.kept is None or (is_old and self.now.ema <= 0.5 * (self.now.best + self.limit))

    def keep(self) -> None:
        """A snapshot was taken."""
        self.kept = replace(self.now)
        self.since_kept = 0

    def activate(self) -> None:
        """Hand over to AdamW, at the trend of the snapshot that the parameters go back to."""
        self.now = replace(self.kept) if self.kept is not None else Trend()
        if self.remaining:
            self.lr *= RETREAT  # AdamW itself failed
        else:
            measured = DEFAULT_LR if self.now.log_rms is None else math.exp(self.now.log_rms)
            self.lr = measured if self.config.lr is None else self.config.lr
        self.activations += 1
        self.remaining = self.config.steps
        self.since_kept = 0

    def updated(self, rms: float | None = None) -> bool:
        """An update was made: by the learned optimizer if ``rms`` (per parameter) is given. True:
        AdamW's last one.
        """
        self.since_kept += 1
        if rms is not None:
            if rms > 0:
                self.now.log_rms = self._averaged(self.now.log_rms, math.log(rms))
            return False
        self.remaining -= 1
        return self.remaining == 0

    def _averaged(self, old: float | None, new: float) -> float:
        decay = self.config.decay
        return new if old is None else decay * old + (1.0 - decay) * new

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers."""
        state = {name: x for name, x in vars(self).items() if name != "config"}
        return {name: asdict(x) if isinstance(x, Trend) else x for name, x in state.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, x in state.items():
            setattr(self, name, Trend(**x) if isinstance(x, dict) else x)


class Fallback:
    """Guard, snapshot and AdamW of one optimizer."""

    def __init__(self, config: GuardConfig, optimizer: torch.optim.Optimizer) -> None:
        self.guard = Guard(config)
        self.optimizer = optimizer
        self.snapshot: dict[int, Tensor] = {}
        self.adamw: torch.optim.AdamW | None = None

    @property
    def groups(self) -> list[dict[str, Any]]:
        return self.optimizer.param_groups

    @property
    def params(self) -> list[Tensor]:
        return [p for group in self.groups for p in group["params"]]

    @property
    def in_charge(self) -> bool:
        """AdamW makes the updates at present."""
        return self.guard.remaining > 0

    def before(self, loss: float) -> bool:
        """Judge the loss at the present parameters. False: they went back to the snapshot, the
        gradients are void.
        """
        if self.guard.violated(loss):
            self.retreat(f"the training loss ({loss:.4g}, average limit {self.guard.limit:.4g})")
            return False
        if self.guard.due:
            self.snapshot = {
                i: p.detach().clone() for i, p in enumerate(self.params) if p.requires_grad
            }
            self.guard.keep()
        return True

    def after(self, squares: Sequence[Tensor], numel: int) -> bool:
        """Judge an update of the learned optimizer by its sums of squares. False: not finite, and
        taken back.
        """
        total = float(torch.stack([x.double().to(squares[0].device) for x in squares]).sum())
        rms = (total / numel) ** 0.5
        if not rms < float("inf"):
            self.retreat("an update that is not finite")
            return False
        self.guard.updated(rms)
        return True

    def step(self) -> bool:
        """One step of AdamW, scaled by each group's lr as the learned update is. True: it was the
        last one.
        """
        if self.adamw is None:
            self.adamw = self._new_adamw()
        for group in self.groups[len(self.adamw.param_groups) :]:
            self.adamw.add_param_group({"params": group["params"]})
        for group_of_adamw, group in zip(self.adamw.param_groups, self.groups):
            group_of_adamw["lr"] = float(self.guard.lr * group["lr"])
        # Past the hooks of all optimizers, which count this step as the learned optimizer's.
        type(self.adamw).step.__wrapped__(self.adamw)  # type: ignore[attr-defined]
        done = self.guard.updated()
        if done:
            self.adamw = None
        return done

    def retreat(self, cause: str) -> None:
        """Back to the snapshot, AdamW in charge; one line for the person."""
        for i, p in enumerate(self.params):
            if i in self.snapshot:
                p.copy_(self.snapshot[i])
        self.guard.activate()
        self.adamw = None
        warnings.warn(
            f"Learned: {cause} broke the guard; parameters are back at their last good snapshot "
            f"and AdamW (lr {self.guard.lr:.2g}) makes the next {self.guard.remaining} steps "
            f"(activation {self.guard.activations})",
            stacklevel=2,
        )

    def state_dict(self) -> dict[str, Any]:
        adamw = None if self.adamw is None else self.adamw.state_dict()
        return {"guard": self.guard.state_dict(), "snapshot": dict(self.snapshot), "adamw": adamw}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.guard.load_state_dict(state["guard"])
        params = self.params
        self.snapshot = {i: x.to(params[i]).clone() for i, x in state["snapshot"].items()}
        if not self.snapshot:
            self.guard.kept = None  # one is due
        self.adamw = None
        if state["adamw"] is not None:
            self.adamw = self._new_adamw()
            self.adamw.load_state_dict(state["adamw"])

    def _new_adamw(self) -> torch.optim.AdamW:
        groups = [{"params": group["params"]} for group in self.groups]
        return torch.optim.AdamW(
            groups, lr=self.guard.lr, weight_decay=self.guard.config.weight_decay
        )
