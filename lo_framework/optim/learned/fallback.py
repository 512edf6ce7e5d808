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
from lo_framework.optim.learned.memory import Lying, lying
from lo_framework.optim.learned.watch import Watch
from lo_framework.optim.shards import are_several, counts_here, mesh_of, sum_over_processes

Verdict = Literal["go", "skip", "back"]
LATER = 8  # steps between readings of an accelerator, which has to be waited for


class Fallback:
    """Guard, watch, snapshot and AdamW of one optimizer."""

    def __init__(
        self, config: GuardConfig, optimizer: OptimizerBase, num_steps: int | None = None
    ) -> None:
        self.guard = Guard(config, num_steps)
        self.optimizer = optimizer
        self.snapshot: dict[int, Tensor] = {}
        self.adamw: torch.optim.AdamW | None = None
        self.watch: Watch | None = None
        self.unread: list[Tensor] = []
        self.is_off = False  # where it had nothing good to go back to
        self.said = set[str]()
        self.interval = 0  # steps between readings; 0: as it is good for the device
        self._counts: tuple[list[Tensor], list[bool]] | None = None

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

    def before(self, active: tuple[int, ...], loss: Tensor | None, where: Lying | None) -> Verdict:
        """Judge the present parameters by the gradients of the ``active`` ones, which lie
        ``where``, and by the loss where it is told. "skip": these gradients are no good, the
        parameters are; "back": they went back to the snapshot.
        """
        if self.is_off:
            return "go"
        watch = self._watch()
        if self.snapshot and len(self.snapshot) < len(watch.params):
            # Whoever came later, in a new group or no more frozen, goes back to its own start.
            newcomers = [i for i in active if i not in self.snapshot]
            self.snapshot |= {i: watch.params[i].detach().clone() for i in newcomers}
        rows = self._read(watch, active, loss, where)
        return self._judged(watch, rows) if rows else "go"

    def _read(
        self, watch: Watch, active: tuple[int, ...], loss: Tensor | None, where: Lying | None
    ) -> list[list[float]]:
        """What has been seen since the last reading, a step a row: `Watch.look`, the loss, and
        whether it was told. Nothing, if it is not yet time to wait for the device.
        """
        counted = self._counted(active)
        if counted is not active:
            where = lying([watch.params[i] for i in counted])
        sums = watch.look(counted, where)
        if self.optimizer._is_sharded:  # all processes see alike
            mine = sums.new_tensor([0.0 if loss is None else float(loss)])
            sums = sum_over_processes(torch.cat([sums, mine]), self.params)
            loss = None if loss is None else sums[-1] / mesh_of(self.params).size()
            sums = sums[:-1]
        elif are_several():
            loss = None  # of this process's own batch; gradients are averaged, and all judge alike
        interval = self.interval or (1 if sums.is_cpu else LATER)
        if interval == 1:
            told = math.nan if loss is None else float(loss)
            return [[*sums.tolist(), told, loss is not None]]
        given = [math.nan if loss is None else loss, loss is not None]
        rest = [torch.as_tensor(x, device=sums.device, dtype=sums.dtype) for x in given]
        self.unread.append(torch.cat([sums, torch.stack(rest)]))
        if len(self.unread) < interval and self.snapshot:
            return []
        rows, self.unread = torch.stack(self.unread).tolist(), []
        return rows

    def _judged(self, watch: Watch, rows: list[list[float]]) -> Verdict:
        largest = max([float(group["lr"]) for group in self.groups]) or 1.0
        guard, is_changed = self.guard, False
        for added, size, squares, others, first, number, told, is_told in rows:
            rms = math.sqrt(squares / number) / largest if squares > 0 else 0.0
            if others > squares:
                # Other weights were loaded, say: what is good now is these, and no move led here.
                is_changed, added = True, 0.0
                guard.forget_losses()
            if cause := guard.violated(Signal(added, size, first, rms, told if is_told else None)):
                if 0 < guard.sick < PATIENCE and self._are_finite(watch.params):
                    self._say(f"a step with {cause} is left out")
                    return "skip"
                self.retreat(cause)
                return "back"
        if guard.due or (is_changed and guard.kept is not None):
            self._take_snapshot(watch.params)
            guard.keep()
            if first:  # gradients of this size are no alarm either
                watch.firsts *= max(1.0, size / first)
        return "go"

    def _take_snapshot(self, params: Sequence[Tensor]) -> None:
        """Copies of what may be trained; into the memory of those before, if there are any."""
        each = enumerate(zip(self.params, params))
        now = {i: here.detach() for i, (p, here) in each if p.requires_grad}
        kept = [i for i, x in now.items() if i in self.snapshot and _are_alike(x, self.snapshot[i])]
        if kept:
            torch._foreach_copy_([self.snapshot[i] for i in kept], [now[i] for i in kept])
        known = {i: self.snapshot[i] for i in kept}
        self.snapshot = {i: known[i] if i in known else x.clone() for i, x in now.items()}

    def after(self, active: tuple[int, ...]) -> None:
        """The learned optimizer, or AdamW, has made its update."""
        if self.watch is not None:
            self.watch.follow(self._counted(active))
        if self.guard.updated():
            self.adamw = None

    def _counted(self, active: tuple[int, ...]) -> tuple[int, ...]:
        """Those whose sums this process takes in: of copies on several, one does."""
        if not self.optimizer._is_sharded:
            return active
        here = self.optimizer._here  # another list when parameters come, or are moved
        if self._counts is None or self._counts[0] is not here:
            counts = counts_here(self.params, "the guard")
            self._counts = here, [flag and p.numel() > 0 for flag, p in zip(counts, here)]
        return tuple(i for i in active if self._counts[1][i])

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
        return {**state, "snapshot": {}, "adamw": None, "watched": watched}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.guard.load_state_dict(state["guard"])
        params = self.optimizer._here
        self.snapshot = {i: x.to(params[i]).clone() for i, x in state["snapshot"].items()}
        if not self.snapshot:
            self.guard.kept = None  # one is due as soon as all is calm
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


def _are_alike(x: Tensor, y: Tensor) -> bool:
    """Whether one can be copied into the other as it is."""
    return x.shape == y.shape and x.dtype == y.dtype and x.device == y.device
