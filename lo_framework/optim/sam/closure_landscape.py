"""The loss behind a training loop's closure as a `regularizers.base.Landscape`.

A closure can only be run: it computes the loss of the model's parameters as they are, and puts the
gradient into ``.grad``. So `ClosureLandscape.gradient` moves the parameters, runs the closure, and
puts everything back, from copies, whatever happens in between: parameters, gradients, random state,
and the model's buffers where the model is known.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, NoReturn, TypeVar

import torch
from torch import Tensor

from lo_framework.errors import UserError
from lo_framework.optim.backward_watch import BackwardWatch
from lo_framework.optim.interrupts import Held
from lo_framework.optim.refusals import refuse_complex, refuse_sparse
from lo_framework.optim.sam.surroundings import Surroundings
from lo_framework.regularizers.base import Batch, Landscape, Params

T = TypeVar("T")
_WORD = (1 << 63) - 1


class NotFiniteError(FloatingPointError):
    """A loss or a gradient away from the current point is infinite or NaN."""


class Passes:
    """Makes closures into passes: run with gradients enabled, and unscaled.

    A scaler unscales an optimizer's gradients once per step. To it, each pass is therefore an
    optimizer of its own, and its ``update`` hears of the overflows of every pass.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._optimizer = optimizer
        # All that a scaler looks at in an optimizer is its groups; it knows optimizers by identity,
        # so these must outlive the step.
        self._keys: list[Any] = []

    def of(
        self, closure: Callable[[], T], scaler: torch.amp.GradScaler | None, owner: str
    ) -> Callable[[], T]:
        """A function that runs the passes of one step, each by a call.

        Raises:
            UserError: by the first pass, if it adds to gradients that were there before: later
                passes would see a part of the batch only.
        """
        count = 0

        def run() -> T:
            nonlocal count
            groups = self._optimizer.param_groups
            watched = [] if count else [p for group in groups for p in group["params"]]
            with torch.enable_grad(), BackwardWatch(watched) as watch:
                result = closure()
            if watch.onto_old:
                raise UserError(
                    f"{owner}: the closure added to gradients that were there before step: it must "
                    "zero the gradients and run all micro-batches itself, since it is run at "
                    "several points"
                )
            if scaler is not None:
                if count == len(self._keys):
                    self._keys.append(SimpleNamespace())
                self._keys[count].param_groups = groups
                scaler.unscale_(self._keys[count])
            count += 1
            return result

        return run


class GradientLandscape:
    """A landscape of which there are gradients alone; who gets them says `gradient`.

    Args:
        home: copies of the parameters at the current point.
        seed: of `uniform`; another one each step.
    """

    def __init__(self, home: Params, seed: int) -> None:
        self.home, self.seed = home, seed

    def gradient(self, params: Params) -> tuple[Tensor, Params]:
        raise NotImplementedError

    def loss(self, params: Params) -> NoReturn:
        raise UserError(
            "a closure gives a loss that nothing can be differentiated through; use its gradient"
        )

    def hvp(self, params: Params, direction: Params) -> NoReturn:
        raise UserError(
            "a closure gives no Hessian-vector products; choose a regularizer that needs gradients "
            "only"
        )

    @property
    def batch(self) -> Batch:
        raise UserError(
            "this regularizer changes the data, and a closure hides them: change them in the "
            "closure"
        )

    def on(self, batch: Batch) -> Landscape:
        raise UserError(
            "this regularizer needs the loss on other data, and a closure hides the data"
        )

    def uniform(self, shape: tuple[int, ...], stream: int) -> Tensor:
        """Numbers by a generator of its own: the global ones stay where they are."""
        device = next(iter(self.home.values())).device
        generator = torch.Generator(device).manual_seed(mixed(self.seed, stream))
        return torch.rand(shape, generator=generator, device=device, dtype=torch.float64)


class ClosureLandscape(GradientLandscape):
    """The loss of one batch, that of ``run``, as a function of ``params``.

    Args:
        run: computes loss and gradients at the parameters' values, and returns the loss.
        params: the parameters themselves, those with a gradient.
        home: copies of them, to go back to.
        seed: of `uniform`; another one each step.
    """

    def __init__(
        self,
        run: Callable[[], Any],
        params: Mapping[str, Tensor],
        home: Params,
        surroundings: Surroundings,
        seed: int,
    ) -> None:
        super().__init__(home, seed)
        self.run, self.params, self.surroundings = run, params, surroundings

    @torch.no_grad()
    def gradient(self, params: Params) -> tuple[Tensor, Params]:
        """One run of the closure.

        Raises:
            NotFiniteError: the loss or the gradient is infinite or NaN.
        """
        with Held() as held, self.surroundings.kept():
            try:
                assign(self.params, params)
                with held.released():
                    result = self.run()
                loss = loss_of(result, self.home)
                grad = gradients(self.params, self.home)
            finally:
                assign(self.params, self.home)
        refuse_broken(loss, grad)
        return loss, grad


