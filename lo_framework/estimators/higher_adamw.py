"""AdamW for the package ``higher``: an independent way to the same meta-gradients, by module
patching instead of ``torch.func``.

``higher`` 0.2.1 knows no AdamW, and its Adam differs from torch's (eps inside the bias correction)
and loses the gradient of learned betas (it takes the square root of the bias correction with
``math``). The one registered here has torch's conventions (Loshchilov & Hutter 2019: decoupled
decay of the old parameters), and every hyper-parameter may be a tensor with a gradient that differs
from step to step.
"""

from __future__ import annotations

import functools
import warnings
from typing import Any

import torch
from torch import Tensor

from lo_framework.optional import require
from lo_framework.spec import UserError

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
    keeps = [torch.as_tensor(x, dtype=p.dtype, device=p.device) for x in _keeps(group)]
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


def _keeps(group: dict[str, Any]) -> Any:
    return group["keeps"] if "keeps" in group else [1 - beta for beta in group["betas"]]
