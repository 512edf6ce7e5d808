"""The folder of a run: its settings, its resume states and the optimizer that it saves."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import torch

from lo_framework.eval.running.provenance import commit, processor, version
from lo_framework.files.atomic import atomic_write_bytes, atomic_write_text, clean_temporaries
from lo_framework.files.checkpoint import StateWriter, load_latest_state, load_state, sealed_state
from lo_framework.inner.engine import AUTO
from lo_framework.learned import load_optimizer, of_version, save_optimizer
from lo_framework.meta_train.config import BEFORE, RunConfig, flag
from lo_framework.meta_train.growth import Stage
from lo_framework.meta_train.incumbent import Incumbent, IncumbentRecord, Quality
from lo_framework.meta_train.outer import OuterOptimizer, Radius
from lo_framework.meta_train.shards import Tensors
from lo_framework.objectives.weighting import Weighting
from lo_framework.schema import AnyNumber, Positive, Range, check_json
from lo_framework.spec import UserError

LIGHT = "light.safetensors"


@dataclass
class RunState:
    """State of a run between two outer steps; everything here is in its checkpoints."""

    step: int
    stage: int
    outer: OuterOptimizer
    incumbent: Incumbent
    reference: Quality
    start_lr: float
    repeatable: bool
    radius: Radius | None = None
    weighting: Weighting | None = None
    # Where the run went on with other bits: the step, and on what.
    resumed: list[dict[str, Any]] = field(default_factory=list)
    # Of the optimizer that the run began with (`beginning`).
    began_with: dict[str, Any] = field(default_factory=dict)
    # At each validation: the step and the incumbent's score.
    curve: list[list[float]] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class StateRecord:
    """The record of a resume state, beside its tensors."""

    config: dict[str, Any]
    torch: str
    stages: list[tuple[str, int, int]]
    finished: bool
    stage: Annotated[int, Range(low=0)]
    outer_done: Annotated[int, Range(low=0)]
    repeatable: bool
    start_lr: Positive
    reference: list[dict[str, AnyNumber]]
    incumbent: IncumbentRecord
    processor: str = ""
    resumed: list[dict[str, Any]] = field(default_factory=list)
    began_with: dict[str, Any] = field(default_factory=dict)
    curve: list[list[AnyNumber]] = field(default_factory=list)


@dataclass(frozen=True)
class Saved:
    """A resume state whose record has been checked; a ``light`` one has no shards."""

    step: int
    tensors: Tensors
    record: StateRecord
    warning: str
    light: bool = False

    def part(self, group: str) -> Tensors:
        """One group of the tensors that :meth:`RunFolder.save` wrote."""
        return {
            name.removeprefix(f"{group}."): x
            for name, x in self.tensors.items()
            if name.startswith(f"{group}.")
        }

    def incumbent(self) -> Incumbent:
        """The incumbent, with tensors of its own."""
        best = self.record.incumbent
        theta = {name: x.clone() for name, x in self.part("incumbent").items()}
        values = {key: tuple(x) if isinstance(x, list) else x for key, x in best.config.items()}
        values = of_version(best.kind, values, 1)  # older states do not say it
        return Incumbent(**vars(best) | {"config": values}, theta=theta)


class RunFolder:
    """The files of the run with this ``config``, on so many ``families``, in the folder ``out``."""

    def __init__(
        self,
        out: Path,
        config: RunConfig,
        stages: Sequence[Stage],
        families: int = 1,
        light: bool = False,
    ) -> None:
        self.out, self.config, self.families, self.light = out, config, families, light
        self.plan = plan_of(stages)
        self.optimizer = out / "optimizer.safetensors"
        self.writer = StateWriter()

    def refuse_occupied(self) -> None:
        """Raises UserError where there is something that a new run would overwrite."""
        log = self.out / "metrics.jsonl"
        made = any(path.exists() for path in (self.out / "state", self.optimizer))
        if made or (log.exists() and log.stat().st_size > 0):
            raise UserError(
                f"{str(self.out)!r} already holds a run: go on with it (--resume) or choose "
                "another --out"
            )

    def begin(self) -> None:
        clean_temporaries(self.out)  # of a killed run
        text = json.dumps(asdict(self.config), indent=2) + "\n"
        atomic_write_text(self.out / "config.json", text)

    def close(self) -> None:
        """Wait for what is being written."""
        self.writer.wait()

    def refuse_vanished(self) -> None:
        """Raises UserError where the run's folder was deleted or moved while it ran."""
        if not (self.out / "config.json").exists():
            raise UserError(
                f"the run's folder {str(self.out)!r} is gone or was emptied while the run wrote "
                "to it; nothing more is saved"
            )

    def load(self) -> Saved | None:
        """The last state that is whole.

        Raises:
            UserError: it belongs to a run with other settings, or of another release.
        """
        self.writer.wait()
        state = load_latest_state(self.out / "state") or load_state(self.out / LIGHT)
        if state is None:
            return None
        record = check_json(state.meta, StateRecord, f"the state in {str(self.out)!r}")
        for name, value in asdict(self.config).items():
            # The default: a run of before there was such a setting.
            before = record.config.get(name, BEFORE.get(name, getattr(RunConfig, name)))
            if before != value and (name, value) != ("engine", AUTO):
                raise UserError(
                    f"--resume needs the settings of the run in {str(self.out)!r}: "
                    f"{flag(name)} was {before!r} and is now {value!r}"
                )
        if record.stages != self.plan:
            raise UserError(
                f"the run in {str(self.out)!r} was begun by another release, with other stages"
            )
        light = not any(name.startswith("shard.") for name in state.tensors)
        here, warning = processor(), state.warning
        if record.torch != torch.__version__ and not light:
            raise UserError(
                f"--resume needs torch {record.torch}, with which the run began; "
                f"this is {torch.__version__}"
            )
        if light or record.processor not in ("", here):
            why = "a light state, with new episodes" if light else f"a state of {record.processor}"
            lines = [warning] * bool(warning) + [f"step {state.step}: going on from {why}"]
            warning = "; ".join([*lines, "this run cannot be repeated exactly"])
            record.resumed.append({"step": state.step, "light": light, "processor": here})
            record = replace(record, repeatable=False, processor=here)
        return Saved(state.step, state.tensors, record, warning, light)

    def save(self, run: RunState, shards: dict[int, Tensors], *, finished: bool) -> int:
        """The bytes of a resume state, which is written while the run goes on: tensors ``outer.*``,
        ``incumbent.*``, ``shard.N.*``, ``radius.*`` and ``weighting.*``; the rest as a record.
        `save_optimizer` comes before the last one.
        """
        self.refuse_vanished()
        groups: dict[str, Tensors] = {"outer": run.outer.dump(), "incumbent": run.incumbent.theta}
        groups |= {f"shard.{shard}": state for shard, state in shards.items()}
        for group, learner in (("radius", run.radius), ("weighting", run.weighting)):
            if learner is not None:
                groups[group] = learner.dump()
        tensors = {f"{group}.{name}": x for group, xs in groups.items() for name, x in xs.items()}
        best = {name: value for name, value in vars(run.incumbent).items() if name != "theta"}
        meta = {
            "config": asdict(self.config),
            "torch": torch.__version__,
            "stages": self.plan,
            "finished": finished,
            "stage": run.stage,
            "outer_done": run.outer.done,
            "repeatable": run.repeatable,
            "start_lr": run.start_lr,
            "reference": run.reference,
            "incumbent": best,
            "processor": processor(),
            "resumed": run.resumed,
            "began_with": run.began_with,
            "curve": run.curve,
        }
        size = self.writer.save(self.out / "state", run.step, tensors, meta)
        if self.light:
            few = {name: x for name, x in tensors.items() if not name.startswith("shard.")}
            atomic_write_bytes(self.out / LIGHT, sealed_state(run.step, few, meta))
        if finished:
            self.writer.wait()
        return size

    def save_optimizer(self, run: RunState) -> None:
        """The incumbent, and how it was trained and how well it did."""
        self.refuse_vanished()
        self._write(run.incumbent, run.step, run)

    def _write(self, best: Incumbent, step: int, run: RunState | StateRecord) -> None:
        in_flight = self.families * self.config.num_tasks
        summary = {
            "score": best.score,
            "found_at_step": best.step,
            "steps": step,
            "inner_steps": step * in_flight * self.config.unroll_length,
            "reference_lr": run.start_lr,
            "quality": best.quality,
            "reference": run.reference,
            "repeatable": run.repeatable,
            "resumed": run.resumed,
            **({"began_with": run.began_with} if run.began_with else {}),
            "run": asdict(self.config),
            "torch": torch.__version__,
            "lo_framework": version("lo-framework"),
            "commit": commit(),
            "processor": processor(),
        }
        kind, config = best.kind, best.config
        save_optimizer(self.optimizer, best.theta, kind=kind, config=config, summary=summary)

    def finish(self, saved: Saved) -> Incumbent:
        """The incumbent of a finished run, whose file is made again where it is lost or damaged."""
        best = saved.incumbent()
        try:
            theta = load_optimizer(self.optimizer).tensors
        except UserError:
            theta = {}
        if theta.keys() != best.theta.keys() or any(
            not torch.equal(x, best.theta[name]) for name, x in theta.items()
        ):
            self._write(best, saved.step, saved.record)
        return best


def plan_of(stages: Sequence[Stage]) -> list[tuple[str, int, int]]:
    """The stages in a state's record."""
    return [(stage.kind, stage.begin, stage.end) for stage in stages]
