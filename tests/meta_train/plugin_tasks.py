"""A user's plugin: a task that goes bad for some seeds, and one that ``vmap`` cannot take."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.data import DataLoader, TensorDataset

from lo_framework.optimizees import register_task, task_from_module
from lo_framework.optimizees.task import Batch, Buffers, Params, Task, soft_cap


@dataclass(frozen=True, kw_only=True)
class SickConfig:
    """``share`` of the episodes fall ill at their third step: the loss (``where=gradient``: its
    derivative) is NaN.
    """

    share: float = 0.5
    where: str = "loss"


class Sick(Task):
    """|x|^2 / 2 in two dimensions. Buffers: whether this episode falls ill, and its steps."""

    def __init__(self, config: SickConfig) -> None:
        super().__init__(name="sick", batch_size=1)
        self.config = config

    def init(self, generator: torch.Generator) -> tuple[Params, Buffers]:
        ill = (torch.rand((), generator=generator) < self.config.share).float()
        return {"x": torch.randn(2, generator=generator)}, {"ill": ill, "steps": torch.zeros(())}

    def loss(
        self, params: Params, buffers: Buffers, batch: Batch, noise: Tensor
    ) -> tuple[Tensor, Buffers]:
        loss, now = self._value(params), buffers["ill"] * (buffers["steps"] >= 2)
        if self.config.where == "loss":
            loss = loss + torch.where(now > 0, torch.nan, 0.0)
        else:  # the square root's derivative at zero
            loss = loss + torch.sqrt(torch.where(now > 0, 0 * params["x"].sum(), 1.0))
        return loss, {**buffers, "steps": buffers["steps"] + 1}

    def batch(self, split: str, generator: torch.Generator, lead: tuple[int, ...] = ()) -> Batch:
        return (torch.zeros(*lead, 1),)

    def full(self, split: str) -> Batch:
        return (torch.zeros(1),)

    def metrics(self, params: Params, buffers: Buffers, batch: Batch) -> dict[str, Tensor]:
        return {"loss": self._value(params)}

    def normalize(self, loss: Tensor) -> Tensor:
        return soft_cap(loss)

    @staticmethod
    def _value(params: Params) -> Tensor:
        return (params["x"] ** 2).sum() / 2


@register_task("sick", config=SickConfig, uses_dataset=False)
def build_sick(config: SickConfig) -> Task:
    return Sick(config)


class Recurrent(Task):
    """A torch.nn LSTM that adds up a short series; it has no batching rule for ``vmap``."""

    vmappable = False

    def __init__(self) -> None:
        super().__init__(name="recurrent", batch_size=4)
        self.net = nn.LSTM(1, 2, batch_first=True)
        self.shapes = {name: p.shape for name, p in self.net.named_parameters()}

    def init(self, generator: torch.Generator) -> tuple[Params, Buffers]:
        return {
            name: 0.5 * torch.randn(shape, generator=generator)
            for name, shape in self.shapes.items()
        }, {}

    def loss(
        self, params: Params, buffers: Buffers, batch: Batch, noise: Tensor
    ) -> tuple[Tensor, Buffers]:
        out, _ = functional_call(self.net, params, (batch[0],))
        return ((out[:, -1].sum(-1) - batch[0].sum((1, 2))) ** 2).mean(), buffers

    def batch(self, split: str, generator: torch.Generator, lead: tuple[int, ...] = ()) -> Batch:
        return (torch.rand(*lead, self.batch_size, 3, 1, generator=generator),)

    def full(self, split: str) -> Batch:
        return self.batch(split, torch.Generator().manual_seed(0))

    def metrics(self, params: Params, buffers: Buffers, batch: Batch) -> dict[str, Tensor]:
        return {"loss": self.loss(params, buffers, batch, torch.zeros((), dtype=torch.int64))[0]}

    def normalize(self, loss: Tensor) -> Tensor:
        return soft_cap(loss)


@register_task("loaded", uses_dataset=False)
def build_loaded(config: object) -> Task:
    """From a data loader that has processes of its own."""
    x = torch.linspace(0, 1, 20)[:, None]
    loader = DataLoader(TensorDataset(x, 2 * x), batch_size=5, num_workers=1)
    return task_from_module(
        nn.Linear(1, 1), nn.functional.mse_loss, loader, batch_size=4, name="loaded"
    )


@register_task("recurrent", uses_dataset=False)
def build_recurrent(config: object) -> Task:
    return Recurrent()
