"""A user's plugin whose loss misbehaves from some call on."""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lo_framework.optimizees import register_task
from lo_framework.optimizees.task import Batch, Buffers, Params, Task, soft_cap


@dataclass(frozen=True, kw_only=True)
class MoodyConfig:
    """``what`` happens from the call number ``after`` on; once only where MOODY_MARK names a file,
    which is made then.
    """

    what: str = "nan"
    after: int = 60


class Moody(Task):
    """|x|^2 / 2 in two dimensions, until the mood turns."""

    def __init__(self, config: MoodyConfig) -> None:
        super().__init__(name="moody", batch_size=1)
        self.config, self.calls = config, 0

    def init(self, generator: torch.Generator) -> tuple[Params, Buffers]:
        return {"x": torch.randn(2, generator=generator)}, {}

    def loss(
        self, params: Params, buffers: Buffers, batch: Batch, noise: Tensor
    ) -> tuple[Tensor, Buffers]:
        self.calls += 1
        loss = params["x"].square().sum() / 2
        if self.calls > self.config.after and self._first_time():
            if self.config.what == "raise":
                raise RuntimeError("the mood\nhas turned")
            if self.config.what == "memory":
                raise MemoryError
            if self.config.what == "exit":
                sys.exit(0)
            if self.config.what == "none":
                return None, buffers  # type: ignore[return-value]
            if self.config.what == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            loss = loss * torch.nan
        return loss, buffers

    def _first_time(self) -> bool:
        if not os.environ.get("MOODY_MARK"):
            return True
        mark = Path(os.environ["MOODY_MARK"])
        known = mark.exists()
        mark.touch()
        return not known

    def batch(self, split: str, generator: torch.Generator, lead: tuple[int, ...] = ()) -> Batch:
        return (torch.zeros(*lead, 1),)

    def full(self, split: str) -> Batch:
        return (torch.zeros(1),)

    def metrics(self, params: Params, buffers: Buffers, batch: Batch) -> dict[str, Tensor]:
        loss = params["x"].square().sum() / 2
        turned = self.config.what == "nan" and self.calls > self.config.after
        return {"loss": loss * torch.nan if turned else loss}

    def normalize(self, loss: Tensor) -> Tensor:
        return soft_cap(loss)


@register_task("moody", config=MoodyConfig, uses_dataset=False)
def build_moody(config: MoodyConfig) -> Task:
    return Moody(config)
