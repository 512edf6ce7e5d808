"""Can regularizers be learned? Optimizers that absorbed even SAM, even ASAM, SAM, GSAM and GAM
beside their plain twins, the twins with more meta-compute, and AdamW with the regularizers
explicitly, on nine cells.

    python -m benchmarks.nine_cells [--workers 2] [--cells mlp/mnist,...]

``--way`` names how to absorb, as `benchmarks.lever` knows it, and ``--second-way`` how ``--second``
does; what is absorbed is all five. Everything is meta-trained three times on `lever.POOL`, on other
episodes and, where no optimizer is gone on from, from other weights; used on {mlp, mlp-relu, cnn} x
{mnist, fashion_mnist, cifar10} at 8 x 8 pixels, with all training rows, of which no run sees one
twice, and with 512 rows, which are overfitted, and on a transformer and a wider net; measured by
`eval sharpness`. One command does it all, and goes on when it is given again: ``OUT/optimizers``
and ``OUT/cells`` keep what is finished. A cell that fails is told in its place, and tried again the
next time. What it says is `benchmarks.nine_cells_verdict` and shown by
`benchmarks.nine_cells_page`, after each group; ``--cells none`` runs nothing and says it anew.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from benchmarks import harness, lever, nine_cells_page, nine_cells_verdict
from benchmarks.lever import Failed, Way, check_alike, run, trained, way_of, worded
from benchmarks.nine_cells_verdict import ABSORBED, BASELINES, NULL, PROBED
from benchmarks.other_steps import BESIDE, FACTORS, is_scaled, with_steps
from lo_framework.absorb.absorption import make_regularizer
from lo_framework.eval.sharpness.metrics import PLACES
from lo_framework.eval.sharpness.result import FILE, Arm
from lo_framework.files.atomic import atomic_write_text
from lo_framework.learned import make_learned
from lo_framework.spec import UserError

FEW_ROWS = 512
PAIRS = [
    (model, data)
    for model in ("mlp", "mlp-relu", "cnn")
    for data in ("mnist", "fashion_mnist", "cifar10")
]
NINE = {f"{model}/{data}": (model, f"{data}:size=8") for model, data in PAIRS}
FEW = {
    f"{model}/{data}-{FEW_ROWS}": (model, f"{data}:size=8,rows={FEW_ROWS}") for model, data in PAIRS
}
BEYOND = {
    "transformer/digits": ("transformer", "digits"),
    "wide/mnist": ("mlp:hidden=256x256", "mnist:size=8"),
}
CELLS = NINE | FEW | BEYOND
SETS = {"all rows": [*NINE], f"{FEW_ROWS} rows": [*FEW]}  # each of nine; targets are about each
TRAINED = ("mlp/mnist", "mlp-relu/mnist")  # of the pool; the others are new to what is learned
PARTS = {
    **SETS,
    "meta-trained on": [*TRAINED],
    "new data": [x for x in NINE if x.startswith("mlp") and x not in TRAINED],
    "new architecture": ["cnn/mnist"],
    "both new": ["cnn/fashion_mnist", "cnn/cifar10"],
    **{name: [name] for name in BEYOND},
}
# Of what `lever` tried, that which is flatter at the least price, on one meta-seed.
WAY, LEARNED = "rho-0.5+strength-10+tuned", "scaled"
SECOND_WAY = "rho-0.5+whole"
SECOND = "sam"  # of the second kind
CONTROL = "control-"  # and the regularizer whose meta-compute it has
# With radii that train: one that does not would move the loss at which all are compared.
EXPLICIT = (
    *("sam:rho=0.05", "sam:rho=0.2", "gsam:rho=0.2", "gam:rho=0.2", "even_sam:rho=0.5"),
    *("s2sam:rho=0.1", "s2sam:rho=0.2"),
)
KEPT = (
    *("train_loss", "test_loss", "test_accuracy", "gradient_norm", "weight_norm"),
    *("top_eigenvalue", "trace"),
)
BALLS = ("l2", "l2, relative", "adaptive l2")
FIELDS = ("gap", "curvature", "first_order")


@dataclass(frozen=True, kw_only=True)
class Group:
    """Optimizers that are measured side by side, and matched in training loss with each other.

    Attributes:
        members: by label, what is absorbed and the meta-seed.
        probe: the regularizer that updates are compared with.
        baselines: AdamW and the explicit regularizers too.
    """

    name: str
    kind: str
    members: dict[str, tuple[str, int]]
    probe: str = SECOND
    baselines: bool = False


def groups(args: Any) -> Iterator[Group]:
    """The most telling ones first."""
    seeds = range(1, args.meta_seeds + 1)  # 0 is that of `lever`, by which the way was chosen
    first, *others = ABSORBED
    yield from _regularized(first, seeds, args.learned)
    for name, arm in BESIDE.items() if is_scaled(args.learned) else ():
        for seed in seeds:
            members = {label: (label, seed) for label in ("none", arm, name)}
            label = f"{worded(args.learned)}-{name}-{seed}"
            yield Group(name=label, kind=args.learned, members=members, probe=arm)
    beside = {name: (name, 1) for name in ("none", first)}
    yield Group(name=BASELINES, kind=args.learned, members=beside, probe=first, baselines=True)
    for arm in others:
        yield from _regularized(arm, seeds, args.learned)
    for seed in seeds:
        members = {name: (name, seed) for name in ("none", SECOND)}
        yield Group(
            name=f"{worded(args.second)}-{SECOND}-{seed}", kind=args.second, members=members
        )
    members = {f"none-{seed}": ("none", seed) for seed in seeds}
    yield Group(name=NULL, kind=args.learned, members=members)


def _regularized(arm: str, seeds: Iterable[int], kind: str) -> Iterator[Group]:
    for seed in seeds:
        arms = {"none": "none", "control": control_of(arm), arm: arm}
        members = {label: (name, seed) for label, name in arms.items()}
        yield Group(name=f"{worded(kind)}-{arm}-{seed}", kind=kind, members=members, probe=arm)


def control_of(arm: str) -> str:
    """The plain twin with the meta-compute of ``arm``; arms that cost the same have the same."""
    costs = {name: make_regularizer(name).cost.total for name in ABSORBED}
    return CONTROL + next(name for name in ABSORBED if costs[name] == costs[arm])


def way_to(arm: str, way: Way) -> Way:
    """How the optimizer ``arm`` is trained: like the way, with a regularizer of its own."""
    return replace(way, regularizer=arm.removeprefix(CONTROL), control=arm.startswith(CONTROL))


def seeded(kind: str, seed: int) -> str:
    """The kind with first weights of its own, where it draws them."""
    if "seed" not in {field.name for field in fields(make_learned(kind).config)}:
        return kind
    return f"{kind}{',' if ':' in kind else ':'}seed={seed}"


def way_for(kind: str, args: Any) -> Way:
    """Of the first kind, or of the second."""
    return way_of(args.way if kind == args.learned else args.second_way)


def train(kind: str, arm: str, seed: int, args: Any) -> Path:
    """The optimizer, which is made or goes on unless it is there. Raises Failed, and at once where
    that has failed before.
    """
    name, place = f"{worded(kind)}-{arm}-{seed}", args.out / "optimizers"
    if arm in FACTORS:
        twin = train(kind, "none", seed, args)
        return with_steps(twin, place / f"{name}.safetensors", FACTORS[arm])
    if name not in args.failed:
        try:
            way = way_to(arm, way_for(kind, args))
            spec = kind if way.tuned else seeded(kind, seed)
            return trained(name, spec, way, seed, place, args)
        except Failed as failure:
            args.failed[name] = f"{name}: {failure}"
    raise Failed(args.failed[name])


def measure(cell: str, group: Group, args: Any) -> dict[str, Any]:
    """What is kept of one group on one cell. Raises Failed."""
    files = [train(group.kind, *member, args) for member in group.members.values()]
    folder = args.runs / f"{cell.replace('/', '-')}-{group.name}"
    way = way_for(group.kind, args)
    model, data = CELLS[cell]
    words = ["--learned", ",".join(map(str, files)), "--optimizees", model, "--datasets", data]
    words += ["--baselines", ",".join(["adamw", *EXPLICIT]) if group.baselines else "none"]
    words += ["--probe", f"{group.probe}:rho={way.rho:g}", "--effort", args.effort]
    words += ["--steps", str(args.steps), "--seeds", str(args.seeds)]
    words += ["--tuning-seeds", str(args.tuning_seeds), "--grid-size", str(args.grid_size)]
    words += ["--choose-by", "validation"]
    run("eval", "sharpness", *words, "--workers", str(args.workers), "--out", str(folder))
    result = FILE.load(folder)
    (task,) = result.tasks
    labels = dict(zip(result.learned, group.members, strict=True))
    labels |= {name: name for name in result.baselines}
    return {
        "command": ["lo-eval", "sharpness", *words],
        "seeds": args.seeds,
        "parameters": max([r.train["parameters"] for a in result.arms for r in a.runs if r.train]),
        "arms": {name: kept_of(result.arm(task, label)) for label, name in labels.items()},
        "failures": result.failures,
    }


def kept_of(arm: Arm) -> dict[str, Any]:
    """The numbers of an arm, seed by seed: a list a key, at equal steps and at matched training
    loss (`numbers_of`); the probe's curves.
    """
    content: dict[str, Any] = {"setting": arm.setting, "failure": arm.failure}
    content["diverged"] = [run.diverged for run in arm.runs]
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


def settings_of(args: Any) -> dict[str, Any]:
    """What must be alike in all parts of one run. Raises UserError: a way that cannot be."""
    names = "learned", "second", "steps", "seeds", "effort", "outer_steps", "tuning_seeds"
    given = {name: getattr(args, name) for name in (*names, "grid_size")}
    ways = {}
    for option, kind in (("way", args.learned), ("second_way", args.second)):
        name = getattr(args, option)
        way = way_of(name)
        told = f"--{option.replace('_', '-')} {name}"
        if way.regularizer not in ("none", "sam"):
            raise UserError(f"{told} names a regularizer; here all of them are absorbed")
        if way.control or way.regularizer == "none":
            raise UserError(f"{told} absorbs nothing; the twins are made anyway")
        way.beginning(kind)
        ways[option] = asdict(way)
    if args.learned == args.second:
        raise UserError(f"--learned and --second are both {args.second}; name another --second")
    return {**given, **ways.pop("way"), **ways, "pool": " ".join(lever.POOL)}


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    options: dict[str, Any] = {"way": WAY, "learned": LEARNED, "second": "lstm"}
    options |= {"second_way": SECOND_WAY}
    options |= {"cells": ",".join(CELLS), "meta_seeds": (2, 3), "seeds": (2, 20)}
    options |= {"steps": (5, 200), "outer_steps": (2, 0), "effort": ("quick", "balls")}
    options |= {"tuning_seeds": (1, 3), "grid_size": (2, 5), "workers": 2}
    options |= {"runs": "runs/nine_cells"}
    args, content = harness.begin("nine_cells", __doc__, argv, **options)
    args.runs, args.out, args.failed = Path(args.runs), args.out / "nine_cells", {}
    chosen = [] if args.cells == "none" else args.cells.split(",")
    if unknown := [cell for cell in chosen if cell not in CELLS]:
        args.error(f"unknown cell {unknown[0]!r}; known: {', '.join(CELLS)}")
    try:
        content["settings"] = settings_of(args)
        check_alike(args.out / "settings.json", content["settings"])
    except UserError as error:
        args.error(str(error))
    content["failed"] = {}
    kinds = worded(args.learned), worded(args.second)
    every = [*groups(args)]
    for group in every:
        missing = False
        for cell in chosen:
            path = args.out / "cells" / f"{cell.replace('/', '-')}-{group.name}.json"
            if path.exists():
                continue
            missing = True
            try:
                kept = {"cell": cell, "group": group.name, **measure(cell, group, args)}
                atomic_write_text(path, json.dumps(kept, ensure_ascii=False) + "\n")
            except UserError as failure:
                print(f"{cell}, {group.name}: {failure}", file=sys.stderr, flush=True)
                content["failed"][f"{cell}, {group.name}"] = str(failure)
        if missing or group is every[-1]:  # what was there already is told once, at the end
            content |= nine_cells_verdict.of(args.out, *kinds, SETS, PARTS)
            nine_cells_page.write(content, args.out)
            atomic_write_text(args.out / "verdict.json", json.dumps(content, indent=1) + "\n")
    print("\n".join(nine_cells_page.summary(content)), flush=True)
    return content


if __name__ == "__main__":
    main()
