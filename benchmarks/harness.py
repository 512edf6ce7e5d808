"""Interleaved timing, and what every benchmark's file says about where its numbers come from.

On a machine that does other work too, two programs timed one after the other are not comparable.
Here every contender runs once a round and rounds are repeated; a ratio is taken within each round,
so that both sides saw the same neighbours.
"""

from __future__ import annotations

import argparse
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

from lo_framework.eval.report.table import Table
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


def parser(text: str | None, rounds: bool = True) -> argparse.ArgumentParser:
    """The options that every benchmark has, and ``--rounds`` where it has rounds."""
    out = argparse.ArgumentParser(
        description=text, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    out.add_argument("--quick", action="store_true", help="few rounds, small sizes")
    if rounds:
        out.add_argument("--rounds", type=int, default=0)
    out.add_argument("--out", type=Path, default=Path("results"))
    return out


def print_table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Print aligned columns, fractions to two digits."""
    table = Table(*header)
    for row in rows:
        table.add(
            *(f"{x:,.{0 if abs(x) >= 100 else 2}f}" if isinstance(x, float) else x for x in row)
        )
    print(table, end="\n\n", flush=True)


def save(name: str, args: argparse.Namespace, content: dict[str, Any], **panels: Any) -> None:
    """Write ``content`` as JSON and its ``panels`` as a picture, under the name of the benchmark.

    A panel's title stands for the options of matplotlib's axes, and for ``bars``, label -> length,
    or ``lines``, label -> points, on logarithmic axes.
    """
    content["load_average_after"] = os.getloadavg()
    gpu = "_cuda" if getattr(args, "device", "").startswith("cuda") else ""
    path = args.out / (name + gpu + ("_quick" if args.quick else ""))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".json").write_text(json.dumps(content, indent=1) + "\n")
    if panels:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(5 * len(panels), 4.4), layout="constrained")
        grid = figure.subplots(1, len(panels), squeeze=False)[0]
        for axes, (title, panel) in zip(grid, panels.items()):
            for label, points in panel.pop("lines", {}).items():
                axes.loglog(*zip(*points), marker="o", label=label)
            if bars := panel.pop("bars", {}):
                axes.barh([*bars], [*bars.values()])
                axes.invert_yaxis()
            else:
                axes.legend(fontsize=7)
            axes.set(title=title.replace("_", " "), **panel)
        figure.savefig(path.with_suffix(".png"), dpi=110)
    print(f"wrote {path}.json")
