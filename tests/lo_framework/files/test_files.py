"""Atomic writes, leftovers of killed processes, and metric logs cut back to a step."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lo_framework.files import atomic
from lo_framework.files.atomic import atomic_write_bytes, atomic_write_text
from lo_framework.files.jsonl import truncate_jsonl
from lo_framework.spec import UserError


def test_write_replaces_and_creates_folders(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "report.json"
    atomic_write_text(path, "ä\n")
    atomic_write_bytes(str(path), b"second")
    assert path.read_bytes() == b"second"
    assert [entry.name for entry in path.parent.iterdir()] == ["report.json"]


def test_text_is_utf8_with_line_ends_as_they_are(tmp_path: Path) -> None:
    atomic_write_text(tmp_path / "x", "ä\r\nb\n")
    assert (tmp_path / "x").read_bytes() == "ä\r\nb\n".encode()


def test_mode_is_that_of_an_ordinary_new_file(tmp_path: Path) -> None:
    (tmp_path / "ordinary").write_text("")
    atomic_write_text(tmp_path / "x", "")
    assert (tmp_path / "x").stat().st_mode == (tmp_path / "ordinary").stat().st_mode


def test_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real" / "file")
    atomic_write_text(tmp_path / "link", "x")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real" / "file").read_text() == "x"


def test_refusals_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old")
    for path in (tmp_path, tmp_path / "file" / "below", tmp_path / ("n" * 250)):
        with pytest.raises(UserError, match=r"cannot write .*unchanged") as caught:
            atomic_write_text(path, "new")
        assert "\n" not in str(caught.value)
    assert (tmp_path / "file").read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def leftover(folder: Path, pid: int, token: str = "0123abcd") -> Path:
    path = folder / f".state-0000000001.safetensors.{pid}-{token}-0.tmp"
    path.write_bytes(b"part")
    return path


def test_leftovers(tmp_path: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    dead = leftover(tmp_path, gone.pid)
    earlier_self = leftover(tmp_path, os.getpid())
    impossible = leftover(tmp_path, 1 << 70)
    mine = leftover(tmp_path, os.getpid(), atomic._TOKEN)
    alive = leftover(tmp_path, os.getppid())
    stranger = tmp_path / ".notes.tmp"
    stranger.write_text("")
    assert set(atomic.clean_temporaries(tmp_path)) == {dead, earlier_self, impossible}
    assert set(tmp_path.iterdir()) == {mine, alive, stranger}
    two_days_ago = time.time() - 2 * 86400
    os.utime(alive, (two_days_ago, two_days_ago))
    assert atomic.clean_temporaries(tmp_path) == [alive]
    assert atomic.clean_temporaries(tmp_path / "missing") == []


LOG = b'{"step": 0, "loss": 1.0}\n{"note": "no step"}\n{"step": 5, "loss": NaN}\n{"step": 10}\n'


@pytest.mark.parametrize(
    "before, keep, after",
    [
        (LOG, 10, LOG),
        (LOG, 5, LOG[: LOG.index(b'{"step": 10')]),
        (LOG, -1, b'{"note": "no step"}\n'),
        (LOG + b'{"step": 11, "lo', 99, LOG),
        (LOG + b'{"step": 1', 99, LOG),
        (LOG + bytes(7), 99, LOG),
        (LOG + b"torn\n", 99, LOG),
        (LOG + b"12", 99, LOG),
        (LOG[:-1], 99, LOG),
        (b"", 3, b""),
        (b"{", 3, b""),
    ],
)
def test_truncate_jsonl(tmp_path: Path, before: bytes, keep: int, after: bytes) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(before)
    assert truncate_jsonl(path, keep) == after.count(b"\n")
    assert path.read_bytes() == after
    assert [entry.name for entry in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_truncate_jsonl_leaves_an_unchanged_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(LOG)
    before = path.stat()
    truncate_jsonl(path, 10)
    assert path.stat().st_ino == before.st_ino and path.stat().st_mtime_ns == before.st_mtime_ns


def test_truncate_jsonl_refusals(tmp_path: Path) -> None:
    assert truncate_jsonl(tmp_path / "none", 3) == 0
    assert not (tmp_path / "none").exists()
    with pytest.raises(UserError, match="cannot read"):
        truncate_jsonl(tmp_path, 3)
    path = tmp_path / "other.txt"
    path.write_bytes(b"hello\n" + LOG)
    with pytest.raises(UserError, match=r"line 1 of .* is not a JSON object"):
        truncate_jsonl(path, 3)
    assert path.read_bytes() == b"hello\n" + LOG
