"""Tiny float64 optimizees, a one-parameter learned optimizer and helpers of several tests."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lo_framework.episode import Carry, Draw
from lo_framework.estimators import Truncation
from lo_framework.estimators.state import UnrollState, state_from_tensors, state_to_tensors
from lo_framework.layout import Layout
from lo_framework.learned import LearnedOptimizer, make_learned
from lo_framework.learned.base import Clock, State, Theta
from lo_framework.optimizees.task import Batch, Buffers, Params, Task, soft_cap

ALL_KINDS = [
    *("hyper-adamw", "attention", "attention-mlp", "mlp", "mlp:features=39", "lstm"),
    "celo2",
    "scaled:controller=attention",
]
NAN_LOSS, INF_LOSS, NAN_GRADIENT, NAN_CURVATURE = 1.0, 2.0, 3.0, 4.0


def clock(progress: float, horizon: float = 10.0) -> Clock:
    """The clock of one task."""
    return Clock(torch.tensor(progress), torch.tensor(horizon))


class TinyNet(Task):
    """tanh(3 -> 4) -> 2 classes on 24 fixed rows, with a parameter that the loss ignores and
    BatchNorm-like buffers.

    Buffer ``sick`` (0-d) chooses an illness of one task: see the constants above.
    """

    def __init__(self, dtype: torch.dtype = torch.float64, batch_size: int = 5) -> None:
        super().__init__(name="tiny", batch_size=batch_size)
        self.dtype = dtype
        g = torch.Generator().manual_seed(11)
        x = torch.randn(24, 3, generator=g, dtype=torch.float64).to(dtype)
        self.data = (x, (x[:, 0] * x[:, 1] > 0).long())

    def init(self, generator: torch.Generator) -> tuple[Params, Buffers]:
        shapes = {
            "0.weight": (4, 3),
            "0.bias": (4,),
            "idle": (2, 2),
            "2.weight": (2, 4),
            "2.bias": (2,),
        }
        params = {
            name: 0.7 * torch.randn(shape, generator=generator, dtype=torch.float64).to(self.dtype)
            for name, shape in shapes.items()
        }
        zero = torch.zeros((), dtype=self.dtype)
        return params, {
            "sick": zero,
            "bn.mean": zero.clone(),
            "bn.count": torch.zeros((), dtype=torch.int64),
        }

    def batch(self, split: str, generator: torch.Generator, lead: tuple[int, ...] = ()) -> Batch:
        low, high = {"train": (0, 14), "valid": (14, 19), "test": (19, 24)}[split]
        rows = torch.randint(low, high, (*lead, self.batch_size), generator=generator)
        return tuple(x[rows] for x in self.data)

    def full(self, split: str) -> Batch:
        low, high = {"train": (0, 14), "valid": (14, 19), "test": (19, 24)}[split]
        return tuple(x[low:high] for x in self.data)

    def loss(
        self, params: Params, buffers: Buffers, batch: Batch, noise: Tensor
    ) -> tuple[Tensor, Buffers]:
        hidden = torch.tanh(F.linear(batch[0], params["0.weight"], params["0.bias"]))
        loss = F.cross_entropy(F.linear(hidden, params["2.weight"], params["2.bias"]), batch[1])
        sick, zero = buffers["sick"], 0 * params["0.bias"].sum()
        loss = (
            loss
            + torch.where(sick == NAN_LOSS, torch.nan, 0.0)
            + torch.where(sick == INF_LOSS, torch.inf, 0.0)
        )
        loss = loss + torch.sqrt(torch.where(sick == NAN_GRADIENT, zero, 1.0)) - 1
        loss = loss + torch.where(sick == NAN_CURVATURE, zero, 1.0).abs() ** 1.5 - 1
        mean = 0.9 * buffers["bn.mean"] + 0.1 * hidden.mean()
        return loss, {**buffers, "bn.mean": mean, "bn.count": buffers["bn.count"] + 1}

    def metrics(self, params: Params, buffers: Buffers, batch: Batch) -> dict[str, Tensor]:
        loss, _ = self.loss(params, buffers, batch, torch.zeros((), dtype=torch.int64))
        return {"loss": loss, "updates": buffers["bn.count"]}

    def normalize(self, loss: Tensor) -> Tensor:
        return soft_cap(loss / 0.7)


class Quadratic(Task):
    """1/2 sum c p^2 without any randomness: starts at p = 1, a batch is the curvatures c,
    normalised by 1.
    """

    def __init__(
        self, curvature: tuple[float, ...] = (1.0, 6.0), dtype: torch.dtype = torch.float64
    ) -> None:
        super().__init__(name="quadratic", batch_size=1)
        self.curvature = torch.tensor(curvature, dtype=dtype)

    def init(self, generator: torch.Generator) -> tuple[Params, Buffers]:
        return {"p": torch.ones_like(self.curvature)}, {}

    def batch(self, split: str, generator: torch.Generator, lead: tuple[int, ...] = ()) -> Batch:
        return (self.curvature.expand(*lead, 1, len(self.curvature)),)

    def full(self, split: str) -> Batch:
        return (self.curvature[None],)

    def metrics(self, params: Params, buffers: Buffers, batch: Batch) -> dict[str, Tensor]:
        return {"loss": self.loss(params, buffers, batch, torch.zeros((), dtype=torch.int64))[0]}

    def loss(
        self, params: Params, buffers: Buffers, batch: Batch, noise: Tensor
    ) -> tuple[Tensor, Buffers]:
        return 0.5 * (batch[0] * params["p"] ** 2).sum(), buffers

    def normalize(self, loss: Tensor) -> Tensor:
        return torch.where(torch.isfinite(loss), loss, 10.0)


@dataclass(frozen=True, kw_only=True)
class PlainSGDConfig:
    lr: float = 0.1


class PlainSGD(LearnedOptimizer):
    """p <- p - exp(log_lr) g; with ``reads_loss`` the step is also multiplied by the loss it is
    told.
    """

    kind = "test-sgd"
    Config = PlainSGDConfig

    def __init__(self, config: PlainSGDConfig, reads_loss: bool = False) -> None:
        super().__init__()
        self.config, self.reads_loss = config, reads_loss
        self.log_lr = nn.Parameter(torch.tensor(config.lr, dtype=torch.float64).log())

    def init_state(self, layout: Layout, params: Tensor) -> State:
        return {"step": params.new_zeros(())}

    def measure(self, params: Tensor, grads: Tensor, state: State) -> Tensor:
        return grads.new_zeros(0, grads.shape[-1])

    def stats(self, layout: Layout, params: Tensor, grads: Tensor, state: State) -> Tensor:
        return grads.new_zeros(0, layout.num)

    def condition(
        self, layout: Layout, stats: Tensor, state: State, loss: Tensor | None, clock: Clock
    ) -> tuple[Tensor, Tensor, State]:
        factor = loss if self.reads_loss else clock.progress * 0 + 1
        assert factor is not None
        return stats, factor[None], {"step": state["step"] + 1}

    def update(
        self, channels: Tensor, shared: Tensor, params: Tensor, grads: Tensor, state: State
    ) -> tuple[Tensor, State]:
        return params - shared[0] * self.log_lr.exp() * grads, {}


def doubled(kind: str, spread: float = 0.05, seed: int = 5, **values: Any) -> LearnedOptimizer:
    """A float64 learned optimizer, off its start by normal noise of size ``spread``, so that no
    head is zero.
    """
    learned = make_learned(kind, **values).double()
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in learned.parameters():
            p.add_(spread * torch.randn(p.shape, generator=g, dtype=torch.float64))
    return learned


def once(steps: int, unroll_length: int | None = None) -> Truncation:
    """Episodes of exactly ``steps``, in truncations of ``unroll_length`` (default: one)."""
    return Truncation(unroll_length=unroll_length or steps, episode=(steps, steps))


def in_step(state: UnrollState) -> UnrollState:
    """Undo desynchronisation: every task begins a whole episode."""
    return replace(state, stop=state.horizon.clone())


def copied(state: UnrollState) -> UnrollState:
    """A state of its own, generator included."""
    return state_from_tensors(state_to_tensors(state))


def with_buffer(state: UnrollState, name: str, values: Tensor) -> UnrollState:
    carry = state.carry
    return replace(
        state, carry=carry._replace(buffers={**carry.buffers, name: values.to(carry.buffers[name])})
    )


def slope(f: Callable[[Theta], Tensor], theta: Theta, direction: Theta, h: float = 1e-5) -> float:
    """Central difference of ``f`` along ``direction``."""
    ahead, behind = ({n: x + s * h * direction[n] for n, x in theta.items()} for s in (1, -1))
    return float((f(ahead) - f(behind)) / (2 * h))


def directions(theta: Theta, seed: int = 3) -> list[tuple[str, Theta]]:
    """One random direction within each meta-parameter tensor, named by it, and one through all of
    them.
    """
    g = torch.Generator().manual_seed(seed)
    noise = {n: torch.randn(x.shape, generator=g, dtype=torch.float64) for n, x in theta.items()}
    zeros = {n: torch.zeros_like(x) for n, x in theta.items()}
    return [(n, {**zeros, n: noise[n]}) for n in theta] + [("all", noise)]


def along(grad: Theta, direction: Theta) -> float:
    return float(sum((g * direction[n]).sum() for n, g in grad.items()))


def draw_row(draw: Draw, k: int) -> Draw:
    """The data of task ``k`` alone, still with a leading dimension of 1."""
    train, held = (tuple(x[k : k + 1] for x in batch) for batch in (draw.train, draw.held))
    return Draw(train, held, draw.noise[k : k + 1], Clock(*(x[k : k + 1] for x in draw.clock)))


def carry_row(carry: Carry, k: int) -> Carry:
    buffers, state = (
        {n: x[k : k + 1] for n, x in group.items()} for group in (carry.buffers, carry.state)
    )
    return Carry(carry.params[k : k + 1], buffers, state, carry.alive[k : k + 1], {})
