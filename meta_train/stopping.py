"""SIGINT and SIGTERM end a run between two outer steps, with a resume state; a second one ends it
at once.
"""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lo_framework.commandline import Stopped

ENDING = (signal.SIGINT, signal.SIGTERM)
# Seconds until another signal is a second one: `timeout` and schedulers send theirs to the process
# and to its group.
AGAIN = 1.0


class Signals:
    """What a person or a scheduler asks of the program; ``number`` is 0 until one does."""

    def __init__(self) -> None:
        self.number = 0
        self._patient = False
        self._came = 0.0

    @contextmanager
    def heard(self) -> Iterator[None]:
        """Have `Stopped` raised by a signal, in place of what Python does.

        A signal that the program was started without (as ``nohup`` and shells do for jobs in the
        background), and every one in a thread, is left alone.
        """
        before: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            usual = (signal.default_int_handler, signal.SIG_DFL)
            before = {n: x for n in ENDING if (x := signal.getsignal(n)) in usual}
        for number in before:
            signal.signal(number, self._come)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Only note the first signal: whoever runs looks at ``number`` when it can stop."""
        self._patient = True
        try:
            yield
        finally:
            self._patient = False

    def _come(self, number: int, _: Any) -> None:
        now = time.monotonic()
        if self._patient and self.number and now - self._came < AGAIN:
            return
        if not self._patient or self.number:
            raise Stopped(number)
        self.number, self._came = number, now
        line = "stopping after this step, with a resume state; once more stops at once"
        print(line, file=sys.stderr, flush=True)
