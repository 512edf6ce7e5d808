"""The settings of a run: what decides its bits, and how it is carried out.

What does not decide the bits
(workers, where files go, how long to go on) is in :class:`Program`. The docstrings of the fields
are the help of the command line; nothing heavy is imported before a `RunConfig` is made.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from lo_framework.errors import UserError
from lo_framework.schema import Fraction, Positive, Range, check_ranges, convert
from lo_framework.spec import build_config, parse_spec

if TYPE_CHECKING:
    from lo_framework.absorb.absorption import Absorption
    from lo_framework.estimators import Truncation
    from lo_framework.objectives import Objective
    from lo_framework.objectives.weighting import Weighting

# What a run meant that is older than the setting; and what a run's own file always has.
BEFORE = {"vary": "none", "hide_progress": 0.0}
ALWAYS_WRITTEN = {"clip", "checkpoint_every", "validation_seeds"}

NAMED_STEPS = 200  # of what is varied when it is trained on

Count = Annotated[int, Range(low=1, high=10**7)]


@dataclass(frozen=True, kw_only=True)
class RadiusConfig:
    """``phase``: outer steps of a branch. ``sigma``: perturbation of log rho. ``lr``: step in log
    rho per unit of the slope of the log held-out loss; one step is at most sigma.
    """

    phase: Count = 10
    sigma: Positive = 0.3
    lr: Positive = 1.0


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One meta-training run. Field names are the command line's."""

    optimizees: str = "mlp,cnn"
    """Tasks, as mlp,cnn or mlp:hidden=64x64,act=tanh."""
    datasets: str = "digits,teacher"
    """Data sets, as digits,fashion_mnist:size=8."""
    vary: Literal["usual", "none"] = "usual"
    """usual: the shapes, data and batches of an optimizee that is named without options are drawn
    anew for every episode of a shard; none: everything is trained on as it is named."""
    learned: str = "scaled"
    """Learned optimizer: scaled, attention-mlp, attention, hyper-adamw, mlp, lstm or
    celo2, with options."""
    estimator: str = "tbptt:clip_task=1"
    """Meta-gradient: tbptt, pes or es, with options, as pes:sigma=0.01."""
    objective: str = "valid:train=0.25,log=0.3"
    """Score of an unroll: valid (held-out loss) or train; or what each step does:
    gradient, loss_decrease, gen_gap or all three combined."""
    unroll_length: Count = 25
    """Inner steps of one truncation."""
    episode_length: str = "30-300"
    """Inner steps of an episode: 200, or 100-1000 for log-uniform lengths."""
    hide_progress: Fraction = 0.25
    """Share of the episodes in which the optimizer is not told how long they are."""
    step_range: Annotated[float, Range(low=1, high=1e6)] = 1.0
    """Multiply the learned step, for an episode, by what is drawn log-uniformly in [1/X, X]."""
    num_tasks: Count = 2
    """Tasks per family (optimizee x data set) in flight."""
    shards: Count = 2
    """Virtual shards per family; unlike --workers, which share them out, this decides the bits."""
    prolong: Annotated[float, Range(low=0, high=0.95)] = 0.0
    """Share of the episodes that go on where the one before ended, by another length."""
    teacher: Fraction = 0.0
    """Share of the run in which AdamW steps too, less and less, and is imitated."""
    start: str = ""
    """Begin with the weights of this optimizer (a file, or a name as quick), and its kind and
    options where --learned is not given."""
    only: str = ""
    """Train these meta-parameters alone, as schedule,controller.*; the others stay as they are."""
    augment: Annotated[float, Range(low=1, high=1e12)] = 1.0
    """Half of the episodes see parameters in units up to this factor off (1: none)."""
    outer_steps: Count = 120
    """Updates of the learned optimizer."""
    outer_lr: Positive = 0.01
    """Learning rate of the outer Adam."""
    clip: Positive = 1.0
    """Largest norm of the meta-gradient."""
    validate_every: Count = 10
    """Outer steps between validations of the incumbent."""
    validation_seeds: Count = 8
    """Seeds of a validation."""
    probes: str = ""
    """Fixed problems outside of the pool that decide what is saved, as mlp:hidden=256x256@200 (the
    steps) or mlp/mnist:size=8; none: the families do (default: a list of ours where shapes vary,
    else none)."""
    keep: Literal["best", "last"] = "best"
    """What is saved: the best by validation, or the last average."""
    checkpoint_every: Count = 10
    """Outer steps between resume states."""
    seed: Annotated[int, Range(low=0)] = 0
    """Seed of the run."""
    device: str = "cpu"
    """cpu, cuda, cuda:1, ..."""
    inner_backend: Literal["torch", "higher"] = "torch"
    """torch, or higher: for modules that vmap cannot take (hyper-adamw only)."""
    regularizer: str = "none"
    """Absorb one in the meta-objective, never in the gradients that the optimizer sees: sam, gsam,
    gam, ... with options, or a mixture, as sam:rho=0.05+gam."""
    absorb: str = ""
    """How: batch=own|independent, attached=true, when=every|last|end|late, last=20, strength=1,
    through=value|field."""
    score: Literal["plain", "regularized"] = "plain"
    """What is best by validation: the plain held-out loss, or with what the regularizer that is
    absorbed adds to it at the end of an episode."""
    learn_rho: str = ""
    """Learn its radius on held-out loss at twice the cost: phase=10,sigma=0.3,lr=1."""
    control: str = "none"
    """No regularizer, but as many more outer steps as this one would have cost."""
    weighting: str = ""
    """Weights of several terms: sum (default), fixed:weights=1x0.3x0.3, or huw, which learns
    them: huw:lr=0.05,bound=3."""
    priorities: str = ""
    """Priorities of gradient, loss_decrease and gen_gap under --weighting huw, as 2,5,1."""
    engine: str = "auto"
    """How inner steps run: eager, graph, best or inductor, native-... with compiled kernels."""

    def __post_init__(self) -> None:
        try:
            check_ranges(self)
        except ValueError as error:
            raise UserError(f"--{str(error).replace('_', '-')}") from None
        if self.num_tasks % self.shards:
            raise UserError(
                f"--num-tasks ({self.num_tasks}) must be a multiple of --shards ({self.shards})"
            )
        if self.unroll_length > self.episode[1]:
            longest = f"--episode-length {self.episode_length}"
            raise UserError(
                f"--unroll-length {self.unroll_length} is longer than any episode ({longest})"
            )
        self._check_regularizer()
        self._check_weighting()
        _ = self.truncation

    def __getstate__(self) -> dict[str, Any]:  # the fields alone: what they stand for is made again
        return asdict(self)

    def _check_regularizer(self) -> None:
        if self.score == "regularized" and self.regularizer == "none":
            raise UserError("--score regularized is with what is absorbed: give --regularizer")
        if self.regularizer == "none" and self.control == "none":
            for name in ("absorb", "learn_rho"):
                if getattr(self, name):
                    raise UserError(
                        f"{flag(name)} says how a regularizer is absorbed: give one (--regularizer)"
                    )
            return
        if "none" not in (self.regularizer, self.control):
            raise UserError("--control is the run without the regularizer: give one of the two")
        from lo_framework.estimators import ESTIMATORS

        if self.inner_backend != "torch":
            raise UserError("--regularizer needs --inner-backend torch")
        absorption = self.absorption or self.absorption_of(self.control)
        estimator, _ = ESTIMATORS.parse(self.estimator)
        if absorption.config.attached and not estimator.facts.get("unrolls"):
            raise UserError(
                "--absorb attached=true is for an estimator that differentiates, as tbptt: "
                f"{estimator.name} does not"
            )

        if self.score == "regularized" and not absorption.regularizer.has_value:
            raise UserError(
                "--score regularized needs a regularizer with a scalar value; "
                f"{self.regularizer} is only a field"
            )
        if self.learn_rho:
            _ = absorption.radius, self.radius
            if not self.scored_by.only_held_out:
                raise UserError(
                    "a radius (--learn-rho) is learned on held-out data only: use --objective valid"
                )

    def _check_weighting(self) -> None:
        for name in ("weighting", "priorities"):
            if getattr(self, name) and not self.scored_by.names:
                raise UserError(
                    f"{flag(name)} is for an objective of several terms, as --objective combined, "
                    f"not for {self.objective!r:.80}"
                )
        _ = self.make_weighting()

    def make_weighting(self) -> Weighting | None:
        """A fresh weighting of the objective's terms; None where there is one score and nothing to
        weigh.
        """
        from lo_framework.objectives.weighting import make_weighting, parse_priorities

        if not (terms := self.scored_by.names):
            return None
        priorities = parse_priorities(self.priorities, terms) if self.priorities else None
        return make_weighting(self.weighting or "sum", priorities, terms)

    def absorption_of(self, regularizer: str) -> Absorption:
        """The regularizer of that spec, absorbed as this run absorbs one."""
        from lo_framework.absorb.absorption import make_absorption

        return make_absorption(regularizer, self.absorb)

    @cached_property
    def absorption(self) -> Absorption | None:
        return None if self.regularizer == "none" else self.absorption_of(self.regularizer)

    @cached_property
    def radius(self) -> RadiusConfig | None:
        """How the radius of the regularizer is learned, where it is."""
        if not self.learn_rho:
            return None
        _, options = parse_spec(f"rho:{self.learn_rho}")
        return build_config(RadiusConfig, options, owner="--learn-rho")

    @cached_property
    def scored_by(self) -> Objective:
        from lo_framework.objectives import make_objective

        return make_objective(self.objective)

    @cached_property
    def episode(self) -> tuple[int, int]:
        """The shortest and the longest episode."""
        low, dash, high = self.episode_length.partition("-")
        try:
            return tuple(convert(each, Count, text=True) for each in (low, high if dash else low))
        except ValueError:
            raise UserError(
                f"--episode-length {self.episode_length!r:.80}: expected 200, or 100-1000 for "
                "log-uniform lengths"
            ) from None

    @property
    def named_steps(self) -> int:
        """Steps of a family as it is named, in validation and in the closing table."""
        return self.episode[1] if self.vary == "none" else min(self.episode[1], NAMED_STEPS)

    @cached_property
    def truncation(self) -> Truncation:
        from lo_framework.estimators import Truncation

        return Truncation(
            unroll_length=self.unroll_length,
            episode=self.episode,
            hide_progress=self.hide_progress,
            step_range=self.step_range,
            prolong=self.prolong,
        )

    @property
    def tasks_per_shard(self) -> int:
        return self.num_tasks // self.shards


