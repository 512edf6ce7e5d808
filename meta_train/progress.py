"""What a run shows while it goes: a progress bar or plain lines, TensorBoard curves, ``metrics.jsonl``."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from lo_framework.files.jsonl import truncate_jsonl


class Progress:
    """Writes every outer step to all three. ``start``: the outer steps already done (a resumed run)."""

    def __init__(self, out: Path, total: int, start: int, quiet: bool = False) -> None:
        from torch.utils.tensorboard import SummaryWriter
        from tqdm import tqdm

        out.mkdir(parents=True, exist_ok=True)
        truncate_jsonl(out / "metrics.jsonl", start)
        self.log = (out / "metrics.jsonl").open("a", encoding="utf-8")
        self.board = SummaryWriter(str(out / "tensorboard"), purge_step=start + 1 if start else None)
        self.terminal = sys.stderr.isatty() and not quiet
        self.quiet = quiet
        self.bar = tqdm(total=total, initial=start, unit="step", disable=not self.terminal, dynamic_ncols=True)
        self.total, self.first = total, start
        self.begun = self.told = time.monotonic()

    def say(self, line: str) -> None:
        """A line for the person, above the bar."""
        if not self.quiet:
            self.bar.write(line, file=sys.stderr) if self.terminal else print(line, file=sys.stderr, flush=True)

    def step(self, record: dict[str, Any], curves: dict[str, float]) -> None:
        """One outer step: a line of the log, the curves, the bar."""
        self.log.write(json.dumps(record) + "\n")
        self.log.flush()
        for name, value in curves.items():
            self.board.add_scalar(name, value, record["step"])
        self.bar.update()
        short = f"{record['kind']} meta-loss {record['meta_loss']:.4f}, {record['rate']:.0f} inner steps/s"
        if record.get("score") is not None:
            short += f", score {record['score']:.3f}"
        self.bar.set_postfix_str(short)
        now = time.monotonic()
        if not self.terminal and (now - self.told > 10 or record["step"] == self.total):
            done = record["step"] - self.first
            left = (now - self.begun) / max(done, 1) * (self.total - record["step"])
            self.say(f"step {record['step']}/{self.total}: {short}, {left:.0f} s left")
            self.told = now

    def close(self) -> None:
        self.bar.close()
        self.board.close()
        self.log.close()
