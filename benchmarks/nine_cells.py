"""Can regularizers be learned? Optimizers that absorbed SAM, GSAM and GAM beside their plain twins,
the twins with the same meta-compute, and AdamW with the regularizers explicitly, on nine cells.

    python -m benchmarks.nine_cells --way base [--workers 2] [--cells mlp/mnist,...]

``--way`` names how to absorb, as `benchmarks.lever` knows it. Everything is meta-trained three
times, from three meta-seeds, on `POOL`; used on {mlp, mlp-relu, cnn} x {mnist, fashion_mnist,
cifar10} at 8 x 8 pixels, and on a transformer and a wider net; measured by `eval sharpness`. One
command does it all, and goes on when it is given again: ``OUT/optimizers`` and ``OUT/cells`` keep
what is finished. A cell that fails is told in its place, and tried again the next time. What it
says is `benchmarks.nine_cells_verdict` and shown by `benchmarks.nine_cells_page`, written anew
after every cell.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks import harness, nine_cells_page, nine_cells_verdict
from benchmarks.lever import POOL, Way, way_of
from benchmarks.nine_cells_verdict import ABSORBED, BASELINES
from lo_framework.eval.sharpness.metrics import PLACES
from lo_framework.eval.sharpness.result import FILE, Arm
from lo_framework.files.atomic import atomic_write_bytes, atomic_write_text
from lo_framework.spec import UserError

NINE = {
    f"{model}/{data}": (model, f"{data}:size=8")
    for model in ("mlp", "mlp-relu", "cnn")
    for data in ("mnist", "fashion_mnist", "cifar10")
}
BEYOND = {
    "transformer/digits": ("transformer", "digits"),
    "wide/mnist": ("mlp:hidden=256x256", "mnist:size=8"),
}
CELLS = NINE | BEYOND
TRAINED = ("mlp/mnist", "mlp-relu/mnist")  # of `POOL`; the others are new to what is learned
PARTS = {
    "the nine cells": [*NINE],
    "meta-trained on": [*TRAINED],
    "new data": [x for x in NINE if x.startswith("mlp") and x not in TRAINED],
    "new architecture": ["cnn/mnist"],
    "both new": ["cnn/fashion_mnist", "cnn/cifar10"],
    **{name: [name] for name in BEYOND},
}
FIRST = ("none", "control", *ABSORBED)  # of the first kind of learned optimizer
SECOND = ("none", "sam")
KEPT = (
    *("train_loss", "test_loss", "test_accuracy", "gradient_norm", "weight_norm"),
    *("top_eigenvalue", "trace"),
)
BALLS = ("l2", "l2, relative", "adaptive l2")
FIELDS = ("gap", "curvature", "first_order")
PROBED = "cosine_orthogonal"
INTERRUPTED = (130, 141, 143)


@dataclass(frozen=True, kw_only=True)
class Group:
    """Optimizers that are measured side by side, and matched in training loss with each other."""

    name: str
    kind: str
    arms: tuple[str, ...]
    meta_seed: int
    baselines: bool = False


def groups(args: Any) -> Iterator[Group]:
    """Of each cell, the most telling first."""
    for seed in range(args.meta_seeds):
        yield Group(name=f"{args.learned}-{seed}", kind=args.learned, arms=FIRST, meta_seed=seed)
    beside = {"kind": args.learned, "arms": SECOND, "meta_seed": 0}
    yield Group(name=BASELINES, baselines=True, **beside)
    for seed in range(args.meta_seeds):
        yield Group(name=f"{args.second}-{seed}", kind=args.second, arms=SECOND, meta_seed=seed)


def way_to(arm: str, way: Way) -> Way:
    """How the optimizer ``arm`` is trained: "sam" is the way itself, the others are like it."""
    if arm == "control":
        return replace(way, control=True)
    return way if arm == "sam" else replace(way, regularizer=arm)


def train(kind: str, arm: str, seed: int, args: Any) -> Path:
    """The optimizer, which is made or goes on unless it is there. Raises Failed."""
    name = f"{kind}-{arm}-{seed}"
    kept = args.out / "optimizers" / f"{name}.safetensors"
    if not kept.exists():
        folder = args.runs / name
        words = ["--preset", "specialist", "--learned", kind, *POOL]
        words += [*way_to(arm, way_of(args.way)).options(), "--seed", str(seed)]
        words += ["--outer-steps", str(args.outer_steps)] * bool(args.outer_steps)
        words += ["--workers", str(args.workers), "--no-evaluate", "--resume"]
        run("meta_train", *words, "--out", str(folder))
        atomic_write_bytes(kept, (folder / "optimizer.safetensors").read_bytes())
    return kept


def measure(cell: str, group: Group, args: Any) -> dict[str, Any]:
    """What is kept of one group on one cell. Raises Failed."""
    files = [train(group.kind, arm, group.meta_seed, args) for arm in group.arms]
    folder, way = args.runs / f"{cell.replace('/', '-')}-{group.name}", way_of(args.way)
    model, data = CELLS[cell]
    absorbed = f"{way.regularizer}:rho={way.rho:g}"
    names = ["adamw", *(f"{name}:rho={way.rho:g}" for name in ABSORBED)]
    words = ["--learned", ",".join(map(str, files)), "--optimizees", model, "--datasets", data]
    words += ["--baselines", ",".join(names) if group.baselines else "none"]
    words += ["--probe", "none" if group.baselines else absorbed, "--effort", args.effort]
    words += ["--steps", str(args.steps), "--seeds", str(args.seeds)]
    words += ["--tuning-seeds", str(args.tuning_seeds), "--grid-size", str(args.grid_size)]
    run("eval", "sharpness", *words, "--workers", str(args.workers), "--out", str(folder))
    result = FILE.load(folder)
    (task,) = result.tasks
    labels = dict(zip(result.learned, group.arms, strict=True)) | {x: x for x in result.baselines}
    return {
        "command": ["python", "-m", "eval", "sharpness", *words],
        "parameters": max(r.train["parameters"] for a in result.arms for r in a.runs if r.train),
        "arms": {name: kept_of(result.arm(task, label)) for label, name in labels.items()},
        "failures": result.failures,
    }


def kept_of(arm: Arm) -> dict[str, Any]:
    """The numbers of an arm, seed by seed: a list a key, at equal steps and at matched training
    loss (`numbers_of`); the probe's curves.
    """
    content: dict[str, Any] = {"setting": arm.setting, "diverged": arm.diverged}
    content["gradients per step"] = arm.gradients_per_step
    content["matched step"] = [run.step for run in arm.runs]
    content["seconds"] = [rounded(run.train.get("seconds")) for run in arm.runs]
    for place in PLACES:
        points = [numbers_of(run.point(place)) for run in arm.runs]
        keys = dict.fromkeys(key for point in points for key in point)
        content[place] = {key: [point.get(key) for point in points] for key in keys}
    probes = [run.train.get("probe") or {} for run in arm.runs]
    content["probe"] = [
        {key: [*map(rounded, probe.get(key, ()))] for key in ("loss", "path", PROBED)}
        for probe in probes
    ]
    return content


def numbers_of(point: dict[str, Any] | None) -> dict[str, float | None]:
    """``test_loss``, and of balls ``l2.curvature@0.1`` or ``l2, relative.gap@0.01 ‖w‖``."""
    if point is None:
        return {}
    numbers = {key: rounded(point["values"].get(key)) for key in KEPT}
    for ball in BALLS:
        columns = point["balls"].get(ball, {})
        for field in FIELDS:
            for label, x in zip(columns.get("labels", ()), columns.get(field, ())):
                numbers[f"{ball}.{field}@{label}"] = rounded(x)
    return numbers


def rounded(x: float | None) -> float | None:
    """To five digits: files stay small."""
    return None if x is None else float(f"{x:.5g}")


class Failed(Exception):
    """A program failed; its last line says why."""


def run(program: str, *words: str) -> None:
    """Raises Failed; SystemExit with its code where it was interrupted."""
    print(f"python -m {program} {' '.join(words)}", file=sys.stderr, flush=True)
    command = [sys.executable, "-m", program, *words]
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        last = ""
        for line in process.stderr:
            print(line, end="", file=sys.stderr, flush=True)
            last = line.strip() or last
    if process.returncode < 0 or process.returncode in INTERRUPTED:
        raise SystemExit(process.returncode if process.returncode > 0 else 143)
    if process.returncode:
        raise Failed(last or f"{program}: exit code {process.returncode}")


def settings_of(args: Any) -> dict[str, Any]:
    """What must be alike in all parts of one run."""
    names = "learned", "second", "steps", "seeds", "effort", "outer_steps", "tuning_seeds"
    given = {name: getattr(args, name) for name in (*names, "grid_size")}
    return {**given, **asdict(way_of(args.way)), "pool": " ".join(POOL)}


def check_alike(args: Any) -> None:
    """Raises UserError: the folder has parts of a run with another setting."""
    path, now = args.out / "settings.json", settings_of(args)
    before = json.loads(path.read_text("utf-8")) if path.exists() else now
    for name, value in now.items():
        if before.get(name) != value:
            raise UserError(
                f"{args.out} has cells of a run with {name} {before.get(name)}, not {value}: "
                "give the same, or another --out"
            )
    atomic_write_text(path, json.dumps(now, indent=1) + "\n")


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    options: dict[str, Any] = {"way": "base", "learned": "attention-mlp", "second": "lstm"}
    options |= {"cells": ",".join(CELLS), "meta_seeds": (2, 3), "seeds": (2, 20)}
    options |= {"steps": (5, 200), "outer_steps": (2, 0), "effort": ("quick", "balls")}
    options |= {"tuning_seeds": (1, 3), "grid_size": (2, 5), "workers": 2}
    options |= {"runs": "runs/nine_cells"}
    args, content = harness.begin("nine_cells", __doc__, argv, **options)
    args.runs, args.out = Path(args.runs), args.out / "nine_cells"
    chosen = args.cells.split(",")
    if unknown := [cell for cell in chosen if cell not in CELLS]:
        args.error(f"unknown cell {unknown[0]!r}; known: {', '.join(CELLS)}")
    try:
        check_alike(args)
    except UserError as error:
        args.error(str(error))
    content["settings"], content["failed"] = settings_of(args), {}
    for group in groups(args):
        for cell in chosen:
            path = args.out / "cells" / f"{cell.replace('/', '-')}-{group.name}.json"
            try:
                if not path.exists():
                    kept = {"cell": cell, "group": group.name, **measure(cell, group, args)}
                    atomic_write_text(path, json.dumps(kept, ensure_ascii=False) + "\n")
            except Failed as failure:
                print(f"{cell}, {group.name}: {failure}", file=sys.stderr, flush=True)
                content["failed"][f"{cell}, {group.name}"] = str(failure)
            content |= nine_cells_verdict.of(args.out, args.learned, args.second, NINE, PARTS)
            nine_cells_page.write(content, args.out, (args.learned, args.second))
            atomic_write_text(args.out / "verdict.json", json.dumps(content, indent=1) + "\n")
    print("\n".join(nine_cells_page.summary(content)), flush=True)
    return content


if __name__ == "__main__":
    main()
