"""The recipes of docs/loops.md and docs/use, in other loops than their pages have."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lo_framework as lo
from lo_framework.optim import SAM, Learned
from tests.documents.page import blocks
from tests.lo_framework.optim.test_options import network, weights
from tests.lo_framework.optim.tools import generator

DOCS = Path(__file__).resolve().parents[3] / "docs"
PAGES = [
    DOCS / name for name in ("loops.md", "use/plain.md", "use/trainer.md", "use/accelerate.md")
]
BLOCKS = [text for page in PAGES for kind, text, _ in blocks(page) if kind == "python"]


def data(rows: int = 12) -> tuple[Tensor, Tensor]:
    g = generator(4)
    return torch.randn(rows, 4, generator=g), torch.randint(3, (rows,), generator=g)


def names() -> dict[str, Any]:
    x, y = data()
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=4)
    loss_fn = nn.functional.cross_entropy
    found = {"x": x, "y": y, "loader": loader, "loss_fn": loss_fn, "model": network()}
    return found | {"torch": torch, "nn": nn, "lo": lo}


def run(marker: str, given: dict[str, Any]) -> dict[str, Any]:
    """Run the one block with ``marker`` in it."""
    (block,) = [block for block in BLOCKS if marker in block]
    exec(compile(block, marker, "exec"), given)
    return given


def needs(package: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of that package, on being imported
        pytest.importorskip(package)


def test_a_scheduler_where_there_is_no_num_steps() -> None:
    given = names()
    run("OneCycleLR", given)
    loss = nn.functional.cross_entropy(given["model"](given["x"]), given["y"])
    assert float(loss.detach()) < 0.7


def as_the_trainer_sees_it(model: nn.Module) -> nn.Module:
    """A model whose forward gives the loss, with dropout."""

    class WithLoss(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.drop = model, nn.Dropout(0.2)

        def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
            logits = self.inner(self.drop(x))
            return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}

    return WithLoss()


def trainer_of(trainer: Any, model: nn.Module, optimizer: Any, folder: Path, **options: Any) -> Any:
    from transformers import TrainingArguments

    x, y = data(24)
    rows = [{"x": a, "labels": b} for a, b in zip(x, y)]
    arguments = TrainingArguments(
        str(folder),
        max_steps=6,
        per_device_train_batch_size=4,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        logging_steps=2,
        max_grad_norm=0.0,
        save_strategy="steps",
        save_steps=3,
        seed=5,
    )
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: 1.0 / (1 + t))
    return trainer(
        model, arguments, train_dataset=rows, optimizers=(optimizer, scheduler), **options
    )


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_sam_in_a_transformers_trainer(tmp_path: Path) -> None:
    """It is SAM's, and a run that is stopped and resumed ends with the same bits."""
    needs("transformers")
    made = run("class SAMTrainer", {"Trainer": sys.modules["transformers"].Trainer})["SAMTrainer"]

    def start(folder: str) -> tuple[nn.Module, Any]:
        model = as_the_trainer_sees_it(network())
        sam = SAM(torch.optim.AdamW(model.parameters(), lr=0.02), rho=0.2, model=model)
        return model, trainer_of(made, model, sam, tmp_path / folder)

    whole, trainer = start("whole")
    trainer.train()
    assert trainer.optimizer.optimizer._rule_state.steps == 6
    assert not torch.equal(weights(whole), weights(as_the_trainer_sees_it(network())))
    resumed, again = start("again")
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    assert torch.equal(weights(resumed), weights(whole))

    from transformers import Trainer

    plain = as_the_trainer_sees_it(network())
    other = torch.optim.AdamW(plain.parameters(), lr=0.02)
    trainer_of(Trainer, plain, other, tmp_path / "plain").train()
    assert not torch.equal(weights(plain), weights(whole))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_sam_under_accelerate() -> None:
    needs("accelerate")
    given = run(
        "accelerator = Accelerator()",
        names() | {"Accelerator": sys.modules["accelerate"].Accelerator},
    )
    model = network()
    optimizer = SAM(torch.optim.AdamW(model.parameters(), lr=1e-3), rho=0.05)
    for x, y in names()["loader"]:

        def closure(x: Tensor = x, y: Tensor = y) -> Tensor:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x), y)
            loss.backward()
            return loss

        optimizer.step(closure)
    assert torch.equal(weights(given["model"]), weights(model))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_logs_of_a_transformers_trainer(tmp_path: Path) -> None:
    needs("transformers")
    from transformers import Trainer

    callback = run("class LogOptimizer", {})["LogOptimizer"]
    model = as_the_trainer_sees_it(network())
    trainer = trainer_of(Trainer, model, Learned(model, "general"), tmp_path)
    trainer.add_callback(callback(trainer))
    trainer.train()
    told = [entry for entry in trainer.state.log_history if "learned/decay/inner.0.bias" in entry]
    assert [entry["step"] for entry in told] == [2, 4, 6]


def test_settings_of_a_guard(capsys: pytest.CaptureFixture[str]) -> None:
    given = run("GuardConfig", names())
    assert given["strict"].is_guarded and capsys.readouterr().out == "0 False\n"
