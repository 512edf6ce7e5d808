"""`task_from_module`: a person's nn.Module, loss function and data become a Task in one call."""

from __future__ import annotations

import copy
import math
import types
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_map

from lo_framework.optimizees.dropout import CounterDropout, replace_dropout
from lo_framework.optimizees.models.norms import MOMENTUM, batch_norm, moved, normalise
from lo_framework.optimizees.rows import Given, Rows, make_splits
from lo_framework.optimizees.task import Batch, Buffers, DataTask, Params
from lo_framework.spec import UserError, first_line

if TYPE_CHECKING:
    from typing_extensions import Self


def task_from_module(
    module: nn.Module,
    loss_fn: Callable[..., Tensor],
    data: Given,
    *,
    valid: Given | None = None,
    test: Given | None = None,
    batch_size: int = 64,
    name: str | None = None,
    num_classes: int | None = None,
    vmappable: bool = True,
) -> ModuleTask:
    """A task that trains (a private copy of) `module` by ``loss_fn(module(inputs), *targets)``.

    * Fresh parameters come from every submodule's ``reset_parameters``, children first; modules
      without one keep their values, and so do parameters with ``requires_grad=False``, which are
      constants of the task.
    * Dropout modules draw counter-based masks from the loss's `noise`; other random numbers in
      forward are refused.
    * Buffers (BatchNorm statistics) go in and come out as values. `metrics` runs in evaluation
      mode.

    Args:
        loss_fn: gives the mean loss of a batch, 0-d.
        data: ``(inputs, *targets)`` with rows first, or a DataLoader of such batches, which is read
            into memory once.
        valid, test: the like; each that is not given is 10 % of `data`, cut by a fixed permutation.
        name: what reports call the task; default the module's class name.
        num_classes: C of a classifier with integer targets: losses are normalised by log C and
            metrics have "accuracy". Default: recognised from [B, C] outputs and one int64 target
            below C; otherwise losses are normalised by the loss at one fixed initialisation.
        vmappable: False for a module that `torch.func.vmap` cannot take (recurrent layers, branches
            on data): its tasks then run one at a time, for which ``--learned hyper-adamw
            --inner-backend higher`` is made.

    Raises:
        UserError: no trainable float32 parameter, unusable data, BatchNorm with batches of 1, a
            module that draws random numbers or cannot run under `torch.func.vmap`, a loss that is
            no finite 0-d tensor.
    """
    name = name or type(module).__name__
    if batch_size < 1:
        raise UserError(f"{name}: batch_size must be at least 1, found {batch_size}")
    _check_parameters(module, name)
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm)]
    if norms and batch_size == 1:
        raise UserError(f"{name}: BatchNorm needs batches of at least 2 rows, batch_size is 1")
    if any(m.momentum is None for m in norms):
        raise UserError(
            f"{name}: BatchNorm(momentum=None), a cumulative average, cannot be vmapped; set a "
            "momentum"
        )
    splits = make_splits(data, valid, test, name)
    task = ModuleTask(
        module, loss_fn, splits, name=name, batch_size=batch_size, num_classes=num_classes
    )
    task.vmappable = vmappable
    task.probe()
    return task


