"""Metric logs, one JSON object per line: cut back to the step that a resumed run starts from."""

from __future__ import annotations

import json
import os
from pathlib import Path

from lo_framework.files.atomic import atomic_write_bytes, reason
from lo_framework.spec import UserError


def truncate_jsonl(path: str | os.PathLike[str], keep_steps: int) -> int:
    """Keep the lines of `path` whose ``"step"`` is at most `keep_steps`, and lines without one;
    returns how many.

    The lines after a resume point would otherwise stand there twice. A last line that a crash tore
    is dropped; a complete one that lacks only its line end gets it. The file is rewritten
    atomically, and only if something changes; a missing file counts as empty. Call this before the
    log is opened for appending: the old file is replaced.

    Raises:
        UserError: a line before the last one is no JSON object (then it is no log of ours), or the
            system refuses.
    """
    try:
        before = Path(path).read_bytes()
    except FileNotFoundError:
        return 0
    except OSError as error:
        raise UserError(
            f"cannot read {str(path)!r}: {reason(error)}; expected a metrics log"
        ) from error
    lines = before.split(b"\n")
    if not lines[-1]:
        lines.pop()
    kept = []
    for number, line in enumerate(lines, start=1):
        row = _row(line)
        if row is None:
            if number == len(lines):
                break
            raise UserError(
                f"line {number} of {str(path)!r} is not a JSON object; expected a "
                "metrics log, move this file away"
            )
        step = row.get("step")
        if not isinstance(step, (int, float)) or step <= keep_steps:
            kept.append(line)
    after = b"".join(line + b"\n" for line in kept)
    if after != before:
        atomic_write_bytes(path, after)
    return len(kept)


def _row(line: bytes) -> dict | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None
