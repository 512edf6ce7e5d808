"""What a meta step of MetaAdamW costs, in passes: one forward and backward of the model on one
batch.

The model is that of the paper's first task (arXiv 2605.04055): a pre-norm transformer encoder of
two layers, 128 wide, on windows of 96 numbers; the batch has 16. `optimizer_step` prints it.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks import harness
from benchmarks.harness import Contender
from lo_framework.optim import MetaAdamW, MetaConfig, NetworkConfig
from lo_framework.optim.metaadamw.meta_loss import OBJECTIVES, ORDERS

BOUND = 5.0  # of the combined objective with the usual settings, in passes
BATCH, WINDOW = 16, 96


class Forecaster(nn.Module):
    """[B, WINDOW, 1] to [B, 1]."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(128, 4, 512, 0.2, batch_first=True, norm_first=True)
        self.input, self.output = nn.Linear(1, 128), nn.Linear(128, 1)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.output(self.encoder(self.input(x))[:, -1])


def measure(rounds: int, device: str) -> dict[str, Any]:
    """Seconds of a pass and of meta steps, and medians over rounds of the round's ratio; printed
    too.
    """
    generator = torch.Generator().manual_seed(0)
    shapes = (BATCH, WINDOW, 1), (BATCH, 1)
    batches = [
        tuple(torch.randn(shape, generator=generator).to(device) for shape in shapes)
        for _ in range(3)
    ]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Forecaster().to(device)

    def loss_fn(batch: tuple[Tensor, ...]) -> Tensor:
        return nn.functional.mse_loss(model(batch[0]), batch[1])

    def one_pass() -> None:
        model.zero_grad()
        loss_fn(batches[0]).backward()

    settings = {f"combined, {order}": MetaConfig(order=order) for order in ORDERS}
    settings |= {name: MetaConfig(objective=name) for name in OBJECTIVES if name != "combined"}
    contenders = [Contender("forward and backward", one_pass, 1)]
    # Fused attention has no second derivative, so that all are timed with the plain one.
    with sdpa_kernel(SDPBackend.MATH):
        for label, meta in settings.items():
            optimizer = MetaAdamW(
                model.named_parameters(), lr=1e-6, network=NetworkConfig(layers=8), meta=meta
            )
            one_pass()
            optimizer.step()
            contenders.append(Contender(label, partial(optimizer.meta_step, loss_fn, *batches), 1))
        harness.interleave(contenders, rounds, device)
    rows: dict[str, dict[str, Any]] = {
        c.name: {
            "milliseconds": 1e3 / c.median,
            "passes": 1 / c.ratio(contenders[0])[1],
            "seconds": c.seconds,
        }
        for c in contenders
    }
    parameters = sum(p.numel() for p in model.parameters())
    harness.print_table(
        [f"meta step, {parameters:,} parameters", "ms", "x one pass"],
        [[name, *row.values()][:3] for name, row in rows.items()],
    )
    passes = rows["combined, difference"]["passes"]
    harness.within("passes of a combined meta step", passes, BOUND)
    return {"parameters": parameters, "rounds": rounds, "bound": BOUND, "rows": rows}
