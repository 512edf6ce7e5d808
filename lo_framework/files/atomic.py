"""Whole-file writes: a reader, now or after a crash, finds the old file or the new one, never a
part of one.

The bytes go to a temporary file in the same folder, reach the disk (fsync), and then take the place
of the old file in one step (`os.replace`). What a killed process leaves behind is a temporary,
which `clean_temporaries` recognises by its name and by its writer being gone.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import secrets
import time
from pathlib import Path

from lo_framework.spec import UserError

# The token tells this process from an earlier one with the same number, as restarted containers
# have it.
_TOKEN = secrets.token_hex(4)
_serial = itertools.count()
_TEMPORARY = re.compile(r"\..+\.(?P<pid>\d+)-(?P<token>[0-9a-f]{8})-\d+\.tmp", re.DOTALL)
_STALE_SECONDS = 24 * 3600.0


def atomic_write_bytes(path: str | os.PathLike[str], data: bytes, *, follow: bool = True) -> None:
    """Make `path` hold exactly `data`; its folder is created where it is missing.

    Args:
        follow: write to where a link at `path` points; else replace the link itself.

    Raises:
        UserError: the system refuses (full disk, no permission, a folder of that name). What was at
            `path` is then unchanged, and no temporary file stays behind.
    """
    target = Path(os.path.realpath(path) if follow else path)
    temporary = target.with_name(f".{target.name}.{os.getpid()}-{_TOKEN}-{next(_serial)}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except OSError as error:
        raise UserError(
            f"cannot write {str(path)!r}: {reason(error)}; what was there before is unchanged, "
            "free some space or name another place"
        ) from error
    finally:
        # Also after Ctrl-C; after a successful replace there is nothing of that name.
        with contextlib.suppress(OSError):
            temporary.unlink()
    _sync_folder(target.parent)


def atomic_write_text(path: str | os.PathLike[str], text: str) -> None:
    """`atomic_write_bytes` of `text` in UTF-8, line ends as they are."""
    atomic_write_bytes(path, text.encode("utf-8"))


def clean_temporaries(folder: str | os.PathLike[str]) -> list[Path]:
    """Remove the temporary files in `folder` whose writer is gone; returns what was removed.

    A temporary of a process that still runs is left alone until it is a day old. A missing folder,
    or one that may not be changed, is no error: the leftovers only waste space.
    """
    removed = []
    with contextlib.suppress(OSError):
        for entry in sorted(Path(folder).iterdir()):
            match = _TEMPORARY.fullmatch(entry.name)
            if match is None or _in_use(entry, int(match["pid"]), match["token"]):
                continue
            with contextlib.suppress(OSError):
                entry.unlink()
                removed.append(entry)
    return removed


def reason(error: OSError) -> str:
    """The system's own words for `error`, in one line."""
    return error.strerror or type(error).__name__


def _in_use(entry: Path, pid: int, token: str) -> bool:
    with contextlib.suppress(OSError):
        if time.time() - entry.stat().st_mtime > _STALE_SECONDS:
            return False
    if pid == os.getpid():
        return token == _TOKEN
    if os.name != "posix":
        return True  # signal 0 is not a harmless question there; age alone decides
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True  # it exists and belongs to someone else
    return True


def _sync_folder(folder: Path) -> None:
    """Make the new name itself durable, where the system can: not every one lets a folder be opened
    or synced.
    """
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
