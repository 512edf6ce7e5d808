"""Ordinary small models in ordinary loops, as a new user would try an optimizer on: `Learned`
without its guard and with it, as it is and ten times too bold, beside an AdamW whose rate (1e-3)
nobody tuned.

    python -m benchmarks.ordinary [--learned general] [--seeds 5] [--problems gpt2,...]

GPT-2 and BERT of two layers of width 64 (of `transformers`) on the bytes of Python's own help, runs
of fifty steps, an autoencoder, small tables, a residual net with BatchNorm, and a GAN. A final loss
is over fixed rows of the training split, floored at 1% of the loss that the run began with. Of the
GAN the highest loss of each net is compared with AdamW's.
"""

from __future__ import annotations

import math
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from benchmarks import harness
from benchmarks.large import dense
from benchmarks.ordinary_models import PROBLEMS, Problem, digits
from lo_framework.eval.statistics import iqm
from lo_framework.optim import Learned

FIRST_SEED = 30_000
RATE = 1e-3
FLOOR = 0.01  # of the first loss
MEAN, WORST, RANGE = 1.1, 1.5, 2.0  # of AdamW's final loss; of its highest loss
MEASURED = 512  # rows of a final loss
GAN_STEPS = 400

# How an optimizer is made for a model that is trained for so many steps.
Arm = Callable[[nn.Module, int], torch.optim.Optimizer]


def arms(learned: str) -> dict[str, Arm]:
    def of_file(lr: float, guard: bool) -> Arm:
        options: dict[str, Any] = {"lr": lr, "guard": guard}
        return lambda model, steps: Learned(model, learned, num_steps=steps, **options)

    return {
        "adamw": lambda model, _: torch.optim.AdamW(model.parameters(), lr=RATE),
        "unguarded": of_file(1.0, False),
        "guarded": of_file(1.0, True),
        "unguarded x10": of_file(10.0, False),
        "guarded x10": of_file(10.0, True),
    }


def trained(problem: Problem, arm: Arm, seed: int) -> dict[str, float]:
    """One run from ``seed``."""
    torch.manual_seed(seed)
    model, generator = problem.build(), torch.Generator().manual_seed(seed)
    optimizer, data = arm(model, problem.steps), problem.data()
    model.train()
    losses, begun = [], time.perf_counter()
    for _ in range(problem.steps):
        index = torch.randint(len(data[0]), (problem.rows,), generator=generator)
        loss = problem.loss(model, (data[0][index], data[1][index]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    seconds = (time.perf_counter() - begun) / problem.steps
    model.eval()
    fixed = torch.randperm(len(data[0]), generator=torch.Generator().manual_seed(0))[:MEASURED]
    with torch.no_grad():
        final = float(problem.loss(model, (data[0][fixed], data[1][fixed])))
    activations = getattr(optimizer, "guard_activations", 0)
    return {
        "final": final,
        "first": losses[0],
        "highest": max(losses),
        "seconds a step": seconds,
        "activations": activations,
    }


def adversarial(arm: Arm, seed: int) -> dict[str, Any]:
    """A GAN on digits: the losses of both nets at every step."""
    torch.manual_seed(seed)
    maker, judge = dense(16, 64, 64, 64), dense(64, 64, 64, 1)
    optimizers = [arm(model, GAN_STEPS) for model in (judge, maker)]
    data, losses = digits()[0], []
    for _ in range(GAN_STEPS):
        real = data[torch.randint(len(data), (32,))]
        made = torch.tanh(maker(torch.randn(32, 16))) / 2
        scores = judge(real), judge(made.detach())
        judged = F.softplus(-scores[0]).mean() + F.softplus(scores[1]).mean()
        optimizers[0].zero_grad()
        judged.backward()
        optimizers[0].step()
        fooled = F.softplus(-judge(made)).mean()
        optimizers[1].zero_grad()
        fooled.backward()
        optimizers[1].step()
        losses.append([float(judged.detach()), float(fooled.detach())])
    tops = np.max(losses, axis=0).tolist()
    activations = sum(getattr(o, "guard_activations", 0) for o in optimizers)
    return {"judge": tops[0], "maker": tops[1], "activations": activations}


def ratio(run: dict[str, float], adamw: dict[str, float]) -> float:
    """Final loss over AdamW's, both floored; infinite where it is not finite."""
    least = FLOOR * adamw["first"]
    final = run["final"]
    return max(final, least) / max(adamw["final"], least) if math.isfinite(final) else math.inf


def summary(name: str, runs: dict[str, list[dict[str, float]]]) -> dict[str, dict[str, float]]:
    """Of every arm but AdamW's: ratios to AdamW over the seeds."""
    out = {}
    for arm, results in runs.items():
        if arm == "adamw":
            continue
        result = {"activations": sum(run["activations"] for run in results)}
        if name == "gan":
            for who in ("judge", "maker"):
                tops = [max(run[who] for run in each) for each in (results, runs["adamw"])]
                result[who] = tops[0] / tops[1] if math.isfinite(tops[0]) else math.inf
        else:
            over = [ratio(a, b) for a, b in zip(results, runs["adamw"])]
            result |= {"median": float(np.median(over)), "worst": max(over)}
            result["highest"] = max(run["highest"] / run["first"] for run in results)
        out[arm] = result
    return out


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    defaults: dict[str, Any] = {
        "learned": "general",
        "problems": ",".join([*PROBLEMS, "gan"]),
        "seeds": (2, 5),
    }
    args, content = harness.begin("ordinary", __doc__, argv, **defaults)
    warnings.filterwarnings("ignore", message="Learned:")
    ways, names = arms(args.learned), args.problems.split(",")
    content |= {"problems": {}, "runs": {}}
    for name in names:
        one = adversarial if name == "gan" else partial(trained, PROBLEMS[name])
        runs: dict[str, list[dict[str, float]]] = {}
        for arm, make in ways.items():
            print(f"{name}: {arm}", file=sys.stderr, flush=True)
            runs[arm] = [one(make, FIRST_SEED + k) for k in range(args.seeds)]
        content["runs"][name], content["problems"][name] = runs, summary(name, runs)
    summaries = content["problems"]
    columns = ("median", "worst", "highest", "judge", "maker", "activations")
    lines = (
        [name, arm, *(result.get(column, "") for column in columns)]
        for name in names
        for arm, result in summaries[name].items()
    )
    harness.print_table(("problem", "optimizer", *columns), lines)
    content["over AdamW"] = {}
    for arm in [*ways][1:]:
        over = [
            ratio(a, b) for name in names if name != "gan" for a, b in pairs(content, name, arm)
        ]
        total = {"iqm": float(iqm(over)), "worst": max(over)} if over else {}
        content["over AdamW"][arm] = total
        for (key, value), bound in zip(total.items(), (MEAN, WORST)):
            harness.within(f"{arm}: final loss over AdamW's, {key}", value, bound)
        for who in ("judge", "maker") if "gan" in names else ():
            harness.within(f"{arm}: highest loss of the {who}", summaries["gan"][arm][who], RANGE)
    harness.save(args, content)
    return content


def pairs(content: dict[str, Any], name: str, arm: str) -> zip[tuple[Any, Any]]:
    """Runs of this arm and AdamW's, seed by seed."""
    runs = content["runs"][name]
    return zip(runs[arm], runs["adamw"])


if __name__ == "__main__":
    main()
