"""What a run leaves on disk: optimizer files, which people share, and resume states, which continue
a run exactly.

Both are sealed files (`lo_framework.files.sealed`): safetensors with a JSON record under a sha256
that is verified before anything is used; nothing is unpickled. All writes are atomic
(`lo_framework.files.atomic`).
"""

from __future__ import annotations

import contextlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lo_framework.files.atomic import (
    atomic_write_bytes,
    atomic_write_text,
    clean_temporaries,
    reason,
)
from lo_framework.files.jsonl import truncate_jsonl
from lo_framework.files.sealed import FORMAT_VERSION, read_sealed, seal
from lo_framework.learned.features import FEATURE_VERSION
from lo_framework.spec import UserError

__all__ = [
    "FEATURE_VERSION",
    "FORMAT_VERSION",
    "OptimizerFile",
    "ResumeState",
    "atomic_write_bytes",
    "atomic_write_text",
    "load_latest_state",
    "load_optimizer",
    "save_optimizer",
    "save_state",
    "truncate_jsonl",
]

KEPT_STATES = 2
_STATE_NAME = re.compile(r"state-(\d{10,18})\.safetensors")
_MAX_OPTIMIZER_BYTES = (
    1 << 30
)  # optimizers are kilobytes; this is the limit for a file of unknown origin
_MAX_STATE_BYTES = 1 << 40

_AN_OPTIMIZER = "an optimizer file, as meta-training saves it"
_A_STATE = "a resume state"


@dataclass(frozen=True, kw_only=True)
class OptimizerFile:
    """What an optimizer file holds.

    Attributes:
        kind: the registered name of the learned optimizer (``"attention-mlp"``).
        config: the fields of its config; sequences are tuples, as in the frozen dataclasses.
        tensors: its weights by parameter name, on the CPU.
        summary: how it was trained and how well it did; for people and reports, nothing depends on
            it.
        format_version, feature_version: as in the file; equal to this release's, else loading
            refuses.
    """

    kind: str
    config: dict[str, Any]
    tensors: dict[str, Tensor]
    summary: dict[str, Any]
    format_version: int
    feature_version: int


class ResumeState(NamedTuple):
    """Where a run continues: `tensors` on the CPU, `meta` as JSON gives it back (tuples are lists).

    `warning` is one line for the person when a newer state was damaged and this is the one before
    it, else ``""``.
    """

    step: int
    tensors: dict[str, Tensor]
    meta: dict[str, Any]
    warning: str


def save_optimizer(
    path: str | os.PathLike[str],
    tensors: dict[str, Tensor],
    *,
    kind: str,
    config: dict[str, Any],
    summary: dict[str, Any],
    feature_version: int = FEATURE_VERSION,
) -> None:
    """Save a learned optimizer, atomically; the same arguments always give the same bytes.

    Args:
        tensors: the weights by parameter name; finite, any shape and dtype.
        kind, config: what rebuilds it: ``make_learned(kind, **config)``. JSON values and tuples.
        summary: JSON values, free in form.

    Raises:
        UserError: a weight is NaN or infinite, or the system refuses the write; a file that was
            there stays as it was.
        TypeError: a value that JSON or safetensors cannot hold.
    """
    if bad := _non_finite(tensors):
        raise UserError(
            f"not saved to {os.fspath(path)!r}: {bad} holds NaN or infinite weights; expected finite weights, "
            "save an earlier, finite state of this optimizer"
        )
    record = {
        "content": "optimizer",
        "feature_version": feature_version,
        "kind": kind,
        "config": config,
        "summary": summary,
    }
    atomic_write_bytes(path, seal(tensors, record))


def load_optimizer(path: str | os.PathLike[str], *, kind: str | None = None) -> OptimizerFile:
    """Read an optimizer file; every bit of it is verified first.

    Args:
        kind: the only kind that is acceptable, where there is one.

    Raises:
        UserError: the file is missing, not a file, no optimizer file, truncated, damaged, of
            another format or feature version, of another kind than `kind`, or holds weights that
            are not finite.
    """
    name = repr(os.fspath(path))
    tensors, record = read_sealed(path, _AN_OPTIMIZER, _MAX_OPTIMIZER_BYTES)
    fields = _fields(
        record,
        name,
        "optimizer",
        _AN_OPTIMIZER,
        kind=str,
        config=dict,
        summary=dict,
        feature_version=int,
    )
    if fields["feature_version"] != FEATURE_VERSION:  # no error would follow, only wrong updates
        raise UserError(
            f"{name} reads features of version {fields['feature_version']}, and this lo_framework computes version "
            f"{FEATURE_VERSION}: its weights would mean something else; use the release that trained it"
        )
    if kind is not None and fields["kind"] != kind:
        raise UserError(
            f'{name} holds an optimizer of kind "{fields["kind"]}": expected kind "{kind}"'
        )
    if bad := _non_finite(tensors):
        raise UserError(
            f"{name}: {bad} holds NaN or infinite weights; expected an optimizer with finite weights"
        )
    return OptimizerFile(
        kind=fields["kind"],
        config={key: _frozen(value) for key, value in fields["config"].items()},
        tensors=tensors,
        summary=fields["summary"],
        format_version=FORMAT_VERSION,
        feature_version=fields["feature_version"],
    )


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
    clean_temporaries(directory)
    path = Path(directory) / f"state-{step:010d}.safetensors"
    atomic_write_bytes(path, seal(tensors, {"content": "state", "step": step, "meta": meta}))
    known = _states(directory)
    kept = [state for state in known if state[0] <= step][:KEPT_STATES]
    for state in known:
        if state not in kept:
            with contextlib.suppress(OSError):  # too many states is no reason to stop a run
                state[1].unlink()
    return path


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
            tensors, record = read_sealed(path, _A_STATE, _MAX_STATE_BYTES)
            fields = _fields(record, name, "state", _A_STATE, step=int, meta=dict)
            if fields["step"] != step:
                raise UserError(
                    f"{name} holds step {fields['step']}, not the step of its name: it was renamed"
                )
        except UserError as error:
            problems.append(str(error))
            continue
        warning = f"{'; '.join(problems)}; continuing from step {step} instead" if problems else ""
        return ResumeState(step, tensors, fields["meta"], warning)
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


def _fields(
    record: dict[str, Any], name: str, content: str, expected: str, **types: type
) -> dict[str, Any]:
    """The named fields of `record` with the wanted types, or a UserError."""
    if record.get("content") != content:
        raise UserError(
            f"{name} holds {record.get('content')!r:.40}, not {content!r}: expected {expected}"
        )
    for key, wanted in types.items():
        if not isinstance(record.get(key), wanted) or isinstance(record[key], bool):
            raise UserError(f'{name} has no valid "{key}" in its record: expected {expected}')
    return {key: record[key] for key in types}


def _non_finite(tensors: dict[str, Tensor]) -> str:
    """The name, in quotes, of the first tensor with a NaN or an infinity, or an empty string."""
    for name, tensor in tensors.items():
        if tensor.is_complex() or tensor.is_floating_point():
            wide = tensor if tensor.is_complex() else tensor.double()  # float8 has no isfinite
            if not bool(torch.isfinite(wide).all()):
                return f'"{name}"'
    return ""


def _frozen(value: Any) -> Any:
    return tuple(_frozen(item) for item in value) if isinstance(value, list) else value
