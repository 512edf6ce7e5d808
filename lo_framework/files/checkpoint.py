"""Resume states: what a run leaves on disk to be continued exactly.

They are sealed files (`lo_framework.files.sealed`), verified before anything is used; all writes
are atomic.
"""

from __future__ import annotations

import contextlib
import os
import re
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from torch import Tensor

from lo_framework.errors import UserError
from lo_framework.files.atomic import atomic_write_bytes, clean_temporaries, reason
from lo_framework.files.sealed import Record, read_sealed, seal

KEPT_STATES = 2
_STATE_NAME = re.compile(r"state-(\d{10,18})\.safetensors")
_MAX_STATE_BYTES = 1 << 40
_A_STATE = "a resume state"


@dataclass(frozen=True, kw_only=True)
class _StateRecord(Record):
    content: Literal["state"]
    step: int
    meta: dict[str, Any]


class ResumeState(NamedTuple):
    """A state to continue from: `tensors` on the CPU, `meta` as in JSON (tuples are lists).

    `warning` is one line for the person when a newer state was damaged and this is the one before
    it, else ``""``.
    """

    step: int
    tensors: dict[str, Tensor]
    meta: dict[str, Any]
    warning: str


def save_state(
    directory: str | os.PathLike[str], step: int, tensors: dict[str, Tensor], meta: dict[str, Any]
) -> Path:
    """Save where a run stands after `step`, atomically; of all states of the folder the last two
    are kept.

    States with a later step are removed: they belong to a continuation that this run has replaced.

    Args:
        step: finished outer steps, >= 0; it names the file.
        tensors: any dtype and shape (RNG states as uint8, counters 0-d), non-finite numbers too.
        meta: JSON values with string keys, and tuples, which come back as lists.

    Returns:
        The path of the new state.

    Raises:
        UserError: the system refuses, for example a full disk; the states that were there stay as
            they were.
        TypeError: a value that JSON or safetensors cannot hold.
    """
    if step < 0:
        raise ValueError(f"step must be >= 0, got {step}")
    return _write(directory, step, sealed_state(step, tensors, meta))


def sealed_state(step: int, tensors: dict[str, Tensor], meta: dict[str, Any]) -> bytes:
    """The bytes of a state's file."""
    return seal(tensors, {"content": "state", "step": step, "meta": meta})


def load_state(path: Path) -> ResumeState | None:
    """The state in one file; None where there is none. Raises UserError where it is damaged."""
    if not path.exists():
        return None
    tensors, record = read_sealed(path, _A_STATE, _MAX_STATE_BYTES, _StateRecord)
    return ResumeState(record.step, tensors, record.meta, "")


def _write(directory: str | os.PathLike[str], step: int, text: bytes) -> Path:
    clean_temporaries(directory)
    path = Path(directory) / f"state-{step:010d}.safetensors"
    atomic_write_bytes(path, text)
    known = _states(directory)
    kept = [state for state in known if state[0] <= step][:KEPT_STATES]
    for state in known:
        if state not in kept:
            with contextlib.suppress(OSError):  # too many states is no reason to stop a run
                state[1].unlink()
    return path


class StateWriter:
    """Writes states while the run goes on, one after the other. What the disk refuses is said by
    the next call.
    """

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def save(
        self, directory: Path, step: int, tensors: dict[str, Tensor], meta: dict[str, Any]
    ) -> int:
        """`save_state` of values as they are now; returns the bytes."""
        self.wait()
        text = sealed_state(step, tensors, meta)

        def write() -> None:
            try:
                _write(directory, step, text)
            except BaseException as error:
                self._error = error

        self._thread = threading.Thread(target=write)  # no daemon: it is finished before the end
        self._thread.start()
        return len(text)

    def wait(self) -> None:
        """Until the last one is on the disk. Raises what `save_state` does."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error


def load_latest_state(directory: str | os.PathLike[str]) -> ResumeState | None:
    """The newest state in `directory` that is whole, or None where there is no state at all.

    Temporary files of a killed process are removed. A damaged newest state is left where it is, the
    one before it is used, and `ResumeState.warning` says so.

    Raises:
        UserError: there are states and none of them can be read, or the folder cannot be.
    """
    clean_temporaries(directory)
    problems: list[str] = []
    for step, path in _states(directory):
        name = repr(os.fspath(path))
        try:
            tensors, record = read_sealed(path, _A_STATE, _MAX_STATE_BYTES, _StateRecord)
            if record.step != step:
                raise UserError(
                    f"{name} holds step {record.step}, not the step of its name: it was renamed"
                )
        except UserError as error:
            problems.append(str(error))
            continue
        warning = f"{'; '.join(problems)}; continuing from step {step} instead" if problems else ""
        return ResumeState(step, tensors, record.meta, warning)
    if problems:
        raise UserError(
            f"no state in {os.fspath(directory)!r} can be resumed: {'; '.join(problems)}"
        )
    return None


def _states(directory: str | os.PathLike[str]) -> list[tuple[int, Path]]:
    """(step, path) of every state file, newest first."""
    try:
        entries = list(Path(directory).iterdir())
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UserError(
            f"cannot read {os.fspath(directory)!r}: {reason(error)}; expected a folder"
        ) from error
    matches = ((_STATE_NAME.fullmatch(entry.name), entry) for entry in entries)
    return sorted(((int(match[1]), entry) for match, entry in matches if match), reverse=True)
