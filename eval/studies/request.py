"""Requests: the options of every evaluation. Light to import: ``--help`` answers at once."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Annotated, Literal

from lo_framework.errors import UserError, shown
from lo_framework.schema import Range, check_ranges

LEARNED = "learned:"  # an arm that is no baseline
Steps = Annotated[int, Range(low=1, high=10**8)]
Seeds = Annotated[int, Range(low=1, high=10_000)]
Several = Annotated[int, Range(low=1, high=1000)]


@dataclass(frozen=True, kw_only=True)
class Request:
    """The options of every evaluation: tasks, lengths, seeds, and where the results go."""

    optimizees: str = "mlp,cnn"
    """problems, as mlp:hidden=64x64,cnn"""
    datasets: str = "digits"
    """data sets, as digits,mnist:size=8"""
    steps: Steps = 200
    """updates per run"""
    seeds: Seeds = 5
    """reported seeds"""
    out: str
    """folder of the results"""
    seed_offset: int = 0
    """shift all seeds, to repeat on fresh ones"""
    workers: Several = 1
    """processes of one thread each"""
    device: str = "cpu"
    """cpu, cuda, cuda:1, ..."""
    data_dir: str | None = field(default=None, metadata={"metavar": "DIR"})
    """folder with data files (default: LO_DATA_DIR)"""
    plugins: tuple[str, ...] = field(default=(), metadata={"option": "plugin", "metavar": "FILE"})
    """file or module with problems, optimizers or evaluations"""
    progress: Literal["auto", "bar", "plain", "none"] = "auto"
    """bar, plain lines or none: a bar on a terminal"""
    fresh: bool = False
    """forget the finished cells that an earlier run left in DIR"""

    def __post_init__(self) -> None:
        if not self.out.strip():
            raise UserError("--out: expected the name of a folder")
        if self.data_dir is not None and not os.path.isdir(self.data_dir):
            raise UserError(f"--data-dir: {shown(self.data_dir)} is no folder")
        try:
            check_ranges(self)
        except ValueError as error:
            raise UserError(str(error)) from None


@dataclass(frozen=True, kw_only=True)
class TunedRequest(Request):
    """An evaluation that tunes baselines on seeds of their own."""

    tuning_seeds: Seeds = 3
    """other seeds, to tune baselines on"""
    grid_size: Several | None = field(default=None, metadata={"metavar": "N"})
    """learning rates per schedule (default: the baseline's 7 or more)"""


@dataclass(frozen=True, kw_only=True)
class LearnedRequest(TunedRequest):
    """Learned optimizers and baselines, which are tuned."""

    learned: str = field(metadata={"metavar": "FILE[,FILE...]"})
    """optimizer files, as meta-training saves them, general, which is shipped, or
    hf://owner/name"""


@dataclass(frozen=True, kw_only=True)
class TransferRequest(LearnedRequest):
    """Learned optimizers, as they are and with one tuned number, against tuned baselines."""

    baselines: str = "adamw,sgdm"
    """what to compare with, or none"""
    step_scales: str = field(default="0.25,0.5,1,2,4", metadata={"metavar": "FACTORS"})
    """multiples of the learned step, of which a row of its own has the best, or none"""
    out: str = "runs/transfer"
    """folder of the results"""


@dataclass(frozen=True, kw_only=True)
class CompareRequest(TunedRequest):
    """Baselines against each other."""

    arms: str = "none"
    """baselines, each tuned, and learned:FILE or learned:general, as it is and step tuned"""
    step_scales: str = field(default="0.25,0.5,1,2,4", metadata={"metavar": "FACTORS"})
    """multiples of a learned step, of which a row of its own has the best, or none"""
    reference: str = "adamw"
    """what all are compared with"""
    at_reference: str = "none"
    """baselines at the reference's tuned settings"""
    scaled: str = field(default="", metadata={"metavar": "FACTORS"})
    """the reference at these multiples of its learning rate"""
    against: str = ""
    """arms that others are compared with too"""
    choose_by: Literal["metric", "validation"] = "metric"
    """the setting reported: the best one for each metric, or the one with the best validation
    loss for all, which takes fewer runs"""
    costs: bool = False
    """also measure time and memory of each optimizer's step, alone in a fresh process"""
    out: str = "runs/compare"
    """folder of the results"""

    @property
    def learned(self) -> list[str]:
        """What the words ``learned:...`` of the arms name."""
        words = map(str.strip, self.arms.split(","))
        names = [x.removeprefix(LEARNED) for x in words if x.startswith(LEARNED)]
        if "" in names:
            raise UserError("--arms: learned: needs a file or a name after it, as learned:general")
        return names


@dataclass(frozen=True, kw_only=True)
class RobustnessRequest(Request):
    """Optimizers over a grid of step sizes, not tuned."""

    optimizees: str = "mlp"
    """problems, as mlp:hidden=64x64,cnn"""
    steps: Steps = 1000
    """updates per run"""
    optimizers: str = (
        "adamw,metaoptimize:meta_lr=0.001,metaoptimize:meta_lr=0.01,metaoptimize:meta_lr=0.03"
    )
    """baselines, lr left out"""
    lrs: str = "1e-7:1e-2"
    """step sizes: FROM:TO or a list"""
    per_decade: Several = 2
    """step sizes per decade of FROM:TO"""
    out: str = "runs/robustness"
    """folder of the results"""


@dataclass(frozen=True, kw_only=True)
class AblationRequest(Request):
    """The options of one baseline, two at a time."""

    optimizees: str = "mlp"
    """problems, as mlp:hidden=64x64,cnn"""
    steps: Steps = 500
    """updates per run"""
    baseline: str = field(default="torch-metaoptimize", metadata={"metavar": "SPEC"})
    """what is varied"""
    panels: str = field(default="", metadata={"metavar": "NAME[,NAME...]"})
    """some of the panels known for the baseline (default: all)"""
    panel: tuple[str, ...] = field(default=(), metadata={"metavar": "ROW=a/b,COLUMN=c/d"})
    """a panel of your own; repeatable"""
    references: str = field(default="", metadata={"metavar": "SPECS"})
    """baselines beside it, or none (default: AdamW, fixed and tuned)"""
    tuning_seeds: Seeds = 3
    """other seeds, to tune references on"""
    out: str = "runs/ablation"
    """folder of the results"""


@dataclass(frozen=True, kw_only=True)
class SharpnessRequest(LearnedRequest):
    """How sharp the minima are that optimizers find."""

    optimizees: str = "mlp"
    """problems, as mlp:hidden=64x64,cnn"""
    baselines: str = "adamw"
    """what to compare with, or none"""
    radii: str = "0.001,0.005,0.05,0.1"
    """l2 radii of the neighbourhoods"""
    effort: str = "quick"
    """quick, balls, standard, full: how much is measured"""
    probe: str = field(default="sam:rho=0.05", metadata={"metavar": "SPEC"})
    """regularizer that updates are compared with, or none"""
    choose_by: Literal["training", "validation"] = "training"
    """the loss that chooses a baseline's setting on the tuning seeds, at the end of its runs"""
    out: str = "runs/sharpness"
    """folder of the results"""


@dataclass(frozen=True, kw_only=True)
class ScoreRequest(Request):
    """Learned optimizers on a fixed suite of problems, which says what is trained and how long."""

    optimizees: str = field(default="", init=False)
    datasets: str = field(default="", init=False)
    steps: Steps = field(default=1, init=False)
    learned: tuple[str, ...] = field(default=(), metadata={"positional": True, "metavar": "FILE"})
    """optimizer files, general, which is shipped, hf://owner/name, or specs of untrained ones as
    hyper-adamw"""
    suite: str = field(default="", metadata={"metavar": "FILE"})
    """a suite of your own (default: the one that is shipped)"""
    problems: str = field(default="", metadata={"metavar": "NAME[,NAME...]"})
    """only these problems of the suite"""
    baselines: str = "none"
    """baselines beside them, tuned over their grids, as adamw:lr=0.01,sgdm"""
    step_scales: str = field(default="none", metadata={"metavar": "FACTORS"})
    """multiples of the learned step, as 0.5,1,2,4: a second row of each optimizer has the best of
    each problem, tuned as baselines are"""
    seeds: Annotated[int, Range(low=3, high=10_000)] = 3
    """reported seeds"""
    tune: bool = False
    """tune AdamW on the suite and store its results beside the suite's file"""
    verify: bool = False
    """first run AdamW's stored setting again on one seed"""
    out: str = "runs/score"
    """folder of the results"""
