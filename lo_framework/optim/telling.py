"""What an optimizer tells about itself: in a log, and in its ``repr``."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from lo_framework.errors import UserError

Values = dict[str, float | Tensor]  # numbers by name, tensors 0-d

# Of loggers. A LightningModule's ``log`` and a Trainer's ``log_metrics`` take two arguments.
METHODS = ("log_metrics", "log_dict", "log")


def write(writer: Any, values: Mapping[str, float | Tensor], step: int) -> None:
    """Write numbers to ``writer``: by its ``add_scalar(name, number, step)``, or all in one call of
    its ``log_metrics``, ``log_dict`` or ``log``, with the step where it takes one.

    Raises:
        UserError: it has none of these methods.
    """
    numbers = _numbers(values)
    if not numbers:
        return
    if hasattr(writer, "add_scalar"):
        for name, number in numbers.items():
            writer.add_scalar(name, number, step)
        return
    for name in METHODS:
        method = getattr(writer, name, None)
        if callable(method) and _takes(method, numbers):
            takes_step = _takes(method, numbers, step=step)
            method(numbers, step=step) if takes_step else method(numbers)
            return
    raise UserError(
        f"cannot log to {type(writer).__name__}: it has neither add_scalar (TensorBoard) nor "
        f"{', '.join(METHODS)} of a dict"
    )


def _takes(method: Callable[..., Any], *args: Any, **kwargs: Any) -> bool:
    """Whether it can be called like this."""
    try:
        inspect.signature(method).bind(*args, **kwargs)
    except TypeError:
        return False
    return True


def _numbers(values: Mapping[str, float | Tensor]) -> dict[str, float]:
    """Plain numbers; what lies on an accelerator is waited for once."""
    tensors = {name: x for name, x in values.items() if isinstance(x, Tensor)}
    told = list[float]()
    if tensors:
        device = next(iter(tensors.values())).device
        together = [x.detach().reshape(()).to(device, torch.float64) for x in tensors.values()]
        told = torch.stack(together).tolist()
    read = dict(zip(tensors, told))
    return {name: read[name] if name in read else float(x) for name, x in values.items()}


def counted(params: list[Tensor]) -> str:
    """``"1,234 parameters in 5 tensors"``."""
    size = several(sum(p.numel() for p in params), "parameter")
    return f"{size} in {several(len(params), 'tensor')}"


def several(num: int, what: str) -> str:
    """``"1 tensor"``, ``"1,234 tensors"``."""
    return f"{num:,} {what}{'s' * (num != 1)}"


def made(updates: int, steps: int | None) -> str:
    """``"step 3 of 10"``."""
    return f"step {updates:,}" + (f" of {steps:,}" if steps else "")


class Telling:
    """The methods of an optimizer that tells about itself; it says what by `_values`, `_about`.

    Attributes:
        log_prefix: what names in a log begin with.
    """

    log_prefix: ClassVar[str]
    param_groups: list[dict[str, Any]]

    def log(self, writer: Any, step: int, prefix: str | None = None) -> None:
        """Write what has been learned, as of the last step, under ``prefix/name``. It is computed
        here: steps cost no more for it. On an accelerator this waits for the device.

        * `Learned`: ``progress``, the part done of ``num_steps``, 0 to 1; ``guard/activations`` and
          ``guard/steps``, those that AdamW has still to make; and of every tensor that took part,
          as its kind says (`LearnedOptimizer.quantities`), ``step_size/<tensor>``, what the
          update's direction is multiplied by (AdamW's learning rate, for its family), times the
          group's ``lr``, and others: factors of the step are 1 where they change nothing, shares
          are 0 to 1. ``share/<tensor>`` of ``attention-mlp`` is that of the network's own direction
          in the update, by root mean squares at the present parameters (none without ``.grad``).
        * `MetaAdamW`: ``alpha/<group>`` and ``beta/<group>``, the factors of learning rate and
          decay, 1 at the start; ``skipped``, meta steps left out.
        * `MetaOptimize`: the step size of every ``<block>``, which a group's ``lr`` multiplies; of
          blocks within tensors ``<tensor>/min``, ``/median`` and ``/max``; ``skipped``,
          meta-gradients left out.

        Args:
            writer: TensorBoard's ``SummaryWriter``; or what takes a dict by ``log_metrics``
                (loggers of Lightning, MLflow), ``log_dict`` (a LightningModule, Fabric) or ``log``
                (a run of wandb, a transformers Trainer).
            step: of the training, for writers that take one.
            prefix: of all names; None: the class's own, ``log_prefix``.

        Raises:
            UserError: the writer has none of these methods.
        """
        with torch.no_grad():
            values = self._values()
        prefix = self.log_prefix if prefix is None else prefix
        write(writer, {f"{prefix}/{name}": value for name, value in values.items()}, step)

    def _values(self) -> Values:
        """What `log` writes."""
        raise NotImplementedError

    def _about(self) -> str:
        """The first line of the repr."""
        raise NotImplementedError

    def __repr__(self) -> str:
        lines = [f"{type(self).__name__} {self._about()} ("]
        for i, group in enumerate(self.param_groups):
            lines.append(f"Parameter Group {i}: {counted(group['params'])}")
            told = sorted(key for key, value in group.items() if value is not None)
            hidden = ("params", "param_names")  # long
            lines += [f"    {key}: {group[key]}" for key in told if key not in hidden]
        return "\n".join([*lines, ")"])
