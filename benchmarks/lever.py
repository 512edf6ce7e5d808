"""What makes an absorbed regularizer show? One factor at a time around one way of absorbing SAM
into a learned optimizer, on validation problems, against the same optimizer without.

    python -m benchmarks.lever [--names base,late,...] [--learned attention-mlp] [--seed 0]

Each name is a run of ``python -m meta_train`` and one of ``lo-eval sharpness`` on its optimizer
and its plain twin. Names joined by ``+`` are crossed, as ``late+rho-0.5``. Runs lie in ``--runs``;
a killed run goes on when the command is given again, names that are finished are not run again, and
one that fails is told and costs no other. The table has, at matched training loss, the log ratio to
the twin (below 0 is flatter, or a lower loss), mean over problems and seeds with its 95% interval;
the JSON has each problem too. All is of one meta-seed.
"""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import harness
from lo_framework.eval.sharpness.metrics import EQUAL, MATCHED
from lo_framework.eval.sharpness.result import FILE, Result
from lo_framework.eval.statistics import Array, Estimate, mean_interval
from lo_framework.files.atomic import atomic_write_bytes, atomic_write_text
from lo_framework.meta_train.beginning import spec_of
from lo_framework.spec import UserError

POOL = ("--optimizees", "mlp,mlp-relu", "--datasets", "digits,mnist:size=8")
# Neither shapes of the pool nor cells of any table that is reported.
PROBLEMS = ("--optimizees", "mlp:hidden=40,mlp-relu:hidden=24x24", "--datasets", "digits")
CURVATURE = "l2.curvature@0.1"
LAST = ("--outer-lr", "0.005", "--keep", "last")
WHOLE = ("--num-tasks", "4", "--outer-steps", "60")
TUNED = ("--vary", "none", "--probes", "none", "--outer-steps", "150", "--outer-lr", "0.001")
GENERAL = "general"  # the shipped optimizer, and the preset that it was made by
INTERRUPTED = (130, 141, 143)
MEASURED = {
    CURVATURE: "curvature part, r = .1",
    "top_eigenvalue": "top eigenvalue",
    "test_loss": "test loss",
    "train_loss": "train loss",
}
# Which larger weights do not lower. Ways that were measured before it was have none.
ADAPTIVE = {"adaptive l2.curvature@1": "curvature part, adaptive r = 1"}


@dataclass(frozen=True, kw_only=True)
class Way:
    """A way to absorb; ``regularizer`` "none" is the plain twin, ``control`` that with the
    regularizer's meta-compute. ``last`` makes smaller outer steps and never goes back to an
    incumbent; ``whole`` does so too, and differentiates through whole episodes, half as many at a
    time. ``tuned`` goes on from the shipped ``general``, as that was trained itself: by PES, over
    whole episodes.
    """

    regularizer: str = "sam"
    rho: float = 0.2
    strength: float = 5.0
    when: str = "every"
    batch: str = "own"
    episode: int = 200
    last: bool = False
    whole: bool = False
    tuned: bool = False
    score: str = "plain"
    control: bool = False

    def beginning(self, kind: str) -> list[str]:
        """The words of what a run with a learned optimizer of that kind begins with. Raises
        UserError: it cannot go on from ``general``.
        """
        if not self.tuned:
            return ["--preset", "specialist", "--learned", kind]
        if kind != (wanted := spec_of(GENERAL).partition(":")[0]):
            raise UserError(f"`tuned` goes on from {GENERAL}, which is {wanted} and not {kind}")
        return ["--preset", GENERAL, "--start", GENERAL]

    def options(self) -> list[str]:
        """The words of the rest of its run."""
        length = ["--episode-length", str(self.episode)]
        if self.tuned:
            length += TUNED
        if self.whole:
            length += ["--unroll-length", str(self.episode), *WHOLE]
        if self.last or self.whole:
            length += LAST
        if self.regularizer == "none":
            return length
        given = "--control" if self.control else "--regularizer"
        absorb = f"strength={self.strength:g},when={self.when},batch={self.batch}"
        words = [given, f"{self.regularizer}:rho={self.rho:g}", "--absorb", absorb]
        # A control absorbs nothing that could be scored.
        return [*length, *words, *(["--score", self.score] if not self.control else [])]

    @property
    def twin(self) -> str:
        """The name of the plain run that it is compared with."""
        episode = f"+episode-{self.episode}" * (self.episode != Way.episode)
        parts = ["+last"] * self.last + ["+whole"] * self.whole + ["+tuned"] * self.tuned
        return "".join(["none", episode, *parts])


