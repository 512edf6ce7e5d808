"""The folder of a run: its settings, its resume states and the optimizer that it saves."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from lo_framework.files.atomic import atomic_write_text, clean_temporaries
from lo_framework.files.checkpoint import ResumeState, load_latest_state, save_state
from lo_framework.learned import load_optimizer, save_optimizer
from lo_framework.meta_train.config import RunConfig, difference
from lo_framework.meta_train.growth import Stage
from lo_framework.meta_train.state import RunState, Tensors, incumbent_of, pack
from lo_framework.spec import UserError


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

    def load(self) -> ResumeState | None:
        """The last state that is whole.

        Raises:
            UserError: it belongs to a run with other settings, or of another release.
        """
        saved = load_latest_state(self.out / "state")
        if saved is None:
            return None
        changed = difference(saved.meta["config"], self.config)
        if changed:
            raise UserError(
                f"--resume needs the settings of the run in {str(self.out)!r}: {changed}"
            )
        if saved.meta.get("stages") != self.plan:
            raise UserError(
                f"the run in {str(self.out)!r} was begun by another release, with other stages"
            )
        if saved.meta["torch"] != torch.__version__:
            raise UserError(
                f"--resume needs torch {saved.meta['torch']}, with which the run began; "
                f"this is {torch.__version__}"
            )
        return saved

    def save(self, run: RunState, shards: dict[int, Tensors], *, finished: bool) -> None:
        """A resume state; `save_optimizer` comes before the last one."""
        self.refuse_vanished()
        tensors, meta = pack(run, shards)
        meta |= {"config": asdict(self.config), "torch": torch.__version__, "stages": self.plan}
        save_state(self.out / "state", run.step, tensors, {**meta, "finished": finished})

    def save_optimizer(self, run: RunState) -> None:
        """The incumbent, and how it was trained and how well it did."""
        self.refuse_vanished()
        tensors, meta = pack(run, {})
        self._write_optimizer(tensors, meta, run.step)

    def restore_optimizer(self, saved: ResumeState) -> None:
        """Make a finished run's optimizer again from its state, where it was lost or damaged."""
        try:
            file = load_optimizer(self.optimizer)
        except UserError:
            self._write_optimizer(saved.tensors, saved.meta, saved.step)
            return
        theta = incumbent_of(saved.tensors, saved.meta).theta
        if file.tensors.keys() != theta.keys() or any(
            not torch.equal(x, theta[name]) for name, x in file.tensors.items()
        ):
            self._write_optimizer(saved.tensors, saved.meta, saved.step)

    def _write_optimizer(self, tensors: Tensors, meta: dict[str, Any], step: int) -> None:
        best = incumbent_of(tensors, meta)
        summary = {
            "score": best.score,
            "found_at_step": best.step,
            "steps": step,
            "reference_lr": meta["start_lr"],
            "quality": best.quality,
            "reference": meta["reference"],
            "repeatable": meta["repeatable"],
            "run": asdict(self.config),
            "torch": torch.__version__,
        }
        kind, config = best.kind, best.config
        save_optimizer(self.optimizer, best.theta, kind=kind, config=config, summary=summary)


def plan_of(stages: Sequence[Stage]) -> list[list[Any]]:
    """The stages in a state's record."""
    return [[stage.kind, stage.begin, stage.end] for stage in stages]