@dataclass(frozen=True, kw_only=True)
class Program:
    """How a run is carried out: nothing that is saved depends on it (but on ``max_seconds``)."""

    preset: str = "quick"
    """quick, small (twenty minutes), general (forty minutes of one core, from what quick gives), or
    specialist (attention-mlp on problems as named)."""
    out: str = "runs/latest"
    """Folder of the run."""
    resume: bool = False
    """Go on from the last checkpoint in --out, or start if there is none."""
    light_state: bool = False
    """Keep light.safetensors in --out too: a state without its episodes, under 1 MB. A run that
    finds it alone goes on from it with new episodes, and says so in its record."""
    workers: int = min(2, os.cpu_count() or 1)
    """Processes of one thread each."""
    max_seconds: float | None = None
    """Stop meta-training early after this time; the run is then not repeatable."""
    data_dir: str | None = None
    """Folder with data files (default: LO_DATA_DIR)."""
    plugins: tuple[str, ...] = field(default=(), metadata={"option": "plugin"})
    """A Python file or module that registers tasks or optimizers."""
    evaluate: bool = True
    """Skip the closing table against tuned AdamW on unseen seeds."""

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise UserError(f"--workers must be at least 1, not {self.workers}")
        if self.max_seconds is not None and not self.max_seconds > 0:
            raise UserError(f"--max-seconds must be positive, not {self.max_seconds}")
        if not self.out.strip():
            raise UserError("--out is empty: expected the folder of the run, as runs/latest")
        if self.data_dir is not None and not Path(self.data_dir).is_dir():
            raise UserError(f"--data-dir: the folder {self.data_dir!r} does not exist")


def flag(field: str) -> str:
    return "--" + field.replace("_", "-")