class ModuleTask(DataTask):
    """See `task_from_module`. `module` is the private copy; its trainable parameters and buffers
    are never read.
    """

    def __init__(
        self,
        module: nn.Module,
        loss_fn: Callable[..., Tensor],
        data: dict[str, Rows],
        *,
        name: str,
        batch_size: int,
        num_classes: int | None,
    ) -> None:
        super().__init__(name=name, batch_size=batch_size, data=data)
        self.module = copy.deepcopy(module).cpu()
        self.loss_fn = loss_fn
        self.num_classes = num_classes
        # A submodule that the person froze in evaluation mode inside a training module stays so.
        frozen = {m for m in self.module.modules() if self.module.training and not m.training}
        replace_dropout(self.module)
        self._switched = [m for m in self.module.modules() if m not in frozen]
        self._dropouts = {  # by the names of their noise
            f"{name}.noise": m
            for name, m in self.module.named_modules()
            if isinstance(m, CounterDropout)
        }
        for m in self.module.modules():
            if isinstance(m, _BatchNorm):
                m.forward = types.MethodType(_pure_batch_norm, m)  # type: ignore[method-assign]
        self._prototype = self.module

    def init(self, generator: torch.Generator) -> tuple[Params, Buffers]:
        seed = int(torch.randint(2**62, (), generator=generator))
        scratch = copy.deepcopy(self._prototype)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(
                seed
            )  # not torch.manual_seed, which would seed every GPU too
            _reset(scratch)
        params = {key: p.detach() for key, p in scratch.named_parameters() if p.requires_grad}
        buffers = {
            key: b.detach() for key, b in scratch.named_buffers() if key not in self._dropouts
        }
        return self._here(params), self._here(buffers)

    def loss(
        self, params: Params, buffers: Buffers, batch: Batch, noise: Tensor
    ) -> tuple[Tensor, Buffers]:
        output, buffers = self._run(params, buffers, batch[0], noise)
        return self.loss_fn(output, *batch[1:]), buffers

    def metrics(self, params: Params, buffers: Buffers, batch: Batch) -> dict[str, Tensor]:
        output, _ = self._run(params, buffers, batch[0], None)
        numbers = {"loss": self.loss_fn(output, *batch[1:])}
        if self.num_classes is not None:
            numbers["accuracy"] = (output.argmax(1) == batch[1]).to(torch.float32).mean()
        return numbers

    def to(self, device: torch.device | str) -> Self:
        other = super().to(device)
        # One copy of all three: the lists hold submodules.
        parts = copy.deepcopy((self.module, self._switched, self._dropouts))
        other.module, other._switched, other._dropouts = parts
        other.module.to(device)
        if isinstance(self.loss_fn, nn.Module):  # class weights and the like
            other.loss_fn = copy.deepcopy(self.loss_fn).to(device)
        return other

    def _run(
        self, params: Params, buffers: Buffers, x: Tensor, noise: Tensor | None
    ) -> tuple[Tensor, Buffers]:
        """The module's output and its buffers afterwards; evaluation mode without `noise`."""
        for m in self._switched:
            m.training = noise is not None
        for dropout in self._dropouts.values():
            dropout.calls = dropout.first
        # Buffers are cloned because modules update them in place; functional_call leaves the
        # results in `state`.
        state = {**params, **{key: b.clone() for key, b in buffers.items()}}
        if noise is not None:
            state.update(dict.fromkeys(self._dropouts, noise))
        output = functional_call(self.module, state, (x,))
        return output, {key: state[key] for key in buffers}

    def probe(self) -> None:
        """Run the task once, alone and vmapped, so that what cannot work is said now; finds
        `num_classes`, `scale`.

        Raises:
            UserError: see `task_from_module`.
        """
        generator = torch.Generator().manual_seed(0)
        params, buffers = self.init(generator)
        batch = self.batch("train", generator)
        noise = torch.zeros((), dtype=torch.int64)
        before = torch.get_rng_state()
        with torch.random.fork_rng(devices=[]):
            try:
                with torch.no_grad():
                    output, _ = self._run(params, buffers, batch[0], noise)
                    loss = self.loss_fn(output, *batch[1:])
            except Exception as error:
                raise UserError(
                    f"{self.name}: module or loss fails on a batch: {first_line(error)}"
                ) from error
            drew = not torch.equal(before, torch.get_rng_state())
        if drew:
            raise UserError(
                f"{self.name}: forward draws random numbers, which cannot be vmapped or replayed: "
                "use nn.Dropout modules (not F.dropout, not the dropout argument of attention or "
                "recurrent layers)"
            )
        if not isinstance(loss, Tensor) or loss.dim() != 0 or not bool(torch.isfinite(loss)):
            given = type(loss).__name__
            if isinstance(loss, Tensor):
                given = str(float(loss)) if loss.dim() == 0 else f"shape {list(loss.shape)}"
            raise UserError(
                f"{self.name}: the loss must be one finite number (0-d tensor), found {given}"
            )
        if self.vmappable:
            self._check_vmap(params, buffers, batch, noise)
        self._find_scale(output, batch, loss)

    def _check_vmap(self, params: Params, buffers: Buffers, batch: Batch, noise: Tensor) -> None:
        gradient = torch.func.grad_and_value(self.loss, has_aux=True)
        pairs = tree_map(lambda x: torch.stack([x, x]), (params, buffers, batch, noise))
        try:
            torch.func.vmap(gradient)(*pairs)
        except Exception as error:
            raise UserError(
                f"{self.name}: the module cannot run under torch.func.vmap: {first_line(error)}; "
                "vmappable=False trains it one task at a time"
            ) from error

    def _find_scale(self, output: Any, batch: Batch, loss: Tensor) -> None:
        logits = isinstance(output, Tensor) and output.dim() == 2 and output.shape[1] > 1
        classifies = logits and len(batch) == 2 and batch[1].dim() == 1
        if self.num_classes is None and classifies and batch[1].dtype == torch.int64:
            targets = self.data["train"][1]
            if int(targets.min()) >= 0 and int(targets.max()) < output.shape[1]:
                self.num_classes = output.shape[1]
        if self.num_classes is None:
            self.scale = max(abs(float(loss)), 1e-12)
        elif self.num_classes < 2 or not classifies:
            raise UserError(
                f"{self.name}: num_classes={self.num_classes} needs outputs [B, C] and one "
                "target [B]"
            )
        else:
            self.scale = math.log(self.num_classes)


