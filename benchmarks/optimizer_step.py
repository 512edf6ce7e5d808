"""Step time and state memory of this framework's optimizers, as ratios to torch's AdamW, foreach
and fused.

    python -m benchmarks.optimizer_step [--quick] [--device cuda] [--out results]

One ``optimizer.step()`` on the tensors of a GPT-like transformer (embeddings; query-key-value,
output and MLP matrices; biases; norms) of about 0.1, 1 and 10 million float32 parameters, on one
thread. Gradients are fixed random tensors, the same for all. Contenders run in turn, round after
round (``harness``); a time is the median over rounds of the round's ratio, and the bounds are
judged by it. Memory is the bytes of all tensors in the optimizer's state. MetaAdamW's meta steps
are timed against a forward and backward pass (`meta_step`).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from benchmarks import harness, meta_step
from benchmarks.harness import Contender
from lo_framework.learned import make_learned
from lo_framework.optim import Learned, MetaAdamW, MetaOptimize, NetworkConfig

Shapes = dict[str, tuple[int, ...]]


class Transformer(NamedTuple):
    width: int
    layers: int
    vocabulary: int
    context: int


SIZES = {
    "0.1M": Transformer(48, 3, 256, 64),
    "1M": Transformer(128, 4, 1024, 512),
    "10M": Transformer(320, 6, 7680, 512),
    "100M": Transformer(768, 10, 36864, 1024),
    "tiny": Transformer(8, 1, 16, 8),
}
YARDS = ("AdamW foreach", "AdamW fused")
BOUNDS = {  # at most so many times the time of AdamW foreach
    "MetaOptimize adamw/lion, scalar": 1.4,
    "MetaOptimize adamw/lion, tensor": 1.0,
    "MetaAdamW, 8 layers": 1.5,
    "Learned attention": 1.5,
    "Learned attention-mlp": 4.0,
}
LARGE = {"Learned attention-mlp": 3.0}
UNGUARDED = "hyper-adamw", "attention-mlp", "scaled"
GUARD = 1.05  # times the step without a guard
COLUMNS = {
    "ms/step": "milliseconds",
    "x foreach": "time / AdamW foreach",
    "x fused": "time / AdamW fused",
    "bytes/param": "state_bytes_per_parameter",
    "x AdamW's": "memory / AdamW foreach",
}
MIN_SECONDS = 0.05  # of one contender's turn in a round, by AdamW's time


def shapes(size: Transformer) -> Shapes:
    """Names and shapes of a transformer's parameters; input and output embedding are one."""
    d = size.width
    parts: Shapes = {"norm1": (d,), "qkv": (3 * d, d), "out": (d, d)}
    parts |= {"norm2": (d,), "up": (4 * d, d), "down": (d, 4 * d)}
    named: Shapes = {"tokens.weight": (size.vocabulary, d), "positions.weight": (size.context, d)}
    for k in range(size.layers):
        for part, shape in parts.items():
            named |= {f"layers.{k}.{part}.weight": shape, f"layers.{k}.{part}.bias": shape[:1]}
    return named | {"norm.weight": (d,), "norm.bias": (d,)}


Build = Callable[[list[tuple[str, Tensor]]], torch.optim.Optimizer]


def optimizers() -> dict[str, Build]:
    """Builders of the compared optimizers, by name; each is called with named parameters."""
    adamw = partial(torch.optim.AdamW, lr=1e-6, weight_decay=0.1)
    network = NetworkConfig(layers=8, width=16)
    attending = partial(MetaAdamW, lr=1e-6, network=network)
    kinds = "hyper-adamw", "attention", "attention-mlp", "attention-mlp:hidden=16", "scaled"
    learned = {
        kind: partial(Learned, optimizer=make_learned(kind), num_steps=10**6) for kind in kinds
    }
    return {
        "AdamW foreach": partial(adamw, foreach=True),
        "AdamW fused": partial(adamw, fused=True),
        "MetaOptimize adamw/lion, scalar": partial(MetaOptimize, alpha0=1e-6),
        "MetaOptimize adamw/lion, tensor": partial(MetaOptimize, alpha0=1e-6, blocks="tensor"),
        **{f"Learned {kind}": build for kind, build in learned.items()},
        **{f"Learned {kind}, no guard": partial(learned[kind], guard=False) for kind in UNGUARDED},
        "MetaAdamW, 8 layers": attending,
        "MetaAdamW, 8 layers, every 10th": partial(attending, attend_every=10),
        "MetaAdamW, 8 layers as published": partial(attending, reproduce="paper"),
    }


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Bytes of the distinct tensors in an optimizer's state: those that are shared count once."""
    leaves = [x for x in tree_leaves(optimizer.state_dict()) if isinstance(x, Tensor) and x.numel()]
    return sum({(x.data_ptr(), x.dtype, x.shape): x.nbytes for x in leaves}.values())