WAYS: dict[str, dict[str, Any]] = {
    "none": {"regularizer": "none"},
    "base": {},
    "control": {"control": True},
    "strength-1": {"strength": 1.0},
    "strength-10": {"strength": 10.0},
    "strength-20": {"strength": 20.0},
    "strength-50": {"strength": 50.0},
    "rho-0.05": {"rho": 0.05},
    "rho-0.5": {"rho": 0.5},
    "asam": {"regularizer": "asam", "rho": 0.5},
    "even": {"regularizer": "even_sam"},
    "even-asam": {"regularizer": "even_asam", "rho": 0.5},
    "late": {"when": "late"},
    "end": {"when": "end"},
    "episode-1000": {"episode": 1000},
    "last": {"last": True},
    "whole": {"whole": True},
    "tuned": {"tuned": True},
    "independent": {"batch": "independent"},
    "regularized": {"score": "regularized"},
}


def way_of(name: str) -> Way:
    """Raises UserError: a part of the name is unknown."""
    way = Way()
    for part in name.split("+"):
        if part not in WAYS:
            raise UserError(f"unknown name {part!r}; known: {', '.join(WAYS)}")
        way = replace(way, **WAYS[part])
    return way


def train(name: str, args: Any) -> Path:
    """The optimizer of the run ``name``, which is made or goes on unless it is there."""
    file = f"{worded(args.learned)}-{name}-{args.seed}"
    return trained(file, args.learned, way_of(name), args.seed, args.out / "lever", args)


def worded(spec: str) -> str:
    """``mlp-features-39`` for ``mlp:features=39``: for names of files."""
    return re.sub("[:=,]", "-", spec)


def trained(name: str, kind: str, way: Way, seed: int, place: Path, args: Any) -> Path:
    """The optimizer ``place/name.safetensors``, which is made or goes on unless it is there.

    Raises:
        UserError: the way is not for this kind.
        Failed: the run failed.
    """
    kept = place / f"{name}.safetensors"
    if not kept.exists():
        folder = args.runs / name
        words = [*way.beginning(kind), *POOL, *way.options()]
        words += ["--outer-steps", str(args.outer_steps)] * bool(args.outer_steps)
        words += ["--seed", str(seed), "--workers", str(args.workers)]
        run("meta_train", *words, "--no-evaluate", "--resume", "--out", str(folder))
        atomic_write_bytes(kept, (folder / "optimizer.safetensors").read_bytes())
    return kept


def measure(name: str, args: Any) -> Result:
    """Its optimizer and the twin's on the validation problems. Raises Failed."""
    files = [train(each, args) for each in (way_of(name).twin, name)]
    folder = args.runs / f"sharpness-{worded(args.learned)}-{name}-{args.seed}"
    words = ["--learned", ",".join(map(str, files)), *PROBLEMS, "--baselines", "none"]
    words += ["--steps", str(args.steps), "--seeds", str(args.seeds), "--probe", "none"]
    words += ["--effort", args.effort, "--workers", str(args.workers), "--out", str(folder)]
    run("eval", "sharpness", *words)
    return FILE.load(folder)


class Failed(UserError):
    """A program failed; its last line says why."""


def run(program: str, *words: str) -> None:
    """Raises Failed; SystemExit with its code where it was interrupted."""
    print(f"python -m {program} {' '.join(words)}", file=sys.stderr, flush=True)
    command = [sys.executable, "-m", program, *words]
    pipes: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as process:
        assert process.stderr is not None
        last = ""
        for line in process.stderr:
            print(line, end="", file=sys.stderr, flush=True)
            last = line.strip() or last
    if process.returncode < 0 or process.returncode in INTERRUPTED:
        raise SystemExit(process.returncode if process.returncode > 0 else 128 - process.returncode)
    if process.returncode:
        raise Failed(last or f"{program}: exit code {process.returncode}")


