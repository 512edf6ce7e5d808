"""The folder of a run: its settings, its resume states and the optimizer that it saves."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import torch

from lo_framework.eval.running.provenance import processor
from lo_framework.files.atomic import atomic_write_text, clean_temporaries
from lo_framework.files.checkpoint import load_latest_state, save_state
from lo_framework.learned import load_optimizer, save_optimizer
from lo_framework.meta_train.config import RunConfig, difference
from lo_framework.meta_train.growth import Stage
from lo_framework.meta_train.incumbent import Incumbent, Quality
from lo_framework.meta_train.state import RunState, StateRecord, Tensors, incumbent_of, pack
from lo_framework.schema import check_json
from lo_framework.spec import UserError


class Saved(NamedTuple):
    """A resume state whose record has been checked."""

    step: int
    tensors: Tensors
    record: StateRecord
    warning: str


class RunFolder:
    """The files of the run with this ``config`` in the folder ``out``."""

    def __init__(self, out: Path, config: RunConfig, stages: Sequence[Stage]) -> None:
        self.out, self.config = out, config
        self.plan = plan_of(stages)
        self.optimizer = out / "optimizer.safetensors"

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
        state = load_latest_state(self.out / "state")
        if state is None:
            return None
        record = check_json(state.meta, StateRecord, f"the state in {str(self.out)!r}")
        changed = difference(record.config, self.config)
        if changed:
            raise UserError(
                f"--resume needs the settings of the run in {str(self.out)!r}: {changed}"
            )
        if record.stages != self.plan:
            raise UserError(
                f"the run in {str(self.out)!r} was begun by another release, with other stages"
            )
        if record.torch != torch.__version__:
            raise UserError(
                f"--resume needs torch {record.torch}, with which the run began; "
                f"this is {torch.__version__}"
            )
        return Saved(state.step, state.tensors, record, state.warning)

    def save(self, run: RunState, shards: dict[int, Tensors], *, finished: bool) -> None:
        """A resume state; `save_optimizer` comes before the last one."""
        self.refuse_vanished()
        tensors, meta = pack(run, shards)
        meta |= {"config": asdict(self.config), "torch": torch.__version__, "stages": self.plan}
        save_state(self.out / "state", run.step, tensors, {**meta, "finished": finished})

    def save_optimizer(self, run: RunState) -> None:
        """The incumbent, and how it was trained and how well it did."""
        self.refuse_vanished()
        self._write(run.incumbent, run.step, run.start_lr, run.reference, run.repeatable)

    def finish(self, saved: Saved) -> Incumbent:
        """The incumbent of a finished run, whose file is made again where it is lost or damaged."""
        record = saved.record
        best = incumbent_of(saved.tensors, record.incumbent)
        try:
            theta = load_optimizer(self.optimizer).tensors
        except UserError:
            theta = {}
        if theta.keys() != best.theta.keys() or any(
            not torch.equal(x, best.theta[name]) for name, x in theta.items()
        ):
            self._write(best, saved.step, record.start_lr, record.reference, record.repeatable)
        return best

    def _write(
        self, best: Incumbent, step: int, lr: float, reference: Quality, repeatable: bool
    ) -> None:
        summary = {
            "score": best.score,
            "found_at_step": best.step,
            "steps": step,
            "reference_lr": lr,
            "quality": best.quality,
            "reference": reference,
            "repeatable": repeatable,
            "run": asdict(self.config),
            "torch": torch.__version__,
            "processor": processor(),
        }
        kind, config = best.kind, best.config
        save_optimizer(self.optimizer, best.theta, kind=kind, config=config, summary=summary)


def plan_of(stages: Sequence[Stage]) -> list[tuple[str, int, int]]:
    """The stages in a state's record."""
    return [(stage.kind, stage.begin, stage.end) for stage in stages]
