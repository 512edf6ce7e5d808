"""Kill every program that goes on after a kill, again and again, and compare how it ends.

    python -m tests.campaign [--kills 20] [--seed 0] [--only tbptt,transfer]       # make campaign

A program first runs undisturbed. Then it is started again and again, each time killed by SIGKILL at
a random moment (of a seeded generator) of the time that it takes; whenever it comes to its end, the
end must be that of the undisturbed run: the bits of theta and the log of a meta-training, the JSON
of an evaluation but for times and provenance. `worker` kills single workers of a run that must go
on by itself, `rank` single ranks of a torchrun, which begins them again. About a quarter of an hour
on two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.numpy import load_file

ROOT = Path(__file__).resolve().parents[2]
META = (
    "meta_train --optimizees mlp --learned hyper-adamw --outer-steps 12 --unroll-length 5"
    " --episode-length 10-20 --num-tasks 2 --shards 2 --validate-every 3 --checkpoint-every 2"
    " --no-evaluate --resume"
)
EVAL = "--learned results/quick/optimizer.safetensors --steps 12 --seeds 2 --grid-size 2"
PROGRAMS = {
    "tbptt": f"{META} --workers 1",
    "pes": f"{META} --estimator pes --workers 1",
    "absorbed": f"{META} --regularizer sam:rho=0.2 --workers 1",
    "workers": f"{META} --workers 2",
    "worker": f"{META} --workers 2",
    "rank": f"{META}",
    "transfer": f"eval transfer {EVAL} --optimizees mlp,cnn --baselines adamw,sgdm",
    "sharpness": f"eval sharpness {EVAL} --optimizees mlp --baselines adamw --workers 1",
}
# A run with workers must end with the bits of one without.
SAME_END = {"workers": "tbptt", "worker": "tbptt", "rank": "tbptt"}
# Those that go on by themselves, if a process of theirs is killed.
BY_THEMSELVES = ("worker", "rank")
PATIENCE = 600.0


@dataclass
class Outcome:
    """The kills and ends of one program."""

    name: str
    seconds: float
    kills: int = 0
    ends: int = 0
    faults: tuple[str, ...] = ()


def start(name: str, out: Path) -> subprocess.Popen[str]:
    torchrun = "torch.distributed.run --nproc-per-node 2 --max-restarts 100 -m"
    words = [*torchrun.split()] if name == "rank" else []
    command = [sys.executable, "-m", *words, *PROGRAMS[name].split(), "--out", str(out)]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        command, cwd=ROOT, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )


def children(pid: int) -> list[int]:
    """The processes that descend from `pid`, but for Python's resource tracker."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            words = (folder / "cmdline").read_bytes()
        except OSError:  # it has ended meanwhile
            continue
        if parent == pid and b"resource_tracker" not in words:
            found += [int(folder.name), *children(int(folder.name))]
    return found


def alive(pid: int) -> bool:
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def end_of(out: Path) -> Any:
    """Bits of theta and the log, or the results' JSON, without times: they must be the same."""
    theta = out / "optimizer.safetensors"
    if theta.is_file():
        log = (out / "metrics.jsonl").read_text("utf-8").splitlines()
        bits = {key: x.tobytes() for key, x in load_file(theta).items()}
        return bits, [timeless(json.loads(line)) for line in log]
    results = [path for path in out.glob("*.json") if path.stem in ("transfer", "sharpness")]
    return [timeless(json.loads(path.read_text("utf-8"))) for path in results] or None


def timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            key: timeless(x)
            for key, x in value.items()
            if key not in ("provenance", "rate", "time") and "second" not in key
        }
    return [timeless(x) for x in value] if isinstance(value, list) else value


def going_on(pids: Sequence[int]) -> list[str]:
    """Name those processes of an ended program that have not ended ten seconds later."""
    deadline = time.monotonic() + 10
    while any(map(alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.1)
    return [f"process {pid} goes on" for pid in pids if alive(pid)]


def finish(process: subprocess.Popen[str]) -> str:
    """'' after a good end, else what it said."""
    try:
        _, errors = process.communicate(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        return "does not end"
    return "" if process.returncode == 0 else f"exit code {process.returncode}: {errors[-300:]}"


def checkpoints(out: Path) -> list[str]:
    return sorted(str(path) for path in (out / "state").glob("*"))


def disturb(
    name: str, process: subprocess.Popen[str], out: Path, span: float, chance: random.Random
) -> tuple[int, list[int]]:
    """Kill the program, or workers of it one after the other: how often, and its processes. A run
    gives up at the third death without a step between: the next one comes after a checkpoint.
    """
    begun, kills, seen = time.monotonic(), 0, set[int]()
    while True:
        moment, known = begun + chance.uniform(0.1, 1.0) * span, checkpoints(out)
        while process.poll() is None and (
            time.monotonic() < moment or (kills and checkpoints(out) == known)
        ):
            time.sleep(0.01)
        if process.poll() is not None:
            return kills, [*seen]
        workers = children(process.pid)
        seen.update(workers)
        if name not in BY_THEMSELVES:
            process.send_signal(signal.SIGKILL)
            return kills + 1, [*seen]
        if workers:
            os.kill(chance.choice(workers), signal.SIGKILL)
            kills += 1
        begun = time.monotonic()


def campaign(name: str, kills: int, seed: int, folder: Path) -> Outcome:
    chance = random.Random(f"{name} {seed}")
    expected = folder / SAME_END.get(name, name)
    begun = time.monotonic()
    said = "" if expected.is_dir() else finish(start(expected.name, expected))
    if said:
        return Outcome(name, 0.0, faults=(f"undisturbed: {said}",))
    outcome = Outcome(name, time.monotonic() - begun)
    if expected.name != name:  # workers take another time to start
        begun = time.monotonic()
        finish(start(name, folder / f"{name}-timed"))
        outcome.seconds = time.monotonic() - begun
    out, last = folder / f"{name}-0", False
    while not last and len(outcome.faults) < 3:
        last = outcome.kills >= kills
        begun, process = time.monotonic(), start(name, out)
        struck, pids = (0, []) if last else disturb(name, process, out, outcome.seconds, chance)
        outcome.kills += struck
        said = finish(process)
        faults = going_on(pids)
        if process.returncode == 0:
            outcome.ends += 1
            if not struck:  # it came to its end before the moment: the machine is faster now
                outcome.seconds = min(outcome.seconds, time.monotonic() - begun)
            faults += [f"{path.name} is left behind" for path in out.rglob("*.tmp")]
            if end_of(out) is None or end_of(out) != end_of(expected):
                faults.append(f"another end in {out}")
            out = folder / f"{name}-{outcome.ends}"
        elif last or process.returncode != -signal.SIGKILL:
            faults.append(said)
        outcome.faults += tuple(faults)
    return outcome


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.campaign",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--kills", type=int, default=20, help="of each program (default: 20)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default=",".join(PROGRAMS))
    arguments = parser.parse_args(argv)
    bad = 0
    print(f"{'program':10} {'kills':>5} {'ends':>5} {'alone':>8}  verdict", flush=True)
    with tempfile.TemporaryDirectory(prefix="campaign-") as folder:
        for name in arguments.only.split(","):
            outcome = campaign(name, arguments.kills, arguments.seed, Path(folder))
            verdict = "; ".join(outcome.faults) or "the same ends"
            times = f"{outcome.kills:5} {outcome.ends:5} {outcome.seconds:6.1f} s"
            print(f"{name:10} {times}  {verdict}", flush=True)
            bad += bool(outcome.faults)
    return min(bad, 1)


if __name__ == "__main__":
    sys.exit(main())