def measure(size: Transformer, args: argparse.Namespace) -> dict[str, Any]:
    """Every optimizer on its own copy of the parameters, all with the same gradients."""
    generator = torch.Generator().manual_seed(0)
    start = {
        name: 0.02 * torch.randn(shape, generator=generator) for name, shape in shapes(size).items()
    }
    grads = [
        (0.01 * torch.randn(x.shape, generator=generator)).to(args.device) for x in start.values()
    ]
    built = {}
    for label, build in optimizers().items():
        named: list[tuple[str, Tensor]] = [
            (name, torch.nn.Parameter(x.to(args.device, copy=True))) for name, x in start.items()
        ]
        for (_, p), g in zip(named, grads):
            p.grad = g
        built[label] = build(named)
    yard = Contender("", built[YARDS[0]].step, 1)
    harness.interleave([yard], 3, args.device)
    steps = max(1, round(MIN_SECONDS / (5 if args.quick else 1) * yard.best))

    def turn(optimizer: torch.optim.Optimizer) -> None:
        for _ in range(steps):
            optimizer.step()

    contenders = {label: Contender(label, partial(turn, x), steps) for label, x in built.items()}
    harness.interleave([*contenders.values()], args.rounds, args.device)
    num = sum(x.numel() for x in start.values())
    memory = {label: state_bytes(x) / num for label, x in built.items()}
    rows = {}
    for label, c in contenders.items():
        row: dict[str, Any] = {"milliseconds": 1e3 / c.median}
        row["state_bytes_per_parameter"] = memory[label]
        for yard_label in YARDS:
            best, median = (1 / x for x in c.ratio(contenders[yard_label]))
            row |= {f"time / {yard_label}": median, f"time / {yard_label} (best)": best}
            row[f"memory / {yard_label}"] = memory[label] / memory[yard_label]
        rows[label] = row | {"seconds": c.seconds}
    counts = {"parameters": num, "tensors": len(start), "steps": steps, "rounds": args.rounds}
    return counts | {"optimizers": rows}


def judge(sizes: dict[str, Any]) -> list[dict[str, Any]]:
    """The required bounds, and whether they are fulfilled; printed too."""
    out = []
    for label, bound in BOUNDS.items():
        for name, size in sizes.items():
            bound = LARGE.get(label, bound) if size["parameters"] > 5e6 else bound
            ratio = size["optimizers"][label][f"time / {YARDS[0]}"]
            kept = harness.within(f"{label} at {name}, times {YARDS[0]}", ratio, bound)
            verdict = {"optimizer": label, "size": name, "ratio": ratio, "bound": bound}
            out.append(verdict | {"fulfilled": kept})
    for kind in UNGUARDED:
        for name, size in sizes.items():
            seconds = [
                size["optimizers"][f"Learned {kind}{what}"]["seconds"]
                for what in ("", ", no guard")
            ]
            ratio = median(a / b for a, b in zip(*seconds))
            kept = harness.within(f"the guard of {kind} at {name}, times none", ratio, GUARD)
            verdict = {"optimizer": f"{kind}, guard", "size": name, "ratio": ratio, "bound": GUARD}
            out.append(verdict | {"fulfilled": kept})
    return out


def panels(sizes: dict[str, Any]) -> dict[str, Any]:
    """Times and memory beside the yardstick's, an optimizer and size per bar."""
    return {
        what: {
            "bars": {
                f"{label}, {name}": row[f"{what} / {YARDS[0]}"]
                for name, size in sizes.items()
                for label, row in size["optimizers"].items()
            },
            "xlabel": f"times that of {YARDS[0]}",
        }
        for what in ("time", "memory")
    }


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    defaults = {"device": "cpu", "sizes": ("0.1M,1M", "0.1M,1M,10M"), "rounds": (3, 15)}
    args, content = harness.begin("optimizer_step", __doc__, argv, **defaults)
    names = args.sizes.split(",")
    for name in names:
        if name not in SIZES:
            args.error(f"unknown size {name!r}; there are {', '.join(SIZES)}")
    content["sizes"] = {}
    for name in names:
        size = content["sizes"][name] = measure(SIZES[name], args)
        harness.print_table(
            [f"{size['parameters']:,} parameters", *COLUMNS],
            [
                [label, *(row[key] for key in COLUMNS.values())]
                for label, row in size["optimizers"].items()
            ],
        )
    content["meta_step"] = meta_step.measure(3 if args.quick else 30, args.device)
    content["bounds"] = judge(content["sizes"])
    harness.save(args, content, **panels(content["sizes"]))
    return content


if __name__ == "__main__":
    main()
