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

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from benchmarks import harness, meta_step
from benchmarks.harness import Contender
from lo_framework.learned import make_learned
from lo_framework.optim import Learned, MetaAdamW, MetaOptimize, NetworkConfig


class Transformer(NamedTuple):
    width: int
    layers: int
    vocabulary: int
    context: int


REQUIRED = ("0.1M", "1M", "10M")
SIZES = {
    "0.1M": Transformer(48, 3, 256, 64),
    "1M": Transformer(128, 4, 1024, 512),
    "10M": Transformer(320, 6, 7680, 512),
    "tiny": Transformer(8, 1, 16, 8),
}
YARDS = ("AdamW foreach", "AdamW fused")
BOUNDS = {  # at most so many times the time of AdamW foreach
    "MetaOptimize adamw/lion, scalar": 1.4,
    "MetaOptimize adamw/lion, tensor": 1.6,
    "MetaAdamW, 8 layers": 2.0,
}
MIN_SECONDS = 0.05  # of one contender's turn in a round, by AdamW's time


def shapes(size: Transformer) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a transformer's parameters; input and output embedding are one."""
    d = size.width
    layer = {
        "norm1.weight": (d,),
        "norm1.bias": (d,),
        "qkv.weight": (3 * d, d),
        "qkv.bias": (3 * d,),
        "out.weight": (d, d),
        "out.bias": (d,),
        "norm2.weight": (d,),
        "norm2.bias": (d,),
        "up.weight": (4 * d, d),
        "up.bias": (4 * d,),
        "down.weight": (d, 4 * d),
        "down.bias": (d,),
    }
    named: dict[str, tuple[int, ...]] = {
        "tokens.weight": (size.vocabulary, d),
        "positions.weight": (size.context, d),
    }
    for k in range(size.layers):
        named |= {f"layers.{k}.{name}": shape for name, shape in layer.items()}
    return named | {"norm.weight": (d,), "norm.bias": (d,)}


Build = Callable[[list[tuple[str, Tensor]]], torch.optim.Optimizer]


def optimizers() -> dict[str, Build]:
    """Builders of the compared optimizers, by name; each is called with named parameters."""

    def learned(kind: str) -> Build:
        return lambda named: Learned(named, make_learned(kind), num_steps=10**6)

    def attending(**settings: Any) -> Build:
        return lambda named: MetaAdamW(
            named, lr=1e-6, network=NetworkConfig(layers=8, width=16), **settings
        )

    return {
        "AdamW foreach": lambda named: torch.optim.AdamW(
            named, lr=1e-6, weight_decay=0.1, foreach=True
        ),
        "AdamW fused": lambda named: torch.optim.AdamW(
            named, lr=1e-6, weight_decay=0.1, fused=True
        ),
        "MetaOptimize adamw/lion, scalar": lambda named: MetaOptimize(
            named, alpha0=1e-6, base="adamw", meta="lion"
        ),
        "MetaOptimize adamw/lion, tensor": lambda named: MetaOptimize(
            named, alpha0=1e-6, blocks="tensor"
        ),
        **{
            f"Learned {kind}": learned(kind)
            for kind in ("hyper-adamw", "attention", "attention-mlp")
        },
        "MetaAdamW, 8 layers": attending(),
        "MetaAdamW, 8 layers, every 10th": attending(attend_every=10),
        "MetaAdamW, 8 layers as published": attending(reproduce="paper"),
    }


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Bytes of the distinct tensors in an optimizer's state: those that are shared count once."""
    leaves = [x for x in tree_leaves(optimizer.state_dict()) if isinstance(x, Tensor) and x.numel()]
    unique = {(x.data_ptr(), x.dtype, x.shape): x for x in leaves}
    return sum(x.numel() * x.element_size() for x in unique.values())


