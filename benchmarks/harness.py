"""The frame of every benchmark: options, interleaved timing, and a file that says where its numbers
come from.

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
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from lo_framework.absorb.absorption import make_absorption
from lo_framework.estimators import Truncation, make_estimator
from lo_framework.eval.report.table import Table
from lo_framework.eval.running.provenance import provenance, version
from lo_framework.inner.step import Family
from lo_framework.learned import make_learned
from lo_framework.learned.base import Theta
from lo_framework.malloc import keep_freed_memory
from lo_framework.objectives import make_objective
from lo_framework.optimizees.pool import make_tasks

PEERS = ("higher", "torchopt", "optree")
FOREVER = 10**6


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

    def speeds(self) -> dict[str, float]:
        return {"best": self.best, "median": self.median}

    def ratio(self, peer: Contender) -> tuple[float, float]:
        """How many times as fast as ``peer``: of the best rounds, and the median over rounds of the
        round's ratio.
        """
        rounds = [(b / peer.steps) / (a / self.steps) for a, b in zip(self.seconds, peer.seconds)]
        return self.best / peer.best, statistics.median(rounds)


class Estimation:
    """A meta-gradient over ``steps`` inner steps, from the same start at every call."""

    def __init__(
        self,
        spec: str,
        steps: int,
        tasks: int,
        optimizee: str,
        learned: str,
        engine: str,
        objective: str = "train",
        regularizer: str = "none",
        absorb: str = "",
        device: str = "cpu",
    ) -> None:
        self.task: Any = make_tasks(optimizee, "digits", device=device)[0]
        rule = make_learned(learned).to(device)
        absorption = None if regularizer == "none" else make_absorption(regularizer, absorb)
        family = Family(self.task, rule, engine, absorption)
        clock = Truncation(unroll_length=steps, episode=(FOREVER, FOREVER))
        self.estimator = make_estimator(spec, family, make_objective(objective), clock, tasks)
        self.theta: Theta = {name: x.to(device) for name, x in rule.theta().items()}
        state = self.estimator.init_state(self.theta, torch.Generator().manual_seed(0))
        self.state = replace(state, stop=state.horizon.clone())
        self.shapes = [slot.shape for slot in family.layout.slots]

    def __call__(self) -> Theta:
        return self.estimator.estimate(self.theta, self.state)[0].grad


def interleave(contenders: Sequence[Contender], rounds: int, device: str = "cpu") -> None:
    """Run every contender once a round, after one run each to warm up."""
    wait = torch.cuda.synchronize if device.startswith("cuda") else lambda: None
    for contender in contenders:
        contender.run()
    for _ in range(rounds):
        for contender in contenders:
            wait()
            start = time.perf_counter()
            contender.run()
            wait()
            contender.seconds.append(time.perf_counter() - start)


def begin(
    name: str, text: str | None, argv: Sequence[str] | None, **defaults: Any
) -> tuple[argparse.Namespace, dict[str, Any]]:
    """The options of a benchmark, and what its file says of the command, versions and machine.

    ``defaults`` are its own options; a pair is the default with ``--quick`` and without, None must
    be given.
    """
    keep_freed_memory()  # as the programs do
    parser = argparse.ArgumentParser(
        description=text, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.set_defaults(name=name, device="cpu", error=parser.error)
    parser.add_argument("--quick", action="store_true", help="few rounds, small sizes")
    parser.add_argument("--out", type=Path, default=Path("results"))
    for option, default in defaults.items():
        flag = f"--{option.replace('_', '-')}"
        if isinstance(default, bool):
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=default)
            continue
        first = default[0] if isinstance(default, tuple) else default
        kind = str if first is None else type(first)
        parser.add_argument(flag, type=kind, default=default, required=first is None)
    args = parser.parse_args(argv)
    for option, value in vars(args).items():
        if isinstance(value, tuple):
            setattr(args, option, value[not args.quick])
    torch.set_num_threads(1)
    command = ["python", "-m", f"benchmarks.{name}", *sys.argv[1:]]
    content = provenance(command) | {
        "command": shlex.join(command),
        "device": torch.cuda.get_device_name() if on_gpu(args) else "cpu",
        "threads": torch.get_num_threads(),
        "load_average": os.getloadavg(),
    }
    content["versions"] |= {name: version(name) for name in PEERS}
    return args, content


def on_gpu(args: argparse.Namespace) -> bool:
    return args.device.startswith("cuda")


def within(label: str, value: float, bound: float) -> bool:
    """Whether a required bound is kept; printed too."""
    word = "fulfilled" if value <= bound else "NOT fulfilled"
    print(f"{label}: {value:.2f}, at most {bound:g}: {word}")
    return value <= bound


def print_table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Print aligned columns, fractions to two digits."""
    table = Table(*header)
    for row in rows:
        table.add(
            *(f"{x:,.{0 if abs(x) >= 100 else 2}f}" if isinstance(x, float) else x for x in row)
        )
    print(table, end="\n\n", flush=True)


def save(args: argparse.Namespace, content: dict[str, Any], **panels: Any) -> None:
    """Write ``content`` as JSON and its ``panels`` as a picture, under the name of the benchmark.

    A panel's title stands for the options of matplotlib's axes, and for ``bars``, label -> length,
    or ``lines``, label -> points, on logarithmic axes.
    """
    content["load_average_after"] = os.getloadavg()
    path = args.out / (args.name + "_cuda" * on_gpu(args) + "_quick" * args.quick)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".json").write_text(json.dumps(content, indent=1) + "\n")
    if panels:
        from matplotlib.figure import Figure

        most = max(len(panel.get("bars", ())) for panel in panels.values())
        size = (5 * len(panels), max(4.4, 0.24 * most + 1))
        figure = Figure(figsize=size, layout="constrained")
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
