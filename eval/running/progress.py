"""How far a long evaluation is: a bar on a terminal, a plain line every ten seconds elsewhere, on
stderr.
"""

from __future__ import annotations

import sys
import time
from typing import Any, Literal, TextIO

from lo_framework.optional import require

Mode = Literal["auto", "bar", "plain", "none"]
SECONDS = 10.0


class Progress:
    """Counts task-steps: `begin` with a first guess at their number; `expect` says what is really
    coming.

    Grids may be extended and settings may coincide, so the total becomes exact only as the run goes
    on.
    """

    def __init__(
        self, *, mode: Mode = "auto", title: str = "", stream: TextIO | None = None
    ) -> None:
        self.stream = stream or sys.stderr
        self.mode = mode if mode != "auto" else "bar" if self.stream.isatty() else "plain"
        self.title = title
        self.estimate = self.expected = self.done = 0
        self.started = self.told = time.monotonic()
        self.bar: Any = None

    @property
    def total(self) -> int:
        return max(self.estimate, self.expected, self.done)

    def begin(self, estimate: int) -> None:
        """The work starts, about that many task-steps of it."""
        self.estimate = estimate
        self.started = self.told = time.monotonic()
        if self.mode == "bar":
            require("tqdm")
            from tqdm import tqdm

            look = dict(unit="step", unit_scale=True, dynamic_ncols=True, leave=False)
            self.bar = tqdm(total=estimate, desc=self.title, file=self.stream, **look)

    def expect(self, work: int) -> None:
        """That many more task-steps are certain."""
        self.expected += work
        if self.bar is not None:
            self.bar.total = self.total

    def advance(self, work: int) -> None:
        """That many task-steps are done."""
        self.done += work
        if self.bar is not None:
            self.bar.update(work)
        elif self.mode == "plain" and time.monotonic() - self.told >= SECONDS:
            self.told = time.monotonic()
            print(self.line(), file=self.stream, flush=True)

    def line(self) -> str:
        """``transfer: 34%, 12300 of 36000 steps, 410/s, about 58 s left``; the last part once it
        means something.
        """
        rate = self.done / max(time.monotonic() - self.started, 1e-9)
        percent = 100 * self.done // max(self.total, 1)
        line = f"{self.title}: {percent}%, {self.done} of {self.total} steps, {rate:.0f}/s"
        return line + (
            f", about {(self.total - self.done) / rate:.0f} s left" if percent >= 1 else ""
        )

    def close(self) -> None:
        """Remove the bar."""
        if self.bar is not None:
            self.bar.close()
