"""TensorBoard curves, written step by step.

The writer that comes with torch has a thread of its own: it loses up to two minutes of curves when
a run is killed, and on a full disk the thread prints a traceback that nothing can catch. This one
writes an event and is done.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from lo_framework.optional import require


class Curves:
    """A new event file in ``folder``; TensorBoard forgets what older ones there say about steps
    from ``begin`` on.

    Raises:
        OSError: the folder or the file cannot be written; also from :meth:`add`.
    """

    def __init__(self, folder: Path, begin: int) -> None:
        require("tensorboard")
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event: Any = event_pb2.Event
        self._summary: Any = summary_pb2.Summary
        self._file = _new_file(folder)
        self._records = RecordWriter(self._file)
        restart = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._write(self._event(file_version="brain.Event:2"))
        self._write(self._event(step=begin, session_log=restart))

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """One point of every curve, by tag."""
        points = [self._summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
        self._write(self._event(step=step, summary=self._summary(value=points)))

    def close(self) -> None:
        self._file.close()

    def _write(self, event: Any) -> None:
        event.wall_time = time.time()
        self._records.write(event.SerializeToString())
        self._file.flush()  # what is added is in the file, also when the process is killed


def _new_file(folder: Path) -> BinaryIO:
    folder.mkdir(parents=True, exist_ok=True)
    for number in itertools.count():
        name = f"events.out.tfevents.{int(time.time()):010d}.{os.getpid()}.{number}"
        try:
            return (folder / name).open("xb")
        except FileExistsError:
            continue
    raise AssertionError