def measure(size: Transformer, rounds: int, device: str, min_seconds: float) -> dict[str, Any]:
    """Every optimizer on its own copy of the parameters, all with the same gradients."""
    generator = torch.Generator().manual_seed(0)
    start = {
        name: 0.02 * torch.randn(shape, generator=generator) for name, shape in shapes(size).items()
    }
    grads = [(0.01 * torch.randn(x.shape, generator=generator)).to(device) for x in start.values()]
    built = {}
    for label, build in optimizers().items():
        named: list[tuple[str, Tensor]] = [
            (name, torch.nn.Parameter(x.to(device, copy=True))) for name, x in start.items()
        ]
        for (_, p), g in zip(named, grads):
            p.grad = g
        built[label] = build(named)
    yard = Contender("", built[YARDS[0]].step, 1)
    harness.interleave([yard], 3, device)
    steps = max(1, round(min_seconds / min(yard.seconds)))

    def turn(optimizer: torch.optim.Optimizer) -> Callable[[], None]:
        def run() -> None:
            for _ in range(steps):
                optimizer.step()

        return run

    contenders = {
        label: Contender(label, turn(optimizer), steps) for label, optimizer in built.items()
    }
    harness.interleave([*contenders.values()], rounds, device)
    num = sum(x.numel() for x in start.values())
    memory = {label: state_bytes(optimizer) / num for label, optimizer in built.items()}
    rows = {}
    for label, c in contenders.items():
        rows[label] = {"milliseconds": 1e3 / c.median, "state_bytes_per_parameter": memory[label]}
        for yard_label in YARDS:
            best, median = (1 / x for x in c.ratio(contenders[yard_label]))
            rows[label][f"time / {yard_label}"], rows[label][f"time / {yard_label} (best)"] = (
                median,
                best,
            )
            rows[label][f"memory / {yard_label}"] = memory[label] / memory[yard_label]
        rows[label]["seconds"] = c.seconds  # type: ignore[assignment]
    return {
        "parameters": num,
        "tensors": len(start),
        "steps": steps,
        "rounds": rounds,
        "optimizers": rows,
    }


def judge(sizes: dict[str, Any]) -> list[dict[str, Any]]:
    """The required bounds, and whether they are fulfilled."""
    out = []
    for label, bound in BOUNDS.items():
        for name, size in sizes.items():
            ratio = size["optimizers"][label][f"time / {YARDS[0]}"]
            out.append(
                {
                    "optimizer": label,
                    "size": name,
                    "ratio": ratio,
                    "bound": bound,
                    "fulfilled": ratio <= bound,
                }
            )
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
    parser = harness.parser(__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--sizes", default="", help=f"of {', '.join(SIZES)}; default {','.join(REQUIRED)}"
    )
    args = parser.parse_args(argv)
    names = args.sizes.split(",") if args.sizes else [*REQUIRED[: 2 if args.quick else None]]
    for name in names:
        if name not in SIZES:
            parser.error(f"unknown size {name!r}; there are {', '.join(SIZES)}")
    torch.set_num_threads(1)
    content = harness.environment("benchmarks.optimizer_step", args.device) | {"sizes": {}}
    for name in names:
        rounds = args.rounds or (3 if args.quick else 15)
        size = measure(SIZES[name], rounds, args.device, MIN_SECONDS / (5 if args.quick else 1))
        content["sizes"][name] = size
        header = [
            f"{size['parameters']:,} parameters",
            "ms/step",
            "x foreach",
            "x fused",
            "bytes/param",
            "x AdamW's",
        ]
        keys = [
            "milliseconds",
            *(f"time / {y}" for y in YARDS),
            "state_bytes_per_parameter",
            f"memory / {YARDS[0]}",
        ]
        harness.print_table(
            header, [[label, *(row[k] for k in keys)] for label, row in size["optimizers"].items()]
        )
    content["meta_step"] = meta_step.measure(3 if args.quick else 30, args.device)
    meta_step.show(content["meta_step"])
    content["bounds"] = judge(content["sizes"])
    for b in content["bounds"]:
        word = "fulfilled" if b["fulfilled"] else "NOT fulfilled"
        times = f"{b['ratio']:.2f}x {YARDS[0]}, at most {b['bound']}x"
        print(f"{b['optimizer']} at {b['size']}: {times}: {word}")
    harness.save("optimizer_step", args, content, **panels(content["sizes"]))
    return content


if __name__ == "__main__":
    main()
