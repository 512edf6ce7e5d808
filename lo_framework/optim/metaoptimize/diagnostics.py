"""Faults of step sizes, said as they happen and counted.

Every ``WINDOW`` meta steps each block is judged by how far its log step size went and how far it
got:

* exploding: it grew a hundredfold, or lies on its upper bound;
* collapsing: it shrank to a hundredth, or lies on its lower bound;
* oscillating: it went back and forth: more than a factor e in all, less than a fifth of that on
  balance.

On a CPU meta-gradients are looked at in every meta step; on an accelerator, where looking waits for
the device, once a window.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor

from lo_framework.optim.metaoptimize.rules import Limits

WINDOW = 50
FAR = math.log(100.0)
KINDS = ("oscillating", "collapsing", "exploding")
MAX_NAMES = 8  # in warnings and reports
SAVED = ("bad", "skipped", "start", "path", "meta_steps", "counts", "blocks")

ADVICE = {
    "oscillating": "a smaller meta_lr, a larger meta_every or fewer blocks help",
    "collapsing": "a smaller meta_lr, another meta or a higher lower bound (beta_bounds) help",
    "exploding": "a smaller meta_lr or a lower upper bound (beta_bounds) help",
}


class Watch:
    """Follows the log step sizes ``beta [m]``; ``name`` gives a block's name."""

    def __init__(self, beta: Tensor, name: Callable[[int], str]) -> None:
        self.name = name
        self.meta_steps = 0
        self.counts = dict.fromkeys(KINDS, 0)
        self.blocks: dict[str, list[str]] = {kind: [] for kind in KINDS}
        # Meta-gradients that were not finite since the last look.
        self.bad = torch.zeros_like(beta, dtype=torch.bool)
        self.skipped = torch.zeros((), dtype=torch.int64, device=beta.device)
        self.start, self.path = beta.clone(), torch.zeros_like(beta)
        self._warned: set[str] = set()

    def note(self, old: Tensor, new: Tensor, bad: Tensor, limits: Limits) -> Tensor | None:
        """One meta step; gives the blocks whose trace must start anew, None for none."""
        self.meta_steps += 1
        self.path += (new - old).abs_()
        ends, on_cpu = self.meta_steps % WINDOW == 0, new.device.type == "cpu"
        broken = None
        if not on_cpu or bad.any():
            self.skipped += bad.sum()
            self.bad |= bad
            if (on_cpu or ends) and self.bad.any():
                broken, self.bad = self.bad, torch.zeros_like(bad)
                self._warn(
                    "skipped",
                    f"the meta-gradient of {self._names(broken)} is not finite: meta step skipped, "
                    "trace reset",
                )
        if ends:
            self._judge(new, limits)
        return broken

    def resize(self, beta: Tensor) -> None:
        """Blocks were added at the end."""
        added = beta[self.start.shape[0] :]
        self.start = torch.cat([self.start, added])
        self.path = torch.cat([self.path, torch.zeros_like(added)])
        self.bad = torch.cat([self.bad, torch.zeros_like(added, dtype=torch.bool)])

    def report(self) -> dict[str, Any]:
        """Block-windows of each kind, and the first blocks concerned by name."""
        blocks = {kind: list(names) for kind, names in self.blocks.items() if names}
        return {
            "meta_steps": self.meta_steps,
            "skipped": int(self.skipped),
            **self.counts,
            "blocks": blocks,
        }

    def state_dict(self) -> dict[str, Any]:
        return {name: deepcopy(getattr(self, name)) for name in SAVED}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        for name in SAVED:
            value = deepcopy(saved[name])
            on_device = isinstance(value, Tensor)
            setattr(self, name, value.to(self.start.device) if on_device else value)

    def _judge(self, beta: Tensor, limits: Limits) -> None:
        net = beta - self.start
        exploding = (net > FAR) | (beta >= limits.high)
        collapsing = (net < -FAR) | (beta <= limits.low)
        oscillating = (self.path > 1.0) & (net.abs() < 0.2 * self.path) & ~exploding & ~collapsing
        masks = torch.stack([oscillating, collapsing, exploding])
        for kind, mask, count in zip(KINDS, masks, masks.sum(1).tolist()):
            if count:
                self.counts[kind] += count
                names = self.blocks[kind]
                names += [n for n in self._some(mask) if n not in names][: MAX_NAMES - len(names)]
                self._warn(kind, f"the step size of {self._names(mask)} is {kind}; {ADVICE[kind]}")
        self.start, self.path = beta.clone(), torch.zeros_like(beta)

    def _some(self, mask: Tensor) -> list[str]:
        return [self.name(b) for b in mask.nonzero()[:MAX_NAMES, 0].tolist()]

    def _names(self, mask: Tensor) -> str:
        some, num = self._some(mask), int(mask.sum())
        words = ", ".join(f'"{name}"' for name in some)
        more = f" and {num - len(some)} more" if num > len(some) else ""
        return f"block{'s' * (num > 1)} {words}{more}"

    def _warn(self, kind: str, text: str) -> None:
        if kind not in self._warned:
            self._warned.add(kind)
            warnings.warn(
                f"MetaOptimize: {text} (said once; diagnostics() counts)",
                RuntimeWarning,
                stacklevel=2,
            )
