"""``scaled``: a direction of known size, a step from scaling laws, and what is learned around both.

    p <- p - eta (u + weight_decay p)

Per tensor, ``u`` is Adam's direction from a fast and a slow momentum, orthogonalised in part where
the tensor is a matrix (Muon's direction), over its own root mean square to the power ``norm``. Its
step is

    log eta = offset[role, position] + law + warm-up(step) + log(4) tanh(controller)
              + schedule(progress), or, where the horizon is unknown, + fading(step)

with the law of `law`: powers of fan-in, depth and horizon. Nothing reads an absolute size (eps is
relative to the tensor), so that what is learned on small nets holds on others; and no count of
steps is read after the warm-up where there is progress to read, so that it holds on longer runs.
All meta-parameters start at zero: the start values of the config are a usable optimizer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor

from lo_framework.layout import Layout
from lo_framework.learned.base import Clock, LearnedOptimizer, State, register_learned, zeros
from lo_framework.learned.controller import WARM_UP, Controller, agreement, log_rms, tokens
from lo_framework.learned.hyper_adamw import logit
from lo_framework.learned.law import FAN, POWERS, hats, log_law
from lo_framework.learned.orthogonal import is_wide, orthogonalised
from lo_framework.schema import Checked, Positive, Range, Seed, Share, Width, check_heads

KNOTS = (0.0, 0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9, 1.0)  # of progress
STEPS = (0.0, 1.0, 3.0, 10.0, WARM_UP)
WARM = 5.0  # steps until the step has its full size
FADING = (WARM_UP, 100.0, 300.0, 1000.0, 3000.0)
STEEPEST = math.log(3.0)  # between two knots of fading: a step falls no faster than 1 / steps
LEAST_SHARE = 0.03  # of the step, at the end of the schedule
OFFSETS = ("log_lr", "log_weight_decay", "slow", "now", "norm", "orthogonal")
LEAST_SIZE = 0.27  # mean square of parameters, for a relative step; over the usual one
BOUND = math.log(4.0)
FLOOR = 1e-24  # of second moments; the derivative of its inverse root is finite in float32

Unit = Annotated[float, Range(low=0, high=1)]


@dataclass(frozen=True, kw_only=True)
class ScaledConfig(Checked):
    """Start values, and which parts there are.

    Attributes:
        lr: the step at fan-in 64, 3 matrices and 200 steps.
        relative: whether a step is relative to the size that the tensor's parameters start with (to
            the size that they have, steps and parameters drive each other up).
        fan, last, vectors, depth, horizon: powers of the law.
        fast, slow, second: decays of the momenta and of the second moment.
        slow_share: of the slow momentum; ``norm``: power of the direction's own size by which it is
            divided; ``eps`` is relative to the tensor's second moment.
        orthogonal: share of the orthogonal direction; 0: none is computed.
        controller: what the tokens of the controller exchange; "off": there is none.
        gain: from theta to log space, as in ``hyper-adamw``.
    """

    lr: Positive = 0.02
    relative: bool = False
    fan: Unit = 0.65
    last: Unit = 1.0
    vectors: Unit = 0.3
    depth: Unit = 0.9
    horizon: Unit = 0.3
    fast: Share = 0.85
    slow: Share = 0.97
    second: Share = 0.97
    slow_share: Unit = 0.05
    norm: Unit = 0.5
    eps: Positive = 1e-4
    weight_decay: Positive = 1e-2
    orthogonal: Unit = 0.9
    controller: Literal["off", "none", "mean", "attention"] = "mean"
    width: Width = 16
    heads: Width = 4
    gain: Positive = 10.0
    seed: Seed = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_heads(self.width, self.heads)


def _logit(x: float) -> float:
    return logit(min(max(x, 1e-4), 1.0 - 1e-4))


def _bounded(x: Tensor, bound: float) -> Tensor:
    return bound * torch.tanh(x / bound)


@register_learned
class Scaled(LearnedOptimizer):
    """C offsets per role and position; see the module."""

    kind = "scaled"
    Config = ScaledConfig
    per_param: ClassVar[tuple[str, ...]] = ("m", "slow", "v", "direction")
    open_ended = True
    config: ScaledConfig

    def __init__(self, config: ScaledConfig) -> None:
        super().__init__()
        c = self.config = config
        self.default = zeros(len(OFFSETS))
        self.by_role = zeros(Layout.POSITION_KEYS, len(OFFSETS))
        self.powers = zeros(len(POWERS))
        self.decays = zeros(3)
        self.log_eps = zeros()
        self.schedule = zeros(len(KNOTS))
        self.warmup = zeros(len(STEPS))
        self.fading = zeros(len(FADING) - 1)
        constants = {
            "start": [math.log(c.lr), math.log(c.weight_decay), _logit(c.slow_share), 0.0]
            + [_logit(c.norm), _logit(c.orthogonal)],
            "start_powers": [_logit(x / 2) for x in (c.fan, c.last, c.vectors, c.depth, c.horizon)],
            "start_decays": [_logit(x) for x in (c.fast, c.slow, c.second)],
            "start_schedule": [
                math.log(max(0.5 + 0.5 * math.cos(math.pi * x), LEAST_SHARE)) for x in KNOTS
            ],
            "start_warmup": [min(0.0, math.log((1 + x) / WARM)) for x in STEPS],
            "knots": KNOTS,
            "counts": [math.log1p(x) for x in STEPS],
            "fading_steps": [math.log1p(x) for x in FADING],
        }
        for name, values in constants.items():
            self.register_buffer(name, torch.tensor(values), persistent=False)
        if c.controller != "off":
            generator = torch.Generator().manual_seed(c.seed)
            self.controller = Controller(c.width, c.heads, c.controller, generator)

    def outer_scale(self, name: str) -> float:
        return super().outer_scale(name) if name.startswith("controller") else 1.0

    def init_state(self, layout: Layout, params: Tensor) -> State:
        state = {name: torch.zeros_like(params) for name in self.per_param}
        size = log_rms(layout.mean(params * params))
        alone = {"agreement": torch.zeros_like(size), "size": size}
        return {**state, **alone, "step": params.new_zeros(())}

    def keeps(self) -> Tensor:
        """1 - decay of the fast and the slow momentum and of the second moment, ``[3]``."""
        return torch.sigmoid(-self.get_buffer("start_decays") - self.config.gain * self.decays)

    def offsets(self, tensors: State) -> Tensor:
        """``[C, S]``, in log or logit space."""
        learned = self.by_role.T @ tensors["keys"] + self.default[:, None]
        return self.get_buffer("start")[:, None] + self.config.gain * learned

    def planned(self, progress: Tensor) -> Tensor:
        """Log of the step over the course of a run of known horizon."""
        start = self.get_buffer("start_schedule")
        plan = start + _bounded(self.config.gain * self.schedule, BOUND)
        return hats(self.get_buffer("knots"), progress) @ plan

    def faded(self, step: Tensor) -> Tensor:
        """Log of the step where the horizon is unknown. Knots are sums of those before: beyond the
        longest run of meta-training the step stays as it was.
        """
        levels = _bounded(self.config.gain * self.fading, STEEPEST).cumsum(0)
        at = torch.log1p(step).clamp_min(math.log1p(WARM_UP))
        return hats(self.get_buffer("fading_steps"), at)[1:] @ levels

    def prepare(self, layout: Layout, params: Tensor, grads: Tensor, state: State) -> State:
        """Moments and the direction. Its size is measured afterwards with all else."""
        keep = self.keeps()
        # What makes the averages after this step unbiased, [3].
        unbias = -1.0 / torch.expm1((state["step"] + 1.0) * torch.log1p(-keep))
        columns = {"grads": grads, **{name: state[name] for name in ("m", "slow", "v")}}
        (size,) = self.means("second_moment", layout, columns, [keep])
        shares = self.across("shares", {**self.constants(layout, grads), "size": size}, [unbias])
        new = self.each("directed", layout, shares["weights"], [keep, unbias], columns)
        if self.config.orthogonal:
            u = orthogonalised(layout, new["direction"], shares["orthogonal"])
            new = {**new, "direction": u}
        return {**state, **new}

    def constants(self, layout: Layout, like: Tensor) -> State:
        return {name: x.to(like) for name, x in layout.constants.items()}

    def shares(self, shared: tuple[Tensor, ...], tensors: State) -> State:
        """Weights of the momenta and of the gradient, the floor of the second moment, ``[4, S]``,
        and the share of the orthogonal direction ``[S]``.
        """
        (unbias,) = shared
        _, _, slow, now, _, orthogonal = self.offsets(tensors)
        slow, gain = torch.sigmoid(slow), self.config.gain
        eps = self.config.eps * torch.exp(gain * self.log_eps)
        floor = eps * eps * tensors["size"] + FLOOR
        weights = torch.stack([(1.0 - slow) * unbias[0], slow * unbias[1], now, floor])
        return {"weights": weights, "orthogonal": torch.sigmoid(orthogonal)}

    def second_moment(self, shared: tuple[Tensor, ...], columns: State) -> Tensor:
        """After this gradient, ``[1, n]``."""
        (keep,), v = shared, columns["v"]
        return (v + keep[2] * (columns["grads"] * columns["grads"] - v))[None]

    def directed(self, channels: Tensor, shared: tuple[Tensor, ...], columns: State) -> State:
        """The moments after this gradient and Adam's direction from them."""
        (keep, unbias), grads = shared, columns["grads"]
        by_fast, by_slow, by_now, floor = channels
        m = columns["m"] + keep[0] * (grads - columns["m"])
        slow = columns["slow"] + keep[1] * (grads - columns["slow"])
        v = self.second_moment((keep,), columns)[0]
        u = by_fast * m + by_slow * slow + by_now * grads
        u = u * torch.rsqrt((v + floor) * unbias[2])
        return {"m": m, "slow": slow, "v": v, "direction": u}

    def measure(self, params: Tensor, grads: Tensor, state: State) -> Tensor:
        u, m = state["direction"], state["m"]
        return torch.stack([u * u, params * params, grads * grads, m * m, grads * m, u * params])

    def condition(
        self, layout: Layout, stats: Tensor, state: State, loss: Tensor | None, clock: Clock
    ) -> tuple[Tensor, Tensor, State]:
        tensors = self.constants(layout, stats)
        tensors |= {"stats": stats, "agreement": state["agreement"], "size": state["size"]}
        horizon = clock.horizon.to(stats)
        made = self.across("steps", tensors, [state["step"], clock.progress, horizon])
        reduced = {"step": state["step"] + 1, "agreement": made["agreement"]}
        return made["channels"], stats[0, :0], {**reduced, "size": state["size"]}

    def steps(self, shared: tuple[Tensor, ...], tensors: State) -> State:
        """The step of each tensor and that of its decay, ``[2, S]``; the average agreement."""
        c, (step, progress, horizon) = self.config, shared
        clock = Clock(progress, horizon)
        u2, p2, g2, m2, gm, _ = tensors["stats"]
        log_lr, log_decay, _, _, norm, _ = self.offsets(tensors)
        powers = 2.0 * torch.sigmoid(self.get_buffer("start_powers") + c.gain * self.powers)
        log_eta = log_lr + log_law(tensors, powers, clock)
        unit = torch.zeros_like(u2)
        if c.relative:  # torch's layers start with a mean square of 1 / (3 fan)
            size = 3.0 * tensors["fans"] * torch.exp(2.0 * tensors["size"])
            size = torch.maximum(size, torch.full_like(p2, LEAST_SIZE))
            unit = 0.5 * torch.log(size * FAN / tensors["fans"])
        known = (horizon > 0).to(u2)
        log_eta = log_eta + known * self.planned(progress)
        log_eta = log_eta + (1.0 - known) * self.faded(step)
        warm = self.get_buffer("start_warmup") + c.gain * self.warmup
        log_eta = log_eta + hats(self.get_buffer("counts"), torch.log1p(step)) @ warm
        log_eta = log_eta - 0.5 * torch.sigmoid(norm) * torch.log(u2 + 1e-12)
        began = (step > 0).to(u2)  # before, rounding would be all that there is
        turn = began * agreement(gm, g2, m2, self.keeps()[0])
        average = tensors["agreement"] + 0.1 * (turn - tensors["agreement"])
        if c.controller != "off":
            seen = tokens({**tensors, "agreement": average}, turn, step, clock)
            log_eta = log_eta + BOUND * torch.tanh(c.gain * self.controller(seen))
        eta = torch.exp(log_eta + unit)
        return {
            "channels": torch.stack([eta, torch.exp(log_eta + log_decay)]),
            "agreement": average,
        }

    def quantities(
        self, layout: Layout, channels: Tensor, shared: Tensor, state: State, clock: Clock
    ) -> State:
        """``step_size``, what the direction is multiplied by (its own size to the power ``norm`` is
        divided out already); ``decay``, the share of a parameter that a step takes; ``offset``,
        what has been learned for role and position, as a factor of the step; ``orthogonal``, the
        share of the orthogonal direction (0 where there is none); ``slow``, that of the slow
        momentum.
        """
        made = dict(zip(OFFSETS, self.offsets(self.constants(layout, channels)), strict=True))
        wide = [float(bool(self.config.orthogonal) and is_wide(slot)) for slot in layout.slots]
        return {
            "step_size": channels[0],
            "decay": channels[1],
            "offset": torch.exp(made["log_lr"] - self.get_buffer("start")[0]),
            "orthogonal": torch.sigmoid(made["orthogonal"]) * channels.new_tensor(wide),
            "slow": torch.sigmoid(made["slow"]),
        }

    def update(
        self, channels: Tensor, shared: Tensor, params: Tensor, grads: Tensor, state: State
    ) -> tuple[Tensor, State]:
        params = params - channels[0] * state["direction"] - channels[1] * params
        return params, {name: state[name] for name in self.per_param}