def mixed(seed: int, stream: int) -> int:
    """A seed of its own for every pair: splitmix64."""
    x = (seed + 0x9E3779B97F4A7C15 * (stream + 1)) & ((1 << 64) - 1)
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & ((1 << 64) - 1)
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & ((1 << 64) - 1)
    return (x ^ (x >> 31)) & _WORD


def active_of(params: Sequence[Tensor], owner: str) -> dict[str, Tensor]:
    """Those with a gradient, by their places: names that stay when others come or go.

    Raises:
        UserError: one is complex, or they are on several devices.
    """
    active = {str(i): p for i, p in enumerate(params) if p.grad is not None and p.numel()}
    refuse_mixed(active.values(), owner)
    return active


def refuse_mixed(params: Collection[Tensor], owner: str) -> None:
    """Raise UserError if a parameter is complex, or they are on several devices."""
    refuse_complex(params, owner)
    devices = sorted({str(p.device) for p in params})
    if len(devices) > 1:
        raise UserError(
            f"{owner} needs all parameters on one device; these are on {', '.join(devices)}"
        )


def copies(params: Mapping[str, Tensor]) -> Params:
    """Copies in the dtype of a regularizer's arithmetic, float32, or float64 if any is."""
    double = torch.float64 in {p.dtype for p in params.values()}
    dtype = torch.float64 if double else torch.float32
    return {name: p.detach().to(dtype, copy=True) for name, p in params.items()}


def set_gradients(params: Mapping[str, Tensor], grads: Params) -> None:
    """Write the gradients that the base is to see."""
    for name, p in params.items():
        if p.grad is None:
            p.grad = torch.empty_like(p)
        p.grad.copy_(grads[name])


def step_base(base: torch.optim.Optimizer, loss: Tensor) -> None:
    """One step of ``base`` from the gradients that are there; the loss for one that looks at it."""
    if getattr(base, "takes_loss", False):
        base.step(loss=loss)  # type: ignore[call-overload]
    else:
        base.step()


def gradients(params: Mapping[str, Tensor], like: Params) -> Params:
    """Copies of the gradients, in the dtype of ``like``: a reducer of gradients may use their
    memory again. None is 0.

    Raises:
        UserError: a gradient is sparse.
    """
    for p in params.values():
        if p.grad is not None:
            refuse_sparse(p.grad, "regularizers")
    return {
        name: torch.zeros_like(like[name])
        if p.grad is None
        else p.grad.detach().to(like[name].dtype, copy=True)
        for name, p in params.items()
    }


def loss_of(result: Any, like: Params) -> Tensor:
    """The loss that a closure returned, 0-d, where and in the dtype of ``like``."""
    if result is None or (isinstance(result, Tensor) and result.numel() != 1):
        what = "nothing" if result is None else f"a tensor of shape {tuple(result.shape)}"
        raise UserError(f"the closure must return the loss, one number; it returned {what}")
    first = next(iter(like.values()))
    return torch.as_tensor(result).detach().reshape(()).to(first)


def is_finite(loss: Tensor, grad: Params) -> bool:
    """Loss and norm of the gradient, which the rules divide by, in one look: on an accelerator it
    waits.
    """
    return bool(torch.nn.utils.get_total_norm(list(grad.values())).isfinite() & loss.isfinite())


def broken_at_home(owner: str) -> NotFiniteError:
    return NotFiniteError(
        f"{owner}: the loss or its gradient is not finite; the weights are as before"
    )


def refuse_broken(loss: Tensor, grad: Params) -> None:
    """Raise NotFiniteError if the loss or gradient at a perturbed point is not finite."""
    if not is_finite(loss, grad):
        raise NotFiniteError(
            "the loss or gradient at a perturbed point is not finite; the weights are as "
            "before the step: try a smaller rho or learning rate"
        )


def assign(params: Mapping[str, Tensor], values: Params) -> None:
    """Move the parameters to these values."""
    for name, p in params.items():
        p.copy_(values[name])
    # where autocast was entered outside of the closure, casts of the old weights remain
    torch.clear_autocast_cache()
