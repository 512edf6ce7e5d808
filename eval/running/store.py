"""Finished cells on disk, one small JSON file each, so that a killed evaluation continues where it
was.

The folder also holds the plan: everything that decides the numbers (settings, digests of the
optimizer files, of the data and of the code, versions). Cells are used again only under the same
plan.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lo_framework.eval.running.cells import Found, Measured
from lo_framework.eval.running.envelope import plain
from lo_framework.files.atomic import atomic_write_text, clean_temporaries, reason
from lo_framework.schema import convert, read_json
from lo_framework.spec import UserError

PLAN = "plan.json"
Plan = dict[str, Any]


class CellStore:
    """What cells gave, in ``folder``, so that none of them is computed again.

    Args:
        plan: JSON values that decide the numbers.
        identities: name of a task or an optimizer -> JSON values that decide the numbers of its
            cells beside the name.
        fresh: forget what an earlier run left.

    Raises:
        UserError: the folder holds cells of another plan, or cannot be used.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        plan: Plan,
        *,
        identities: Mapping[str, Any] | None = None,
        fresh: bool = False,
    ) -> None:
        self.folder = Path(folder)
        self.identities = identities or {}
        self.reused = 0
        plan = json.loads(json.dumps(plan, allow_nan=False))  # as it reads back: tuples are lists
        before = self._plan()
        if before is not None and before != plan and not fresh:
            there, here = _difference(before, plan)
            raise UserError(
                f"{str(self.folder)!r} holds cells of an evaluation with {there}, "
                f"and this one has {here}; "
                "give another --out, or --fresh to begin again"
            )
        if before != plan or fresh:
            self._clear()
            atomic_write_text(self.folder / PLAN, json.dumps(plan, indent=1) + "\n")
        clean_temporaries(self.folder)

    def get(self, cell: Any) -> Measured | Found | None:
        """The outcome of the cell in an earlier run; a file that holds no such counts as none."""
        damage = (OSError, ValueError, KeyError, TypeError, AttributeError, UserError)
        with contextlib.suppress(*damage):
            text = self._path(cell).read_text("utf-8")
            outcome = _decode(read_json(text, dict[str, Any], "a finished cell"))
            self.reused += 1
            return outcome
        return None

    def put(self, cell: Any, outcome: Measured | Found) -> None:
        atomic_write_text(self._path(cell), json.dumps(_encode(outcome), allow_nan=False) + "\n")

    def _path(self, cell: Any) -> Path:
        names = [self.identities.get(name) for name in (cell.task, cell.optimizer)]
        text = json.dumps([type(cell).__name__, _plain(cell), names], sort_keys=True)
        return self.folder / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.json"

    def _plan(self) -> Plan | None:
        try:
            plan = json.loads((self.folder / PLAN).read_text("utf-8"))
        except FileNotFoundError:
            return None
        except OSError as error:
            raise UserError(f"cannot read {str(self.folder / PLAN)!r}: {reason(error)}") from None
        except ValueError:
            return None  # damaged: its cells are of no known plan
        return plan if isinstance(plan, dict) else None

    def _clear(self) -> None:
        for path in self.folder.glob("*.json") if self.folder.is_dir() else ():
            path.unlink()


def digest(*parts: bytes) -> str:
    """A short name of some bytes."""
    total = hashlib.sha256()
    for part in parts:
        total.update(hashlib.sha256(part).digest())
    return total.hexdigest()[:16]


def _difference(before: Plan, now: Plan) -> tuple[str, str]:
    """The first setting that differs, there and here: ``("steps 200", "steps 100")``."""
    there, here = _flat(before), _flat(now)
    key = next(key for key in [*here, *there] if there.get(key) != here.get(key))
    return f"{key} {_word(there.get(key))}", f"{key} {_word(here.get(key))}"


def _flat(plan: Plan) -> Plan:
    """The plan with the settings of each of its parts by ``"part setting"``."""
    parts = {key: x if isinstance(x, dict) else {"": x} for key, x in plan.items()}
    return {f"{key} {name}".rstrip(): x for key, part in parts.items() for name, x in part.items()}


def _word(value: Any) -> str:
    if isinstance(value, list):
        return ",".join(map(str, value)) or "none"
    return "none" if value is None else str(value)


def _encode(outcome: Measured | Found) -> dict[str, Any]:
    if isinstance(outcome, Found):
        return {"kind": "found", "data": outcome.data}
    # Nothing asks for the curves of tuning runs, which see no test data.
    curves = outcome.curves if "test_loss" in outcome.metrics else outcome.curves[..., :0]
    # Strict JSON has no infinity: numpy and `float` read the words back.
    return {"kind": "measured", **plain({**vars(outcome), "curves": curves}, beyond=str)}


def _decode(data: dict[str, Any]) -> Measured | Found:
    if data.pop("kind") == "found":
        return Found(data=convert(data["data"], dict[str, Any]))
    for key in ("metrics", "extra"):
        data[key] = {name: np.array(rows, np.float64) for name, rows in data[key].items()}
    data["diverged"] = np.array(data["diverged"], dtype=bool)
    shape = (*data["diverged"].shape, -1)
    data["curves"] = np.array(data["curves"], np.float32).reshape(shape)
    return Measured(**{**data, "seconds_per_step": float(data["seconds_per_step"])})


def _plain(value: Any) -> Any:
    """A cell as JSON values; arrays by their digest."""
    if isinstance(value, np.ndarray):
        return [str(value.dtype), list(value.shape), digest(np.ascontiguousarray(value).tobytes())]
    if is_dataclass(value) and not isinstance(value, type):
        return _plain(asdict(value))
    if isinstance(value, dict):
        return {str(key): _plain(x) for key, x in value.items()}
    return [_plain(x) for x in value] if isinstance(value, (list, tuple)) else value
