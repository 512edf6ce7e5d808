"""Interleaved timing, and what every benchmark's file says about where its numbers come from.

On a machine that does other work too, two programs timed one after the other are not comparable.
Here every contender runs once a round and rounds are repeated; a ratio is taken within each round,
so that both sides saw the same neighbours.
"""

from __future__ import annotations

import json
import os
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from lo_framework.eval.running.provenance import provenance, version

PEERS = ("higher", "torchopt", "optree")


@dataclass
class Contender:
    """``run`` does ``steps`` inner steps (one task, one step each) with everything that belongs to
    them.
    """

    name: str
    run: Callable[[], Any]
    steps: int
    seconds: list[float] = field(default_factory=list)

    @property
    def best(self) -> float:
        """Steps per second of the fastest round."""
        return self.steps / min(self.seconds)

    @property
    def median(self) -> float:
        return self.steps / statistics.median(self.seconds)

    def ratio(self, peer: Contender) -> tuple[float, float]:
        """How many times as fast as ``peer``: of the best rounds, and the median over rounds of the
        round's ratio.
        """
        rounds = [(b / peer.steps) / (a / self.steps) for a, b in zip(self.seconds, peer.seconds)]
        return self.best / peer.best, statistics.median(rounds)


def interleave(contenders: Sequence[Contender], rounds: int, device: str = "cpu") -> None:
    """Run every contender once a round, after one run each to warm up."""
    for contender in contenders:
        contender.run()
    for _ in range(rounds):
        for contender in contenders:
            synchronize(device)
            start = time.perf_counter()
            contender.run()
            synchronize(device)
            contender.seconds.append(time.perf_counter() - start)


def synchronize(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def environment(module: str, device: str = "cpu") -> dict[str, Any]:
    """Command, versions, machine, and how busy it is."""
    gpu = device.startswith("cuda")
    command = ["python", "-m", module, *sys.argv[1:]]
    origin = provenance(command) | {"command": shlex.join(command)}
    origin["versions"] |= {name: version(name) for name in PEERS}
    return origin | {
        "device": torch.cuda.get_device_name() if gpu else "cpu",
        "threads": torch.get_num_threads(),
        "load_average": os.getloadavg(),
    }


def print_table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Aligned columns: text to the left, numbers to the right."""
    cells = [list(header), *([_text(x) for x in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    for row in cells:
        print(
            "  ".join(
                x.ljust(w) if i == 0 else x.rjust(w) for i, (x, w) in enumerate(zip(row, widths))
            ).rstrip()
        )
    print(flush=True)


def _text(x: Any) -> str:
    if isinstance(x, float):
        return f"{x:,.0f}" if abs(x) >= 100 else f"{x:.2f}"
    return str(x)


def save(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n")
    print(f"wrote {path}")