def _check_parameters(module: nn.Module, name: str) -> None:
    tensors = [*module.parameters(), *module.buffers()]
    if any(is_lazy(t) for t in tensors):
        raise UserError(f"{name}: the module has lazy parameters: run it on one batch first")
    if not (trainable := [p for p in module.parameters() if p.requires_grad]):
        raise UserError(f"{name}: the module has no trainable parameters")
    if odd := sorted({str(p.dtype) for p in trainable} - {"torch.float32"}):
        raise UserError(
            f"{name}: trainable parameters must be float32, found {', '.join(odd)}: call "
            "module.float()"
        )


def _reset(module: nn.Module) -> None:
    """Draw fresh values, children before parents, so that a parent's own ``reset_parameters`` has
    the last word.
    """
    for m in reversed(list(module.modules())):
        direct = list(m.parameters(recurse=False))
        if direct and not any(p.requires_grad for p in direct):
            # entirely frozen: its values, and the statistics that belong to them, are constants
            continue
        # nn.MultiheadAttention and nn.Transformer call it `_reset_parameters`.
        reset = getattr(m, "reset_parameters", None) or getattr(m, "_reset_parameters", None)
        if callable(reset):
            reset()


def _pure_batch_norm(self: _BatchNorm, x: Tensor) -> Tensor:
    """BatchNorm's forward, making new statistics: those that torch updates in place could not be
    shared under vmap.
    """
    self._check_input_dim(x)
    mean, var = self.running_mean, self.running_var
    if not self.training and mean is not None and var is not None:
        return normalise(x, (mean, var), self.weight, self.bias, self.eps)
    y, moments = batch_norm(x, self.weight, self.bias, self.eps)
    if self.training and mean is not None and var is not None:
        momentum = MOMENTUM if self.momentum is None else self.momentum
        self.running_mean, self.running_var = moved(
            (mean, var), moments, x.numel() // x.shape[1], momentum
        )
        if self.num_batches_tracked is not None:
            self.num_batches_tracked = self.num_batches_tracked + 1
    return y