def check_alike(path: Path, now: dict[str, Any]) -> None:
    """Raises UserError: what lies beside ``path`` is of a run with another setting."""
    before = json.loads(path.read_text("utf-8")) if path.exists() else now
    for name, value in now.items():
        if before.get(name) != value:
            raise UserError(
                f"{path.parent} has parts of a run with {name} {before.get(name)}, not {value}: "
                "give the same, or another --out"
            )
    atomic_write_text(path, json.dumps(now, indent=1) + "\n")


def log_ratios(result: Result, task: str, key: str, place: str) -> Array:
    """``log(run / twin)``, seed by seed; nan where one of the two has no number, or none above
    zero.
    """
    twin, absorbed = (result.arm(task, each).values(key, place) for each in result.learned)
    with np.errstate(invalid="ignore", divide="ignore"):
        logs = np.log(absorbed) - np.log(twin)
    return np.where(np.isfinite(logs), logs, math.nan)


def summary(result: Result) -> dict[str, Any]:
    """The ratios over all problems, and for each alone."""
    alone = {task: ratios_over(result, [task]) for task in result.tasks}
    return ratios_over(result, result.tasks) | {"problems": alone}


def ratios_over(result: Result, tasks: Sequence[str]) -> dict[str, Any]:
    """Mean, interval, and how many pairs there are, of every number at both places."""
    measured: dict[str, Any] = {EQUAL: {}, MATCHED: {}}
    for place, by_key in measured.items():
        for key in MEASURED | ADAPTIVE:
            logs = np.concatenate([log_ratios(result, task, key, place) for task in tasks])
            known = logs[np.isfinite(logs)]
            by_key[key] = {"pairs": known.size, "of": logs.size}
            if known.size > 1:
                mean = mean_interval(known)
                by_key[key] |= {"value": mean.value, "low": mean.low, "high": mean.high}
    return measured


def cell(ratio: dict[str, Any]) -> str:
    """``-0.22 [-0.31, -0.13]``, and how many pairs are left out."""
    if "value" not in ratio:
        return "never"
    ends = {name: ratio[name] for name in ("value", "low", "high")}
    lost = ratio["of"] - ratio["pairs"]
    words = f" ({lost} of {ratio['of']} left out)" if lost else ""
    return f"{Estimate(**ends, n=ratio['pairs'])}{words}"


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    names = ",".join(name for name in WAYS if name != "none")
    options: dict[str, Any] = {"names": names, "learned": "attention-mlp", "runs": "runs/lever"}
    options |= {"workers": 2, "seed": 0, "outer_steps": (2, 0), "steps": (5, 200), "seeds": (2, 5)}
    options |= {"effort": ("quick", "balls")}
    args, content = harness.begin("lever", __doc__, argv, **options)
    args.runs = Path(args.runs)
    alike = {name: getattr(args, name) for name in ("steps", "seeds", "outer_steps", "effort")}
    try:
        ways = {name: way_of(name) for name in args.names.split(",")}
        check_alike(args.out / "lever" / "settings.json", {**alike, "pool": " ".join(POOL)})
    except UserError as error:
        args.error(str(error))
    path = args.out / f"lever-{worded(args.learned)}-{args.seed}.json"
    before = json.loads(path.read_text("utf-8"))["ways"] if path.exists() else {}
    content |= {"learned": args.learned, "seed": args.seed, "pool": POOL, "problems": PROBLEMS}
    content |= {"ways": before, "failed": {}}
    for name, way in ways.items():
        settings = {field.name: getattr(way, field.name) for field in fields(way)}
        try:
            content["ways"][name] = {"settings": settings, **summary(measure(name, args))}
        except UserError as failure:
            print(f"{name}: {failure}", file=sys.stderr, flush=True)
            content["failed"][name] = str(failure)
        rows = [
            [n, *(cell(w[MATCHED][key]) for key in MEASURED)] for n, w in content["ways"].items()
        ]
        harness.print_table(["log ratio to the twin", *MEASURED.values()], rows)
        atomic_write_text(path, json.dumps(content, indent=1) + "\n")  # after every name
    return content


if __name__ == "__main__":
    main()
