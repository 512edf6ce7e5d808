"""What the guard does to tensors: snapshots of the parameters, and AdamW in the learned optimizer's
place, for a while, after which that gets another chance.

Only parameters go back: buffers such as BatchNorm statistics are the model's own, and recover by
themselves unless they took in a value that is not finite.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from lo_framework.optim.base import OptimizerBase
from lo_framework.optim.learned.guard import PATIENCE, Guard, GuardConfig, Signal
from lo_framework.optim.learned.watch import Watch
from lo_framework.optim.shards import are_several, counts_here, mesh_of, sum_over_processes

Verdict = Literal["go", "skip", "back"]
LATER = 8  # steps between readings of an accelerator, which has to be waited for


class Fallback:
    """Guard, watch, snapshot and AdamW of one optimizer."""

    def __init__(self, config: GuardConfig, optimizer: OptimizerBase) -> None:
        self.guard = Guard(config)
        self.optimizer = optimizer
        self.snapshot: dict[int, Tensor] = {}
        self.adamw: torch.optim.AdamW | None = None
        self.watch: Watch | None = None
        self.unread: list[Tensor] = []
        self.is_off = False  # where it had nothing good to go back to
        self.said = set[str]()

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

    def before(self, active: tuple[int, ...], loss: Tensor | None) -> Verdict:
        """Judge the present parameters by the gradients of the ``active`` ones, and by the loss
        where it is told. "skip": these gradients are no good, the parameters are; "back": they went
        back to the snapshot.
        """
        if self.is_off:
            return "go"
        watch = self._watch()
        if self.snapshot and len(self.snapshot) < len(watch.params):
            # Whoever came later, in a new group or no more frozen, goes back to its own start.
            newcomers = [i for i in active if i not in self.snapshot]
            self.snapshot |= {i: watch.params[i].detach().clone() for i in newcomers}
        counted = self._counted(active)
        sums = watch.look(counted)
        number: float = sum(watch.params[i].numel() for i in counted)
        if self.optimizer._is_sharded:  # all processes see alike
            rest = sums.new_tensor([number, 0.0 if loss is None else float(loss)])
            every = sum_over_processes(torch.cat([sums, rest]), self.params)
            sums, number = every[:5], float(every[5])
            loss = None if loss is None else every[6] / mesh_of(self.params).size()
        elif are_several():
            loss = None  # of this process's own batch; gradients are averaged, and all judge alike
        if sums.is_cpu:
            told = math.nan if loss is None else float(loss)
            values = [[*sums.tolist(), told, number, loss is not None]]
        else:
            given = sums.new_tensor(math.nan) if loss is None else loss.to(sums.device, sums.dtype)
            rest = sums.new_tensor([number, loss is not None])
            self.unread.append(torch.cat([sums, given.reshape(1), rest]))
            if len(self.unread) < LATER and self.snapshot:
                return "go"
            values, self.unread = torch.stack(self.unread).tolist(), []
        largest = max(float(group["lr"]) for group in self.groups) or 1.0
        is_changed, growth = False, 1.0
        for added, size, squares, others, first, value, number, known in values:
            rms = math.sqrt(squares / number) / largest if squares > 0 else 0.0
            if others > squares:
                # Other weights were loaded, say: what is good now is these, and no move led here.
                is_changed, added = True, 0.0
                self.guard.forget_losses()
            signal = Signal(added, size, first, rms, value if known else None)
            if cause := self.guard.violated(signal):
                if 0 < self.guard.sick < PATIENCE and self._are_finite(watch.params):
                    self._say(f"a step with {cause} is left out")
                    return "skip"
                self.retreat(cause)
                return "back"
            growth = max(1.0, size / first) if first else 1.0
        if self.guard.due or is_changed:
            each = zip(self.params, watch.params)
            self.snapshot = {
                i: here.detach().clone() for i, (p, here) in enumerate(each) if p.requires_grad
            }
            self.guard.keep()
            watch.firsts *= growth  # gradients of this size are no alarm either
        return "go"

    def after(self, active: tuple[int, ...]) -> None:
        """The learned optimizer, or AdamW, has made its update."""
        self._watch().follow(self._counted(active))
        if self.guard.updated():
            self.adamw = None

    def _counted(self, active: tuple[int, ...]) -> tuple[int, ...]:
        """Those whose sums this process takes in: of copies on several, one does."""
        if not self.optimizer._is_sharded:
            return active
        here = counts_here(self.params, "the guard")
        return tuple(i for i in active if here[i] and self.optimizer._here[i].numel())

    def _watch(self) -> Watch:
        """The watch over the parameters where they are now, or over what lies here of them."""
        params, before = self.optimizer._here, self.watch
        known = None if before is None else (before.device, len(before.params))
        if before is not None and known == (params[0].device, len(params)):
            return before
        self.watch = Watch(params)
        if before is not None:
            self.watch.load(before.state())
        return self.watch

    def step(self) -> None:
        """One step of AdamW, scaled by each group's lr as the learned update is."""
        if self.adamw is None:
            self.adamw = self._new_adamw()
        for group in self.groups[len(self.adamw.param_groups) :]:
            self.adamw.add_param_group({"params": group["params"]})
        for group_of_adamw, group in zip(self.adamw.param_groups, self.groups):
            # A multiplier above 1 makes the learned optimizer bolder: that is what has just failed.
            group_of_adamw["lr"] = self.guard.lr * min(1.0, float(group["lr"]))
        # Past the hooks of all optimizers, which count this step as the learned optimizer's.
        type(self.adamw).step.__wrapped__(self.adamw)  # type: ignore[attr-defined]

    def retreat(self, cause: str) -> None:
        """Back to the snapshot, AdamW in charge; one line for the person."""
        if not self._are_finite([*self.snapshot.values()] or self.optimizer._here):
            self.is_off = True
            self._say(f"{cause}, and parameters that were not finite before: the guard is off")
            return
        watch = self._watch()
        for i, x in self.snapshot.items():
            watch.params[i].copy_(x)
        self.guard.activate()
        self.adamw, self.unread = None, []
        watch.begin()
        warnings.warn(
            f"Learned: {cause} broke the guard; parameters are back at their last good snapshot "
            f"and AdamW (lr {self.guard.lr:.2g}) makes the next {self.guard.remaining} steps "
            f"(activation {self.guard.activations})",
            stacklevel=2,
        )

    def _are_finite(self, tensors: Sequence[Tensor]) -> bool:
        """Whether all numbers are, on every process."""
        total = sum(float(x.float().abs().amax()) for x in tensors if x.numel())
        if self.optimizer._is_sharded:
            device = self.params[0].device
            every = sum_over_processes(torch.tensor([total], device=device), self.params)
            total = float(every)
        return math.isfinite(total)

    def _say(self, line: str) -> None:
        """A line that is said once."""
        if line not in self.said:
            self.said.add(line)
            warnings.warn(f"Learned: {line}", stacklevel=2)

    def state_dict(self) -> dict[str, Any]:
        return {
            "guard": self.guard.state_dict(),
            "snapshot": dict(self.snapshot),
            "adamw": None if self.adamw is None else self.adamw.state_dict(),
            "watched": None if self.watch is None else self.watch.state(),
            "unread": list(self.unread),
        }

    @staticmethod
    def without_copies(state: dict[str, Any]) -> dict[str, Any]:
        """A state without its samples and copies of parameters: what is small."""
        watched = state["watched"] and [None, None, state["watched"][2]]
        return {**state, "snapshot": {}, "adamw": None, "watched": watched, "unread": []}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.guard.load_state_dict(state["guard"])
        params = self.optimizer._here
        self.snapshot = {i: x.to(params[i]).clone() for i, x in state["snapshot"].items()}
        if not self.snapshot:
            self.guard.kept = None  # one is due
        self.adamw = self.watch = None
        if state.get("watched") is not None:
            self.watch = Watch(self.optimizer._here)
            self.watch.load(state["watched"])
        self.unread = [x.to(params[0].device) for x in state.get("unread", ())]
        if state["adamw"] is not None:
            self.adamw = self._new_adamw()
            self.adamw.load_state_dict(state["adamw"])

    def _new_adamw(self) -> torch.optim.AdamW:
        groups = [{"params": group["params"]} for group in self.groups]
        return torch.optim.AdamW(
            groups, lr=self.guard.lr, weight_decay=self.guard.config.weight_decay
        )
