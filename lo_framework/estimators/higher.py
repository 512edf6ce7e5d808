"""``--inner-backend higher``: truncated back-propagation by plain loops, for optimizees that
``vmap`` cannot take.

``nn.LSTM`` has no batching rule, and a module whose Python control flow looks at its data has no
vmapped form at all. Here one task at a time is unrolled with ``higher``: a patched module and a
differentiable AdamW whose hyper-parameters, tensor by tensor and step by step, are those of
``hyper-adamw``. Clocks, data and the objective are the vmapped engine's, so with the same generator
both give the same meta-gradient; the price is a Python loop over tasks and a device sync a step.

``higher`` 0.2.1 knows no AdamW, and its Adam differs from torch's (eps inside the bias correction)
and loses the gradient of learned betas (it takes the square root of the bias correction with
``math``). The one registered here has torch's conventions (Loshchilov & Hutter 2019: decoupled
decay of the old parameters), and every hyper-parameter may be a tensor with a gradient that differs
from step to step.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from lo_framework.episode import Carry, Draw, Losses, Need
from lo_framework.estimators.base import MetaGradient
from lo_framework.estimators.state import UnrollState
from lo_framework.estimators.tbptt import TBPTT, TBPTTConfig, pull
from lo_framework.estimators.truncation import Sums, Unroller
from lo_framework.layout import Layout
from lo_framework.learned.base import Theta
from lo_framework.learned.hyper_adamw import HyperAdamW
from lo_framework.optimizees.task import Batch, Buffers, Task
from lo_framework.optional import require
from lo_framework.spec import UserError, build_config, parse_spec

TINY = 1e-30  # keeps the derivative of sqrt finite at a second moment of exactly zero


def import_higher() -> Any:
    """The package ``higher``.

    Raises:
        UserError: it is not installed.
    """
    require("higher")
    with warnings.catch_warnings():
        # Compiling its sources, once per installation, warns of two spellings that do no harm.
        for text in (r".*invalid escape sequence", r'.*"is" with'):
            for category in (DeprecationWarning, SyntaxWarning):
                warnings.filterwarnings("ignore", message=text, category=category)
        import higher
    return higher


@functools.cache
def register_adamw() -> type:
    """Make ``torch.optim.AdamW`` known to ``higher``; returns the differentiable class. Any number
    of calls is one.

    State of a parameter: ``exp_avg``, ``exp_avg_sq`` as torch has them, and ``log_powers``, the
    logarithms of the products of the betas so far, because betas may change; a state with torch's
    ``step`` instead is taken over. A group may give ``keeps``, the pair 1 - betas, which betas near
    1 do not hold to full precision.
    """
    higher = import_higher()

    base: Any = higher.optim.DifferentiableOptimizer

    class DifferentiableAdamW(base):
        """Decoupled weight decay, eps outside the root, bias correction by running products."""

        def _update(self, grouped_grads: Any, **kwargs: Any) -> None:
            for index, (group, grads) in enumerate(zip(self.param_groups, grouped_grads)):
                if group["amsgrad"] or group["maximize"]:
                    raise UserError("the differentiable AdamW knows neither amsgrad nor maximize")
                for i, (p, g) in enumerate(zip(group["params"], grads)):
                    if g is not None:
                        group["params"][i] = _adamw(group, self.state[index][i], p, g)

    higher.register_optim(torch.optim.AdamW, DifferentiableAdamW)
    return DifferentiableAdamW


def _adamw(group: dict[str, Any], state: dict[str, Any], p: Tensor, g: Tensor) -> Tensor:
    """One step of one parameter: returns the new one, and leaves its new moments in ``state``."""
    keeps = group["keeps"] if "keeps" in group else [1 - beta for beta in group["betas"]]
    keeps = [torch.as_tensor(x, dtype=p.dtype, device=p.device) for x in keeps]
    lr, eps, weight_decay = group["lr"], group["eps"], group["weight_decay"]
    if "exp_avg" not in state:
        state.update(exp_avg=torch.zeros_like(p), exp_avg_sq=torch.zeros_like(p))
    if "log_powers" not in state:
        steps = float(state.pop("step", 0))
        state["log_powers"] = tuple(steps * torch.log1p(-keep) for keep in keeps)
    log_powers = tuple(log + torch.log1p(-keep) for log, keep in zip(state["log_powers"], keeps))
    m = (1 - keeps[0]) * state["exp_avg"] + keeps[0] * g
    v = (1 - keeps[1]) * state["exp_avg_sq"] + keeps[1] * g * g
    state.update(exp_avg=m, exp_avg_sq=v, log_powers=log_powers)
    correction1, correction2 = (
        -torch.expm1(log) for log in log_powers
    )  # 1 - beta^t, without cancellation
    denominator = (v / correction2 + TINY).sqrt() + eps
    return p * (1 - lr * weight_decay) - lr / correction1 * m / denominator


class TaskModule(nn.Module):
    """A task as ``higher`` wants it: a module with the task's parameters, whose forward gives
    (loss, new buffers).

    It serves a functional task and a wrapped module alike, and dropout and buffers keep the task's
    pure form.
    """

    def __init__(self, task: Task, layout: Layout, dtype: torch.dtype) -> None:
        super().__init__()
        self.task, self.layout = task, layout
        # By number: a parameter's own name may hold dots, which a module's may not.
        for i, slot in enumerate(layout.slots):
            zeros = torch.zeros(slot.shape, dtype=dtype, device=task.device)
            self.register_parameter(f"p{i}", nn.Parameter(zeros))

    def forward(self, buffers: Buffers, batch: Batch, noise: Tensor) -> tuple[Tensor, Buffers]:
        params = {slot.name: getattr(self, f"p{i}") for i, slot in enumerate(self.layout.slots)}
        return self.task.loss(params, buffers, batch, noise)


class HigherTBPTT(TBPTT):
    """Back-propagation without ``vmap``, for ``hyper-adamw`` only; states and results are those of
    ``TBPTT``.

    A task that goes non-finite stands still, scores as the objective scores an infinite loss, and
    has no part in the meta-gradient. Memory: the graph of one task's truncation; there are no
    segments.

    Raises:
        UserError: another kind of learned optimizer, ``segments`` other than 1, or ``higher`` is
            not installed.
    """

    def __init__(self, config: TBPTTConfig, unroller: Unroller) -> None:
        family, objective = unroller.family, unroller.objective
        if type(family.learned) is not HyperAdamW:
            raise UserError(
                "the inner backend higher meta-trains hyper-adamw only, not "
                f"{family.learned.kind}: choose hyper-adamw or the default inner backend"
            )
        if family.learned.explicit(family.learned.theta()) is not None:
            raise UserError("the inner backend higher has plain gradients only: leave sam_rho at 0")
        if objective.needs & ~Need.HELD or objective.names:
            raise UserError(
                "the inner backend higher has objectives of one loss only, as valid and train, "
                f"not {'+'.join(objective.terms)}"
            )
        if unroller.truncation.step_range > 1:
            raise UserError("the inner backend higher scales no steps: leave --step-range at 1")
        if unroller.family.teacher is not None:
            raise UserError("the inner backend higher has no teacher: leave --teacher at 0")
        if config.segments != 1:
            raise UserError(
                f"the inner backend higher has no segments: expected 1, found {config.segments}"
            )
        higher = import_higher()
        super().__init__(config, unroller)
        self.learned = copy.deepcopy(family.learned)
        self.optimizer_type = register_adamw()
        sample, _ = family.task.init(torch.Generator().manual_seed(0))
        dtype = next(iter(sample.values())).dtype
        self.module = TaskModule(family.task, family.layout, dtype)
        self.patched: Any = higher.patch.make_functional(self.module)
        # One group a tensor, as hyper-adamw has values by tensor; those given here are overridden
        # at every step.
        self.torch_optimizer = torch.optim.AdamW(
            [{"params": [p]} for p in self.module.parameters()]
        )

    def estimate(self, theta: Theta, state: UnrollState) -> tuple[MetaGradient, UnrollState]:
        """One truncation of every task, one after the other, and the gradient of its mean score."""
        unroller = self.unroller
        state, _ = unroller.restart_finished(state)
        draws = [unroller.draw(state, i) for i in range(unroller.truncation.unroll_length)]
        self.learned.load_theta(theta)
        # cuDNN's recurrent kernels have no second derivative; torch's own have.
        native = self.config.second_order and unroller.task.device.type == "cuda"
        flags = torch.backends.cudnn.flags(enabled=False) if native else contextlib.nullcontext()
        with flags:
            rows = [self._unroll(k, state.carry, draws) for k in range(unroller.num)]
        grads, total, final = tree_map(lambda *x: torch.stack(x), *rows)
        return self._estimate(state, [grads], Sums(total, torch.zeros_like(total), {}), final)

    def _unroll(
        self, k: int, carry: Carry, draws: list[tuple[Draw, Tensor]]
    ) -> tuple[Theta, Tensor, Carry]:
        """Task ``k`` through the truncation: gradient of its summed score, the score and its row of
        the carry.
        """
        task, objective = self.unroller.task, self.unroller.objective
        optimizer = self._start(k, carry)
        buffers = {name: x[k] for name, x in carry.buffers.items()}
        total = torch.zeros((), dtype=carry.params.dtype, device=carry.params.device)
        infinite = torch.full_like(total, torch.inf)
        alive, steps = bool(carry.alive[k]), 0
        for draw, live in draws:
            train, held = infinite, infinite
            if alive:
                train, new_buffers = self.patched(
                    buffers, tuple(x[k] for x in draw.train), draw.noise[k]
                )
                kept = self.patched.fast_params, [dict(group[0]) for group in optimizer.state]
                new = optimizer.step(
                    train,
                    override=self._hyper(draw.clock.progress[k]),
                    grad_callback=self._inner_gradients,
                )
                alive = bool(
                    torch.isfinite(
                        torch.stack([train.detach(), *(p.detach().sum() for p in new)])
                    ).all()
                )
                if alive:
                    buffers, steps = new_buffers, steps + 1
                    if not self.config.second_order:  # they belong to detached parameters
                        buffers = {name: x.detach() for name, x in buffers.items()}
                    if Need.HELD in objective.needs:
                        held, _ = self.patched(
                            buffers, tuple(x[k] for x in draw.held), draw.noise[k]
                        )
                else:
                    train = infinite
                    self.patched.update_params(kept[0])
                    for group, moments in zip(optimizer.state, kept[1]):
                        group[0] = moments
            score = objective.score(task, Losses(train[None], held[None], torch.zeros(1)))
            total = total + score[0] * live[k]
        row = self._row(k, carry, optimizer, buffers, alive, steps)
        return self._pull(total, alive), total.detach(), row

    def _start(self, k: int, carry: Carry) -> Any:
        """The patched module and a differentiable optimizer at the state of task ``k``."""
        layout = self.module.layout
        # holds the parameters of every step: drop the last unroll's, and their graph
        self.patched._fast_params = []
        self.patched.update_params(
            [
                x.detach().clone().requires_grad_()
                for x in layout.unflatten(carry.params[k]).values()
            ]
        )
        optimizer = self.optimizer_type(
            self.torch_optimizer, list(self.module.parameters()), fmodel=self.patched
        )
        m, v = (layout.unflatten(carry.state[name][k]) for name in ("m", "v"))
        for i, slot in enumerate(layout.slots):
            logs = tuple(carry.state["log_power"][k, :, i].unbind(0))
            optimizer.state[i][0] = {
                "exp_avg": m[slot.name],
                "exp_avg_sq": v[slot.name],
                "log_powers": logs,
            }
        return optimizer

    def _hyper(self, progress: Tensor) -> dict[str, list[Any]]:
        """hyper-adamw's values in force at ``progress``, one of each for every tensor, as
        ``higher``'s override.
        """
        raw = self.learned.hyper(self.module.layout, progress)  # [H, S]
        keep1, keep2 = torch.sigmoid(-raw[1:3]).unbind(0)
        return {
            "lr": list(raw[0].exp().unbind(0)),
            "keeps": list(zip(keep1.unbind(0), keep2.unbind(0))),
            "weight_decay": list(raw[3].exp().unbind(0)),
            "eps": list(raw[4].exp().unbind(0)),
        }

    def _inner_gradients(self, grads: list[Tensor | None]) -> list[Tensor]:
        """Zeros for a parameter that the loss does not reach (it still decays), as in the vmapped
        engine.
        """
        dense = [
            torch.zeros_like(p) if g is None else g for p, g in zip(self.patched.fast_params, grads)
        ]
        return dense if self.config.second_order else [g.detach() for g in dense]

    def _pull(self, total: Tensor, alive: bool) -> Theta:
        named = dict(self.learned.named_parameters())
        outputs = [(total, torch.ones_like(total))] if alive and total.requires_grad else []
        return dict(zip(named, pull(outputs, list(named.values()))))

    def _row(
        self, k: int, carry: Carry, optimizer: Any, buffers: Buffers, alive: bool, steps: int
    ) -> Carry:
        """Task ``k``'s part of a carry, detached, without the leading K."""
        layout = self.module.layout
        names = [slot.name for slot in layout.slots]
        moments = [group[0] for group in optimizer.state]

        def flat(tensors: list[Tensor]) -> Tensor:
            return layout.flatten({name: x.detach() for name, x in zip(names, tensors)})

        state = {
            "step": carry.state["step"][k] + steps,
            "log_power": torch.stack(
                [torch.stack(moment["log_powers"]).detach() for moment in moments], dim=1
            ),
            "m": flat([moment["exp_avg"] for moment in moments]),
            "v": flat([moment["exp_avg_sq"] for moment in moments]),
        }
        buffers = {name: x.detach() for name, x in buffers.items()}
        return Carry(
            flat(self.patched.fast_params),
            buffers,
            state,
            torch.full_like(carry.alive[k], alive),
            {},
        )


def make_higher(spec: str, unroller: Unroller) -> HigherTBPTT:
    """Build ``"tbptt"`` or ``"tbptt:second_order=false,clip_task=1"`` for this backend; raises
    UserError.
    """
    name, options = parse_spec(spec)
    if name != "tbptt":
        raise UserError(f"the inner backend higher has the estimator tbptt only, not {name!r}")
    config = build_config(TBPTTConfig, options, owner=name)
    return HigherTBPTT(config, unroller)
