"""Landscapes as `eval sharpness` looks at them, by recordings beside plain calls.

    python -m benchmarks.landscape [--quick] [--out results]

What is asked of a small network at ``--points`` points at once, on 1,024 rows of digits, and all
that is measured at one point: by plain calls that take few rows of the data at a time, by plain
calls, and by recordings, which are there already. They run in turn, on one thread; a ratio is taken
within a round.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from benchmarks import harness
from benchmarks.harness import Contender
from lo_framework.eval.sharpness import replayed
from lo_framework.eval.sharpness.measuring import measure_point
from lo_framework.eval.sharpness.settings import Settings
from lo_framework.eval.sharpness.surface import Surface
from lo_framework.layout import Layout
from lo_framework.optimizees.pool import make_tasks
from lo_framework.optimizees.task import METRIC_ROWS, ModelTask

MODELS = ("mlp", "mlp-relu")
ROWS = 1024
NEVER = 10**9  # calls before something is recorded


def asked(task: ModelTask, points: int) -> dict[str, Callable[[], object]]:
    """What is asked of the landscape of ``task``, by name."""
    params, buffers = task.init(torch.Generator().manual_seed(0))
    layout = Layout.of({name: tuple(x.shape) for name, x in params.items()})
    flat = layout.flatten(params)
    surface = Surface(task, layout, flat, buffers, task.full("train"), rows=ROWS)
    noise = torch.randn(2, points, surface.size, generator=torch.Generator().manual_seed(1))
    at, v = flat + 0.01 * noise[0], noise[1]
    settings = Settings(steps=200, effort="balls")

    def point() -> None:
        measure_point(task, layout, flat, buffers, settings, False, lambda done: None)

    return {
        "losses": lambda: surface.losses(at),
        "gradients": lambda: surface.gradients(at),
        "Hessian products": lambda: surface.hvps(at, v),
        "all of one point": point,
    }


def ways_to(run: Callable[[], object], task: ModelTask) -> dict[str, Callable[[], None]]:
    """``run`` with pieces of so many rows, and recorded after so many calls."""

    def timed(rows: int, calls: int) -> Callable[[], None]:
        def once() -> None:
            task.metric_rows, replayed.WORTH_RECORDING = rows, calls
            run()

        return once

    few, many = METRIC_ROWS
    return {
        f"plain, {few} rows": timed(few, NEVER),
        "plain": timed(many, NEVER),
        "recorded": timed(many, 0),
    }


def compared(ways: dict[str, Callable[[], None]], rounds: int) -> dict[str, float]:
    """Milliseconds of each, and how many times as fast as the others the last is."""
    contenders = [Contender(name, run, 1) for name, run in ways.items()]
    harness.interleave(contenders, rounds)
    *others, last = contenders
    times = {f"{c.name}, ms": 1e3 / c.median for c in contenders}
    return times | {f"times as fast as {c.name}": last.ratio(c)[1] for c in others}


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    defaults = {"points": 3, "rounds": (2, 15)}
    args, content = harness.begin("landscape", __doc__, argv, **defaults)
    content |= {"points": args.points, "cases": {}}
    usual = replayed.WORTH_RECORDING
    for model in MODELS:
        (task,) = make_tasks(model, "digits")
        assert isinstance(task, ModelTask)
        for name, run in asked(task, args.points).items():
            result = compared(ways_to(run, task), args.rounds)
            content["cases"][f"{model}, {name}"] = result
            told = (f"{x:.1f} {key}" for key, x in result.items() if "times" in key)
            print(f"{model}, {name}: {', '.join(told)}", flush=True)
    replayed.WORTH_RECORDING = usual
    harness.save(args, content)
    return content


if __name__ == "__main__":
    main()
