"""One small language model trained for two epochs of ten batches: in a plain loop, and in the loops
of others. Each gives the final weights, of a run that goes through or of one that was saved after
the first epoch and went on in new objects.
"""

from __future__ import annotations

import copy
import gc
import itertools
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

BATCHES, ROWS, LENGTH, WORDS = 10, 8, 6, 17
STEPS = 2 * BATCHES

Make = Callable[[Any], Any]  # an optimizer for a model
Loop = Callable[[Make, Path, bool], list[Tensor]]  # in a folder, and whether it is interrupted


class Model(nn.Module):
    """Next words by a convolution; ``forward`` gives the loss, as transformers' Trainer asks."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, 16)
        self.up, self.down = nn.Linear(32, 24), nn.Linear(24, 16)
        self.norm = nn.LayerNorm(16)
        self.head = nn.Linear(16, WORDS)

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        h = self.words(x)
        pairs = torch.cat([h, F.pad(h, (0, 0, 1, 0))[:, :-1]], dim=-1)
        logits = self.head(self.norm(h + self.down(F.gelu(self.up(pairs)))))
        return {"loss": F.cross_entropy(logits.flatten(0, 1), labels.flatten()), "logits": logits}


def new_model() -> Model:
    torch.manual_seed(3)
    return Model()


class Rows(torch.utils.data.Dataset):
    """Texts of a chain of words, and the words that follow."""

    def __init__(self) -> None:
        g = torch.Generator().manual_seed(7)
        follows = torch.randint(WORDS, (WORDS, 2), generator=g)
        word = torch.randint(WORDS, (BATCHES * ROWS,), generator=g)
        words = [word]
        for _ in range(LENGTH):
            side = torch.randint(2, (len(word),), generator=g)
            words.append(follows[words[-1], side])
        self.text = torch.stack(words, dim=1)

    def __len__(self) -> int:
        return len(self.text)

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        return {"x": self.text[i, :-1], "labels": self.text[i, 1:]}


def loader() -> Any:
    return torch.utils.data.DataLoader(Rows(), batch_size=ROWS)


def weights(model: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def plain(make: Make, folder: Path, interrupted: bool) -> list[Tensor]:
    model = new_model()
    optimizer = make(model)
    for epoch in range(2):
        if interrupted and epoch == 1:
            torch.save([model.state_dict(), optimizer.state_dict()], folder / "plain.pt")
            state = torch.load(folder / "plain.pt", weights_only=True)
            model = new_model()
            optimizer = make(model)
            model.load_state_dict(state[0])
            optimizer.load_state_dict(state[1])
        for batch in loader():
            optimizer.step(partial(closure, model, optimizer, batch))
    return weights(model)


def closure(model: nn.Module, optimizer: torch.optim.Optimizer, batch: Any) -> Tensor:
    optimizer.zero_grad()
    loss: Tensor = model(**batch)["loss"]
    loss.backward()
    return loss


def trainer_of_transformers(make: Make, folder: Path, interrupted: bool) -> list[Tensor]:
    """With an optimizer that was made before, or, where it is a class, by the Trainer."""
    from transformers import Trainer, TrainingArguments

    class InOrder(Trainer):
        def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Any:
            return torch.utils.data.SequentialSampler(self.train_dataset)

    def start() -> tuple[Model, Any]:
        model = new_model()
        arguments = TrainingArguments(
            str(folder),
            num_train_epochs=2,
            per_device_train_batch_size=ROWS,
            save_strategy="epoch",
            lr_scheduler_type="constant",
            learning_rate=1.0,
            max_grad_norm=0.0,
            use_cpu=True,
            report_to=[],
            disable_tqdm=True,
            logging_strategy="no",
        )
        made = make(model)
        if isinstance(made, tuple):
            given: dict[str, Any] = {"optimizer_cls_and_kwargs": made}
        else:
            constant = torch.optim.lr_scheduler.LambdaLR(made, lambda _: 1.0)
            given = {"optimizers": (made, constant)}
        return model, InOrder(model, arguments, train_dataset=Rows(), **given)

    model, trainer = start()
    trainer.train()
    if interrupted:
        model, trainer = start()
        trainer.train(resume_from_checkpoint=str(folder / f"checkpoint-{BATCHES}"))
    return weights(model)


def accelerate(make: Make, folder: Path, interrupted: bool) -> list[Tensor]:
    from accelerate import Accelerator

    def start() -> tuple[Any, Any, Any, Any]:
        accelerator = Accelerator(cpu=True)
        model = new_model()
        return accelerator, *accelerator.prepare(model, make(model), loader())

    accelerator, model, optimizer, batches = start()
    for epoch in range(2):
        if interrupted and epoch == 1:
            accelerator.save_state(str(folder / "state"))
            accelerator, model, optimizer, batches = start()
            accelerator.load_state(str(folder / "state"))
        for batch in batches:
            optimizer.zero_grad()
            accelerator.backward(model(**batch)["loss"])
            optimizer.step()
    return weights(accelerator.unwrap_model(model))


def lightning(make: Make, folder: Path, interrupted: bool, manual: bool = False) -> list[Tensor]:
    import lightning as pl

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = new_model()
            self.automatic_optimization = not manual

        def configure_optimizers(self) -> Any:
            return make(self.model)

        def training_step(self, batch: Any, index: int) -> Any:
            loss = self.model(**batch)["loss"]
            if not manual:
                return loss
            optimizer: Any = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
            return None

    def train(epochs: int, checkpoint: str | None = None) -> list[Tensor]:
        module = Module()
        trainer = pl.Trainer(
            max_epochs=epochs,
            accelerator="cpu",
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
            default_root_dir=str(folder),
        )
        trainer.fit(module, loader(), ckpt_path=checkpoint)
        if epochs == 1:
            trainer.save_checkpoint(folder / "one.ckpt")
        return weights(module.model)

    if not interrupted:
        return train(2)
    train(1)
    return train(2, str(folder / "one.ckpt"))


def lightning_manual(make: Make, folder: Path, interrupted: bool) -> list[Tensor]:
    return lightning(make, folder, interrupted, manual=True)


def distributed(make: Make, folder: Path, interrupted: bool) -> list[Tensor]:
    """DistributedDataParallel with one process; the optimizer is of the wrapped model."""
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=0, world_size=1)
    try:
        inner = new_model()
        model = nn.parallel.DistributedDataParallel(inner)
        optimizer = make(model)
        for epoch, batch in itertools.product(range(2), loader()):
            if interrupted and epoch == 1 and batch is not None:
                state = copy.deepcopy(optimizer.state_dict())
                optimizer = make(model)
                optimizer.load_state_dict(state)
                interrupted = False
            optimizer.zero_grad()
            model(**batch)["loss"].backward()
            optimizer.step()
        return weights(inner)
    finally:
        del model, optimizer  # a wrapper that outlives its group waits for it
        gc.collect()
        dist.destroy_process_group()


LOOPS: dict[str, Loop] = {
    "plain": plain,
    "transformers Trainer": trainer_of_transformers,
    "accelerate": accelerate,
    "Lightning": lightning,
    "Lightning, manual": lightning_manual,
    "DDP": distributed,
}
NEEDS = {
    "transformers Trainer": "transformers",
    "accelerate": "accelerate",
    "Lightning": "lightning",
    "Lightning, manual": "lightning",
}
