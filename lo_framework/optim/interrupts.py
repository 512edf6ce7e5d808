"""Interrupts (Ctrl-C, the stop button of a notebook) that wait for the end of a step.

Python raises ``KeyboardInterrupt`` between any two lines. In the midst of an update that would
leave state half made, or weights where only a regularizer wants them; and people who interrupt a
cell go on with the same objects in the next one.
"""

from __future__ import annotations

import importlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# The functions under those of `signal`, which make enums of all that they get and give: a tenth of
# the time. `python -m timeit -s "from lo_framework.optim.interrupts import Held" "with Held(): 1"`
_signal: Any = importlib.import_module("_signal")
SIGINT: int = _signal.SIGINT


class Held:
    """A block that no interrupt cuts in two: one that arrives is raised at its end.

    Handlers run in the main thread alone, so that elsewhere there is nothing to hold. Blocks may be
    nested: the outermost one raises.
    """

    _arrived: tuple[Any, ...] | None = None
    _usual: Any = None  # the handler, while interrupts are held

    def __enter__(self) -> Held:
        if threading.current_thread() is threading.main_thread():
            usual = _signal.getsignal(SIGINT)
            if callable(usual):  # neither ignored nor the end of the process
                self._usual = usual
                _signal.signal(SIGINT, self._remember)
        return self

    def __exit__(self, *_: object) -> None:
        usual, self._usual = self._usual, None
        if usual is not None:
            _signal.signal(SIGINT, usual)
            if self._arrived is not None:
                usual(*self._arrived)

    @contextmanager
    def released(self) -> Iterator[None]:
        """Inside of the block, the user's own code, which may take long: not held."""
        if self._usual is None:
            yield
            return
        _signal.signal(SIGINT, self._usual)
        try:
            arrived, self._arrived = self._arrived, None
            if arrived is not None:
                self._usual(*arrived)
            yield
        finally:
            _signal.signal(SIGINT, self._remember)

    def _remember(self, *arrived: Any) -> None:
        self._arrived = arrived
