"""What a run is: everything that decides its bits, and the presets.

Presets count steps, never seconds, so that a run can be repeated. What does not decide the bits
(workers, where files go, how long to go on) is not part of :class:`RunConfig`.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from lo_framework.absorption import Absorption, make_absorption
from lo_framework.estimators import Truncation, estimator_config
from lo_framework.estimators.tbptt import TBPTTConfig
from lo_framework.inner.graph import ENGINES
from lo_framework.objectives import make_objective
from lo_framework.objectives.weighting import Weighting, make_weighting, parse_priorities
from lo_framework.regularizers.base import HVP_COST
from lo_framework.spec import UserError, nearest, parse_spec


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One meta-training run. Field names are the command line's."""

    optimizees: str = "mlp,cnn"
    datasets: str = "digits"
    learned: str = "attention-mlp"
    estimator: str = "tbptt:clip_task=1"
    objective: str = "valid"
    unroll_length: int = 50
    episode_length: str = "200"  # or "100-1000": log-uniform
    num_tasks: int = 8  # per family
    shards: int = (
        2  # virtual shards per family; workers share them out, the bits depend on this number only
    )
    augment: float = 1.0  # span of the random parameter scales of half the episodes; 1: none
    outer_steps: int = 100
    outer_lr: float = 0.01
    clip: float = 1.0
    validate_every: int = 5
    validation_seeds: int = 8
    checkpoint_every: int = 10
    seed: int = 0
    device: str = "cpu"
    inner_backend: str = "torch"
    regularizer: str = (
        "none"  # absorbed: in the meta-objective, never in the gradients that the optimizer sees
    )
    absorb: str = ""  # how; see lo_framework.absorption.AbsorbConfig
    learn_rho: str = (
        ""  # "phase=10,sigma=0.3,lr=1": the regularizer's radius by ES on held-out loss
    )
    control: str = (
        "none"  # a regularizer whose meta-compute this unregularized run gets, as more outer steps
    )
    weighting: str = (
        ""  # of the terms of the objective combined: sum (which "" stands for), fixed or huw
    )
    priorities: str = ""  # "2,5,1": of the terms under the weighting huw
    # how inner steps run: eager, graph (recorded, the same bits) or inductor (compiled)
    engine: str = "eager"

    def __post_init__(self) -> None:
        for name in (
            "unroll_length",
            "num_tasks",
            "shards",
            "outer_steps",
            "validate_every",
            "validation_seeds",
            "checkpoint_every",
        ):
            if getattr(self, name) < 1:
                raise UserError(f"{flag(name)} must be at least 1, not {getattr(self, name)}")
        for name in ("outer_lr", "clip"):
            if not 0 < getattr(self, name) < math.inf:
                raise UserError(
                    f"{flag(name)} must be positive and finite, not {getattr(self, name)}"
                )
        if not self.augment >= 1:
            raise UserError(f"--augment must be at least 1 (1: none), not {self.augment}")
        if self.num_tasks % self.shards:
            raise UserError(
                f"--num-tasks ({self.num_tasks}) must be a multiple of --shards ({self.shards})"
            )
        if self.seed < 0:
            raise UserError(f"--seed must not be negative, not {self.seed}")
        if self.inner_backend not in ("torch", "higher"):
            known = ("torch", "higher")
            raise UserError(
                f"unknown --inner-backend {self.inner_backend!r}{nearest(self.inner_backend, known)}; torch or higher"
            )
        if self.engine not in ENGINES:
            raise UserError(
                f"unknown --engine {self.engine!r}{nearest(self.engine, ENGINES)}; {', '.join(ENGINES)}"
            )
        if self.unroll_length > self.episode[1]:
            longest = f"--episode-length {self.episode_length}"
            raise UserError(
                f"--unroll-length {self.unroll_length} is longer than any episode ({longest})"
            )
        self._check_regularizer()
        self._check_weighting()
        _ = self.truncation

    def _check_regularizer(self) -> None:
        if self.regularizer == "none" and self.control == "none":
            for name in ("absorb", "learn_rho"):
                if getattr(self, name):
                    raise UserError(
                        f"{flag(name)} says how a regularizer is absorbed: give one (--regularizer)"
                    )
            return
        if "none" not in (self.regularizer, self.control):
            raise UserError(
                "--control is the run without the regularizer: give one of --regularizer and --control"
            )
        if self.inner_backend != "torch":
            raise UserError("--regularizer needs --inner-backend torch")
        absorption = make_absorption(
            self.regularizer if self.control == "none" else self.control, self.absorb
        )
        if absorption.config.attached and parse_spec(self.estimator)[0] != "tbptt":
            raise UserError(
                "--absorb attached=true is for the estimator tbptt: es and pes differentiate nothing"
            )

        if self.learn_rho:
            _ = absorption.radius
            if not make_objective(self.objective).only_held_out:
                raise UserError(
                    "a radius (--learn-rho) is learned on held-out data only: use --objective valid"
                )

    def _check_weighting(self) -> None:
        name, _ = parse_spec(self.objective)
        for field in ("weighting", "priorities"):
            if getattr(self, field) and name != "combined":
                raise UserError(
                    f"{flag(field)} is for --objective combined, which has several terms, not for {name!r}"
                )
        if self.priorities and parse_spec(self.weighting or "sum")[0] != "huw":
            raise UserError("--priorities are for --weighting huw")
        _ = self.make_weighting()

    def make_weighting(self) -> Weighting | None:
        """A fresh weighting of the objective's terms; None where there is one score and nothing to
        weigh.
        """
        if parse_spec(self.objective)[0] != "combined":
            return None
        priorities = parse_priorities(self.priorities) if self.priorities else None
        return make_weighting(self.weighting or "sum", priorities)

    @property
    def absorption(self) -> Absorption | None:
        return (
            None if self.regularizer == "none" else make_absorption(self.regularizer, self.absorb)
        )

    @property
    def episode(self) -> tuple[int, int]:
        low, dash, high = self.episode_length.partition("-")
        try:
            return int(low), int(high if dash else low)
        except ValueError:
            raise UserError(
                f"--episode-length {self.episode_length!r}: expected 200, or 100-1000 for log-uniform lengths"
            ) from None

    @property
    def truncation(self) -> Truncation:
        return Truncation(unroll_length=self.unroll_length, episode=self.episode)

    @property
    def tasks_per_shard(self) -> int:
        return self.num_tasks // self.shards


