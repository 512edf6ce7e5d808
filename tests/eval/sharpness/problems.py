"""Small problems for the tests of the sharpness measures."""

from __future__ import annotations

import torch
from torch import Tensor

from lo_framework.eval.sharpness.surface import Surface
from lo_framework.layout import Layout
from lo_framework.optimizees.datasets.splits import Dataset
from lo_framework.optimizees.models.mlp import MLP, MLPConfig
from lo_framework.optimizees.task import Batch, Buffers, ClassificationTask, Params, Task

F64 = torch.float64


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Function(Task):
    """``f(x)`` of one vector; its data are ``rows`` rows of zeros, without influence."""

    def __init__(self, f, rows: int = 1) -> None:
        super().__init__(name="function", batch_size=1)
        self.f, self.rows = f, rows

    def metrics(self, params: Params, buffers: Buffers, batch: Batch) -> dict[str, Tensor]:
        return {"loss": self.f(params["x"])}

    def full(self, split: str) -> Batch:
        return (torch.zeros(self.rows, 1),)


def function_surface(f, x: Tensor, dtype: torch.dtype = F64) -> Surface:
    task = Function(f)
    return Surface(task, Layout.of({"x": x.shape}), x, {}, task.full("train"), dtype=dtype)


def quadratic(eigenvalues: list[float], seed: int = 1) -> Tensor:
    """A symmetric matrix, float64, with these eigenvalues."""
    n = len(eigenvalues)
    basis = torch.linalg.qr(torch.randn(n, n, generator=generator(seed), dtype=F64)).Q
    return basis @ torch.diag(torch.tensor(eigenvalues, dtype=F64)) @ basis.T


def small_task(
    act: str = "tanh", rows: int = 100, hidden: tuple[int, ...] = (12,)
) -> ClassificationTask:
    """Three classes in eight dimensions."""
    g = generator(3)
    x = torch.rand(rows, 1, 2, 4, generator=g)
    y = (x.flatten(1) @ torch.randn(8, 3, generator=g)).argmax(1)
    splits = dict.fromkeys(("train", "valid", "test"), (x, y))
    data = Dataset(name="small", splits=splits, num_classes=3)
    model = MLP(MLPConfig(hidden=hidden, act=act), (8,), 3)  # type: ignore[arg-type]
    return ClassificationTask(model, data, name="small", batch_size=16)


def trained(
    task: Task, steps: int = 100, lr: float = 0.5, dtype: torch.dtype = F64, **options
) -> Surface:
    """The surface after some steps of SGD."""
    g = generator(5)
    params, buffers = task.init(g)
    layout = Layout.of({name: p.shape for name, p in params.items()})
    for _ in range(steps):
        batch, noise = task.batch("train", g), torch.tensor(0)
        grads, buffers = torch.func.grad(task.loss, has_aux=True)(params, buffers, batch, noise)
        params = {name: p - lr * grads[name] for name, p in params.items()}
    return Surface(
        task, layout, layout.flatten(params), buffers, task.full("train"), dtype=dtype, **options
    )
