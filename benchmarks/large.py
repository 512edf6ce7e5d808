"""Nets sixteen times larger and runs ten times longer than any that an optimizer was meta-trained
on, in ordinary loops: `Learned` with the file as it is beside AdamW tuned over five rates with a
cosine.

    python -m benchmarks.large --learned general --data-dir DIR [--seeds 5] [--out results]

``mlp``: 784-1024-256-10 on MNIST, batch 64, 2,000 steps. ``transformer``: four layers of width 128
that predict the next byte of TinyStories, 32 windows of 64 bytes, 500 steps. ``long``: a relu
network of 64-160-160-10 on MNIST at 8x8 pixels, batch 64, 10,000 steps. A rate of AdamW is chosen
by the final training loss of a seed of its own. Final losses are over fixed rows of the training
split, and of rows that were held out. Finished runs lie in OUT/large/ and are not run again: a
killed benchmark goes on.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import lzma
import math
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.stats import t as student
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import harness
from lo_framework.files.atomic import atomic_write_text
from lo_framework.optim import Learned
from lo_framework.optimizees.datasets import load

RATES = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
TUNING_SEED, FIRST_SEED = 10_000, 20_000
BOUND = 1.1
STORIES = "tinystories/TinyStories-train-head.txt.xz"
WINDOW, HELD = 64, 20_000  # bytes
MEASURED = 2048  # rows or windows of a final loss

Batch = tuple[Tensor, Tensor]


class Problem(NamedTuple):
    """``batch(split, n, generator)``: n rows, drawn."""

    build: Callable[[], nn.Module]
    batch: Callable[[str, int, torch.Generator], Batch]
    rows: int
    steps: int


class Transformer(nn.Module):
    """A causal one over bytes."""

    def __init__(self, width: int = 128, heads: int = 4, layers: int = 4) -> None:
        super().__init__()
        self.embedding, self.positions = nn.Embedding(256, width), nn.Embedding(WINDOW, width)
        options: dict[str, Any] = {"dropout": 0.0, "batch_first": True, "norm_first": True}
        blocks = [
            nn.TransformerEncoderLayer(width, heads, 4 * width, **options) for _ in range(layers)
        ]
        self.blocks, self.norm = nn.ModuleList(blocks), nn.LayerNorm(width)
        self.head = nn.Linear(width, 256)

    def forward(self, x: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
        x = self.embedding(x) + self.positions(torch.arange(x.shape[1]))
        for block in self.blocks:
            x = block(x, src_mask=mask, is_causal=True)
        return self.head(self.norm(x)).transpose(1, 2)


def dense(*sizes: int, act: Callable[[], nn.Module] = nn.ReLU) -> nn.Module:
    """Linear layers of these sizes, with an activation between them."""
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise(sizes):
        layers += [nn.Linear(a, b), act()]
    return nn.Sequential(*layers[:-1])


def images(name: str, sizes: Sequence[int], steps: int, folder: str) -> Problem:
    """A relu network of these layers on a set of images."""
    splits = load(name, folder).splits

    def batch(split: str, n: int, generator: torch.Generator) -> Batch:
        x, y = splits[split][:2]
        index = torch.randint(len(x), (n,), generator=generator)
        return x[index].flatten(1), y[index]

    return Problem(partial(dense, *sizes), batch, 64, steps)


def stories(folder: str) -> Problem:
    text = lzma.decompress((Path(folder) / STORIES).read_bytes())
    whole = torch.from_numpy(np.frombuffer(text, np.uint8).astype(np.int64))
    splits = {"train": whole[:-HELD], "test": whole[-HELD:]}

    def batch(split: str, n: int, generator: torch.Generator) -> Batch:
        data = splits[split]
        begin = torch.randint(len(data) - WINDOW, (n, 1), generator=generator)
        rows = data[begin + torch.arange(WINDOW + 1)]
        return rows[:, :-1], rows[:, 1:]

    return Problem(Transformer, batch, 32, 500)


PROBLEMS: dict[str, Callable[[str], Problem]] = {
    "mlp": partial(images, "mnist", (784, 1024, 256, 10), 2000),
    "transformer": stories,
    "long": partial(images, "mnist:size=8", (64, 160, 160, 10), 10_000),
}


def run(problem: Problem, optimizer: str, rate: float, seed: int, steps: int) -> dict[str, float]:
    """Train from ``seed``: AdamW at ``rate``, or the optimizer of a file."""
    torch.manual_seed(seed)
    model, generator = problem.build(), torch.Generator().manual_seed(seed)
    schedule = None
    if optimizer == "adamw":
        made: Any = torch.optim.AdamW(model.parameters(), lr=rate)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(made, steps)
    else:
        made = Learned(model, optimizer, num_steps=steps)
    begun, losses = time.perf_counter(), []
    for _ in range(steps):
        x, y = problem.batch("train", problem.rows, generator)
        loss = F.cross_entropy(model(x), y)
        made.zero_grad()
        loss.backward()
        made.step()
        if schedule is not None:
            schedule.step()
        losses.append(float(loss.detach()))
    seconds = time.perf_counter() - begun
    result = {
        "mean": sum(losses) / steps,
        "first": losses[0],
        "highest": max(losses[: max(1, steps // 5)]),
    }
    with torch.no_grad():
        for split in ("train", "test"):
            x, y = problem.batch(split, MEASURED, torch.Generator().manual_seed(0))
            parts = [F.cross_entropy(model(a), b) for a, b in zip(x.split(256), y.split(256))]
            result[split] = float(torch.stack(parts).mean())
    return result | {"seconds a step": seconds / steps}


def kept(folder: Path, key: dict[str, Any], compute: Callable[[], dict[str, float]]) -> Any:
    """The result of a run, from its file where that is finished."""
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    path = folder / f"{name}.json"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        atomic_write_text(path, json.dumps(key | {"result": compute()}) + "\n")
    return json.loads(path.read_text("utf-8"))["result"]


def compare(name: str, args: Any) -> dict[str, Any]:
    """Both optimizers on a problem, on paired seeds."""
    problem = PROBLEMS[name](args.data_dir)
    steps = args.steps or problem.steps
    path = Path(args.learned)
    known = hashlib.sha256(path.read_bytes()).hexdigest()[:16] if path.is_file() else args.learned

    def one(optimizer: str, rate: float, seed: int) -> dict[str, float]:
        what = "adamw" if optimizer == "adamw" else known
        key = {"problem": name, "steps": steps, "optimizer": what, "rate": rate, "seed": seed}
        print(f"{name}: {optimizer} {rate or ''}, seed {seed}", file=sys.stderr, flush=True)
        return kept(args.out / "large", key, lambda: run(problem, optimizer, rate, seed, steps))

    tuning = {rate: one("adamw", rate, TUNING_SEED) for rate in RATES}
    rate = min(RATES, key=lambda r: finite(tuning[r]["train"]))
    seeds = range(FIRST_SEED, FIRST_SEED + args.seeds)
    adamw = [one("adamw", rate, seed) for seed in seeds]
    learned = [one(args.learned, 0.0, seed) for seed in seeds]
    ratios = {}
    for loss in ("train", "test", "mean"):
        logs = [math.log(finite(a[loss]) / b[loss]) for a, b in zip(learned, adamw)]
        ratios[loss] = interval(logs)
    return {"rate": rate, "tuning": tuning, "adamw": adamw, "learned": learned, "ratios": ratios}


def finite(x: float) -> float:
    return x if math.isfinite(x) else 1e9


def interval(logs: Sequence[float]) -> list[float]:
    """The geometric mean and its 95% interval (Student's t over seeds)."""
    mean, wide = float(np.mean(logs)), 0.0
    if len(logs) > 1:
        wide = float(student.ppf(0.975, len(logs) - 1) * np.std(logs, ddof=1) / len(logs) ** 0.5)
    return [math.exp(x) for x in (mean, mean - wide, mean + wide)]


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    defaults: dict[str, Any] = {
        "learned": "general",
        "data_dir": None,
        "problems": ",".join(PROBLEMS),
    }
    defaults |= {"seeds": (1, 5), "steps": (20, 0)}
    args, content = harness.begin("large", __doc__, argv, **defaults)
    rows = []
    for name in args.problems.split(","):
        content[name] = result = compare(name, args)
        cost = [np.median([x["seconds a step"] for x in result[o]]) for o in ("learned", "adamw")]
        ratios = [f"{m:.3g} [{a:.3g}, {b:.3g}]" for m, a, b in result["ratios"].values()]
        rows.append([name, f"{result['rate']:g}", *ratios, f"{cost[0] / cost[1]:.1f}x"])
    header = ("over tuned AdamW", "its rate", "final loss", "test loss", "mean loss", "step time")
    harness.print_table(header, rows)
    content["kept"] = {
        name: harness.within(
            f"{name}: final loss over AdamW's", content[name]["ratios"]["train"][0], BOUND
        )
        for name in args.problems.split(",")
    }
    harness.save(args, content)
    return content


if __name__ == "__main__":
    main()
