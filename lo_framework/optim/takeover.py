"""What the guard does to tensors: snapshots of the parameters, and AdamW in the learned optimizer's
place.

Only parameters go back: buffers such as BatchNorm statistics are the model's own, and recover by
themselves unless they took in a value that is not finite.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lo_framework.optim.guard import Guard, GuardConfig


class Takeover:
    """Guard, snapshot and AdamW of one face."""

    def __init__(self, config: GuardConfig, face: torch.optim.Optimizer) -> None:
        self.guard = Guard(config)
        self.face = face
        self.snapshot: dict[int, Tensor] = {}
        self.adamw: torch.optim.AdamW | None = None

    @property
    def groups(self) -> list[dict[str, Any]]:
        return self.face.param_groups

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
        for own, group in zip(self.adamw.param_groups, self.groups):
            own["lr"] = float(self.guard.lr * group["lr"])
        for group in self.groups[len(self.adamw.param_groups) :]:
            self.adamw.add_param_group(
                {"params": group["params"], "lr": float(self.guard.lr * group["lr"])}
            )
        self.adamw.step()
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
            f"Learned: {cause} broke the guard; parameters are back at their last good snapshot and AdamW (lr "
            f"{self.guard.lr:.2g}) makes the next {self.guard.remaining} steps (activation {self.guard.activations})",
            stacklevel=2,
        )

    def state_dict(self) -> dict[str, Any]:
        adamw = None if self.adamw is None else self.adamw.state_dict()
        return {"guard": self.guard.state_dict(), "snapshot": dict(self.snapshot), "adamw": adamw}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.guard.load_state_dict(state["guard"])
        params = self.params
        self.snapshot = {i: x.to(params[i]).clone() for i, x in state["snapshot"].items()}
        self.adamw = None
        if state["adamw"] is not None:
            self.adamw = self._new_adamw()
            self.adamw.load_state_dict(state["adamw"])

    def _new_adamw(self) -> torch.optim.AdamW:
        groups = [{"params": group["params"]} for group in self.groups]
        return torch.optim.AdamW(
            groups, lr=self.guard.lr, weight_decay=self.guard.config.weight_decay
        )
