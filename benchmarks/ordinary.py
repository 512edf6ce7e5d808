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

import itertools
import math
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import harness
from lo_framework.eval.statistics import iqm
from lo_framework.optim import Learned

FIRST_SEED = 30_000
RATE = 1e-3
FLOOR = 0.01  # of the first loss
MEAN, WORST, RANGE = 1.1, 1.5, 2.0  # of AdamW's final loss; of its highest loss
WINDOW, VOCABULARY = 32, 128  # bytes
MEASURED = 512  # rows of a final loss

Batch = tuple[Tensor, Tensor]
Loss = Callable[[nn.Module, Batch], Tensor]


class Problem(NamedTuple):
    build: Callable[[], nn.Module]
    loss: Loss
    data: Callable[[], Batch]
    rows: int
    steps: int


def dense(*sizes: int, act: Callable[[], nn.Module] = nn.ReLU) -> nn.Sequential:
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise(sizes):
        layers += [nn.Linear(a, b), act()]
    return nn.Sequential(*layers[:-1])


class Residual(nn.Module):
    """Three residual blocks with BatchNorm on images of 8x8."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, padding=1, bias=False)
        self.blocks = nn.ModuleList(self._block(width) for _ in range(3))
        self.norm, self.head = nn.BatchNorm2d(width), nn.Linear(width, 10)

    @staticmethod
    def _block(width: int) -> nn.Module:
        conv = partial(nn.Conv2d, width, width, 3, padding=1, bias=False)
        return nn.Sequential(
            nn.BatchNorm2d(width), nn.ReLU(), conv(), nn.BatchNorm2d(width), nn.ReLU(), conv()
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x.view(-1, 1, 8, 8))
        for block in self.blocks:
            x = x + block(x)
        return self.head(self.norm(x).relu().mean((2, 3)))


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)),
        *(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(128, 10)),
    )


@cache
def digits() -> Batch:
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    return torch.tensor(x / 16.0 - 0.5, dtype=torch.float32), torch.tensor(y)


@cache
def table(name: str) -> Batch:
    from sklearn import datasets

    x, y = getattr(datasets, f"load_{name}")(return_X_y=True)
    x, y = torch.tensor(x, dtype=torch.float32), torch.tensor(y)
    if name == "diabetes":
        y = ((y - y.mean()) / y.std()).float()
    return (x - x.mean(0)) / x.std(0), y


@cache
def windows() -> Batch:
    """Bytes of the help texts that come with Python, below 128, in windows."""
    from pydoc_data.topics import topics

    text = "\n".join(topics[name] for name in sorted(topics)).encode("ascii", "ignore")
    whole = torch.from_numpy(np.frombuffer(text, np.uint8).astype(np.int64))
    rows = whole[: len(whole) // WINDOW * WINDOW].view(-1, WINDOW)
    return rows, rows


def gpt2() -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=64,
        n_layer=2,
        n_head=2,
        n_positions=WINDOW,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=0,
    )
    return GPT2LMHeadModel(config)


def bert() -> nn.Module:
    from transformers import BertConfig, BertForMaskedLM

    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=256,
        max_position_embeddings=WINDOW,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return BertForMaskedLM(config)


def causal(model: nn.Module, batch: Batch) -> Tensor:
    return model(input_ids=batch[0], labels=batch[0]).loss


def masked(model: nn.Module, batch: Batch) -> Tensor:
    """Every seventh byte is hidden, another residue in every row."""
    x = batch[0]
    place = torch.arange(WINDOW) + torch.arange(len(x))[:, None]
    hidden = place % 7 == 0
    labels = torch.where(hidden, x, -100)
    return model(input_ids=torch.where(hidden, 0, x), labels=labels).loss


def classes(model: nn.Module, batch: Batch) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def rebuilt(model: nn.Module, batch: Batch) -> Tensor:
    return F.mse_loss(model(batch[0]), batch[0])


def regressed(model: nn.Module, batch: Batch) -> Tensor:
    return F.mse_loss(model(batch[0])[:, 0], batch[1])


PROBLEMS: dict[str, Problem] = {
    "gpt2": Problem(gpt2, causal, windows, 16, 120),
    "bert": Problem(bert, masked, windows, 16, 60),
    "gpt2-50": Problem(gpt2, causal, windows, 16, 50),
    "mlp": Problem(partial(dense, 64, 64, 10), classes, digits, 32, 200),
    "cnn": Problem(convolutional, classes, digits, 32, 200),
    "mlp-50": Problem(partial(dense, 64, 128, 128, 10), classes, digits, 32, 50),
    "tanh-50": Problem(partial(dense, 64, 64, 64, 64, 10, act=nn.Tanh), classes, digits, 32, 50),
    "residual-50": Problem(Residual, classes, digits, 32, 50),
    "autoencoder": Problem(
        partial(dense, 64, 64, 8, 64, 64, act=nn.GELU), rebuilt, digits, 32, 300
    ),
    "iris": Problem(partial(dense, 4, 32, 32, 3), classes, partial(table, "iris"), 16, 150),
    "wine": Problem(partial(dense, 13, 32, 32, 3), classes, partial(table, "wine"), 16, 150),
    "breast-cancer": Problem(
        partial(dense, 30, 64, 2), classes, partial(table, "breast_cancer"), 16, 150
    ),
    "diabetes": Problem(
        partial(dense, 10, 64, 64, 1), regressed, partial(table, "diabetes"), 16, 150
    ),
    "residual": Problem(Residual, classes, digits, 32, 200),
}
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
    rows = torch.randperm(len(data[0]), generator=torch.Generator().manual_seed(0))[:MEASURED]
    with torch.no_grad():
        final = float(problem.loss(model, (data[0][rows], data[1][rows])))
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
    for arm, own in runs.items():
        if arm == "adamw":
            continue
        result = {"activations": sum(run["activations"] for run in own)}
        if name == "gan":
            for who in ("judge", "maker"):
                tops = [max(run[who] for run in each) for each in (own, runs["adamw"])]
                result[who] = tops[0] / tops[1] if math.isfinite(tops[0]) else math.inf
        else:
            over = [ratio(a, b) for a, b in zip(own, runs["adamw"])]
            result |= {"median": float(np.median(over)), "worst": max(over)}
            result["highest"] = max(run["highest"] / run["first"] for run in own)
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
    found = content["problems"]
    columns = ("median", "worst", "highest", "judge", "maker", "activations")
    rows = (
        [name, arm, *(result.get(column, "") for column in columns)]
        for name in names
        for arm, result in found[name].items()
    )
    harness.print_table(("problem", "optimizer", *columns), rows)
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
            harness.within(f"{arm}: highest loss of the {who}", found["gan"][arm][who], RANGE)
    harness.save(args, content)
    return content


def pairs(content: dict[str, Any], name: str, arm: str) -> zip[tuple[Any, Any]]:
    """Runs of this arm and AdamW's, seed by seed."""
    runs = content["runs"][name]
    return zip(runs[arm], runs["adamw"])


if __name__ == "__main__":
    main()