# A few minutes and about an hour on two CPU cores; figures in the README.
PRESETS: dict[str, dict[str, Any]] = {
    "quick": {},
    "small": {"outer_steps": 600, "num_tasks": 16, "validate_every": 10, "checkpoint_every": 20},
}


def flag(field: str) -> str:
    return "--" + field.replace("_", "-")


def make_config(preset: str = "quick", **given: Any) -> RunConfig:
    """The preset with whatever was given in its place (None: not given)."""
    if preset not in PRESETS:
        raise UserError(
            f"unknown preset {preset!r}{nearest(preset, PRESETS)}; there are {', '.join(PRESETS)}"
        )
    values = {
        **PRESETS[preset],
        **{name: value for name, value in given.items() if value is not None},
    }
    known = {f.name for f in fields(RunConfig)}
    for name in values:
        if name not in known:
            raise UserError(f"unknown setting {name!r}{nearest(name, known)}")
    config = replace(RunConfig(), **values)
    if config.control == "none":
        return config
    return replace(config, outer_steps=math.ceil(config.outer_steps * compute_factor(config)))


def compute_factor(config: RunConfig) -> float:
    """How many times the gradient evaluations of the plain run the regularized one takes
    (``--control``).

    Plain, per inner step: the gradient, whatever the objective adds (the held-out loss with its
    pull-back, say), and under second-order TBPTT the Hessian-vector product that pulls back through
    the gradient.
    """
    absorption = make_absorption(config.control, config.absorb)
    settings = estimator_config(config.estimator)
    unrolled = isinstance(settings, TBPTTConfig)
    second_order = isinstance(settings, TBPTTConfig) and settings.second_order
    plain = 1.0 + make_objective(config.objective).cost(unrolled=unrolled) + HVP_COST * second_order
    extra = absorption.regularizer.cost.total - (0.0 if absorption.independent else 1.0)
    extra += (
        2.0 if absorption.alpha and unrolled else 0.0
    )  # GSAM pulls back twice: so much, as measured
    length = sum(config.episode) / 2
    share = {"last": min(1.0, absorption.config.last / length), "end": 1.0 / length}.get(
        absorption.config.when, 1.0
    )
    return 1.0 + share * extra / plain


def difference(old: dict[str, Any], new: RunConfig) -> str:
    """The first setting in which a resumed run would differ, as one phrase; empty if none does."""
    for name, value in asdict(new).items():
        before = old.get(name, getattr(RunConfig, name))  # a run of before there was such a setting
        if before != value:
            return f"{flag(name)} was {before!r} and is now {value!r}"
    return ""
