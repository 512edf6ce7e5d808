"""When to stop trusting a learned optimizer: pure logic on numbers; `fallback` does what follows.

The guard is *violated* by a gradient or a loss that is not finite, and by a loss that rises. A
gradient that is not finite is only left out where the parameters are, up to `PATIENCE` times in a
row. A rise is seen in two ways.

* The gradients (`watch`), from the second step on and without the loss: what the last moves added
  to it, leaky over about ten steps, against ``rise`` times what AdamW's steps of 1e-3 would have
  gained, each, at the start of the run (1e-3 times the sum of absolute values of each tensor's
  first gradient). That is a number of steps, whatever the scale of the loss; where the first
  gradients are small beside what is to be learned (targets in the hundreds), `AGAIN` times what
  gradients say that the loss has fallen is more. The slope at the end of a move is more than the
  move added where the loss is curved, most so where every batch is the same; what tells a break
  from a bold step is that gradients grow with it, and stay large. So where they are not yet
  `GROWN` times as large as the first ones, the loss may rise by as much more; and where they are,
  the guard waits `DOUBT` steps for them to come back to what they were before the step (not soon
  after a break, nor after another such step, nor at `FAR` times the rise that is allowed).
  Where the loss is told, ``jump`` times the first one is a closer bound. What both let pass and
  catch on ordinary problems is what `benchmarks.ordinary` shows.
* The loss, where it is told, after a warm-up and while AdamW is not in charge: its exponential
  moving average (EMA), and three in four of the losses that it looks back on, may not be above

      best + (factor - 1) |best| + margin |first|

  with ``best`` the lowest EMA so far and ``first`` the first finite loss (for positive losses:
  factor x best, plus a margin that lets a loss near zero move).
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

from lo_framework.errors import UserError, check_number, number, shown, whole

ADAMW_LR = 1e-3  # in whose steps a rise is counted, and the largest that AdamW takes over with
GROWN = 16.0  # times the first gradients: less than that may be a bold step
AGAIN = 2.0  # times what was won so far
DOUBT = 3  # steps in which gradients may come back after a bold one
BACK = 2.0  # times what they were before it
FAR = 5.0  # times a rise that is too much: no bold step
RESTED = 10  # steps from one such step to the next, twice as many each time
RECENT = 0.2  # weight of a new gradient in the average that has grown
SHORT = 75  # steps of a run; in one of fewer, steps are bolder: a rise may be as much larger
STRICT = 0.25  # of the rise that is allowed, for each time that it was too much
LEAST_LR = 1e-5  # of AdamW, however often it fails
PATIENCE = 5  # steps in a row whose gradients are not finite, and only then go back
RETREAT = 0.1  # what multiplies AdamW's learning rate when the guard is violated under AdamW itself


@dataclass(frozen=True, kw_only=True)
class GuardConfig:
    """Settings of the guard.

    Attributes:
        rise: how many of AdamW's first steps the loss may have risen lately, as gradients tell that
            have grown to 16 times the first; in proportion more, the smaller they are.
        jump: the same in first losses, where the loss is told.
        factor: how many times its best value the average loss may reach; above 1.
        margin: what it may add to that, as a fraction of the first loss.
        decay: of the averages: 0.9 looks back on about ten steps.
        warmup: steps before an average loss can violate the guard.
        every: steps between snapshots of the parameters.
        steps: how many steps AdamW makes when it takes over; twice as many as the last time, where
            the learned optimizer then lasted no longer than AdamW had.
        lr: AdamW's learning rate; None takes the geometric mean of the learned optimizer's recent
            updates (RMS per parameter), as of the snapshot that training goes back to, and at most
            1e-3.
        weight_decay: AdamW's.
    """

    rise: float = 800.0
    jump: float = 10.0
    factor: float = 2.0
    margin: float = 0.05
    decay: float = 0.9
    warmup: int = 20
    every: int = 50
    steps: int = 100
    lr: float | None = None
    weight_decay: float = 1e-2

    def __post_init__(self) -> None:
        """Raise UserError for a setting that cannot be."""
        for name in ("rise", "jump"):
            if not (number(getattr(self, name)) or 0.0) > 0:  # inf: none is too much
                raise UserError(f"guard: {name} must be above 0, not {shown(getattr(self, name))}")
        check_number("factor", self.factor, low=1.0, open_low=True, subject="guard: factor")
        check_number("decay", self.decay, below=1.0, subject="guard: decay")
        for name in ("margin", "weight_decay"):
            check_number(name, getattr(self, name), subject=f"guard: {name}")
        if self.lr is not None:
            check_number("lr", self.lr, open_low=True, subject="guard: lr")
        for name, least in (("warmup", 0), ("every", 1), ("steps", 1)):
            whole(f"guard: {name}", getattr(self, name), least)


class Signal(NamedTuple):
    """What is known before an update: of the last move, what it added to the loss by the gradient
    now, and its root mean square; sums of absolute values of the gradient, and of the first one
    that each tensor had; the loss, if told.
    """

    added: float
    size: float
    first: float
    rms: float
    loss: float | None = None


@dataclass
class Trend:
    """Where training stands, as the guard sees it; goes back with the parameters."""

    unit: float = 0.0  # of a rise
    rise: float = 0.0
    fall: float = 0.0  # all that moves have won, as gradients tell
    growth: float | None = None  # average of the gradients' sizes, over those of the first
    doubt: int = 0  # steps that are left for gradients to come back
    calm: float = 0.0  # growth before the step that is in doubt
    rest: int = 0  # steps until another one can be in doubt
    forgiven: int = 0  # such steps so far
    seen: int = 0  # losses
    first: float = 0.0
    ema: float = 0.0
    best: float = math.inf
    recent: tuple[float, ...] = ()  # losses, over which the average mostly looks
    log_rms: float | None = None  # EMA of log(RMS update) of the learned optimizer


class Guard:
    """The guard's memory and decisions. Every method takes and returns plain numbers.

    One step: ``violated(signal)``; if so, ``activate()`` and go back to the snapshot; else, if
    ``due``, take a snapshot and ``keep()``; update; ``updated()``.
    """

    def __init__(self, config: GuardConfig, num_steps: int | None = None) -> None:
        self.config = config
        self.bold = max(1.0, SHORT / num_steps) if num_steps else 1.0
        self.now = Trend()
        self.kept: Trend | None = None  # at the last snapshot
        self.since_kept = 0
        self.remaining = 0  # steps that AdamW still makes; 0: the learned optimizer is at work
        self.strikes = 0  # activations, each soon after the one before
        self.length = 0  # steps of AdamW at its last turn
        self.lasted = 0  # steps of the learned optimizer since then
        self.activations = 0
        self.sick = 0  # steps in a row whose gradients are not finite
        self.lr = ADAMW_LR  # AdamW's, of the current or last activation

    @property
    def horizon(self) -> int:
        """How many steps the averages look back on."""
        return max(1, round(1.0 / (1.0 - self.config.decay)))

    @property
    def limit(self) -> float:
        """The average loss above which the guard is violated."""
        c, best = self.config, self.now.best
        return best + (c.factor - 1.0) * abs(best) + c.margin * abs(self.now.first)

    @property
    def allowed(self) -> float:
        """The rise above which the guard is violated: less soon after AdamW's turn, more where
        gradients have not grown.
        """
        now, c = self.now, self.config
        growth = GROWN if self.is_soon else now.growth or GROWN
        won = 0.0 if self.is_soon else AGAIN * now.fall
        most = max(c.rise * now.unit, won) * max(1.0, GROWN / growth)
        if now.seen:
            most = min(most, c.jump * abs(now.first))
        return most * self.bold * (STRICT**self.strikes if self.is_soon else 1.0)

    @property
    def is_soon(self) -> bool:
        """Whether the learned optimizer has lasted no longer than AdamW had, since its turn."""
        return self.strikes > 0 and self.lasted <= self.length

    def violated(self, signal: Signal) -> str:
        """Take in what is known before an update. What breaks the guard, in words, or ''."""
        if not math.isfinite(signal.added + signal.size):
            self.sick += 1
            return "a gradient that is not finite"
        self.sick = 0
        if signal.loss is not None and not math.isfinite(signal.loss):
            return f"the training loss ({signal.loss})"
        now, c = self.now, self.config
        if signal.rms > 0 and not self.remaining and self.lasted:
            now.log_rms = self._averaged(now.log_rms, math.log(signal.rms))
        now.unit = ADAMW_LR * signal.first
        growth = signal.size / signal.first if signal.first > 0 else 0.0
        before = growth if now.growth is None else now.growth
        if signal.first > 0:
            now.growth = (1.0 - RECENT) * before + RECENT * growth
        now.rise = max(0.0, c.decay * now.rise + signal.added)
        if self._broken(growth, before):
            return f"the loss, which rises by the gradients ({now.rise:.3g})"
        now.fall += max(0.0, -signal.added)
        if signal.loss is None:
            return ""
        if now.seen == 0:
            now.first = max(abs(now.first), abs(signal.loss))
        now.ema = self._averaged(now.ema if now.seen else None, signal.loss)
        now.seen += 1
        now.recent = (*now.recent, signal.loss)[-self.horizon :]
        # Three in four of the losses, too: few examples at a step have large ones now and then,
        # which is no trend.
        # Nor does it judge AdamW, whose steps are small: its losses are those of the data.
        is_high = min(now.ema, sorted(now.recent)[len(now.recent) // 4]) > self.limit
        if now.seen > c.warmup and is_high and not self.remaining:
            return f"the training loss ({signal.loss:.4g}, average limit {self.limit:.4g})"
        now.best = min(now.best, now.ema)
        return ""

    def _broken(self, growth: float, before: float) -> bool:
        """Whether the rise is too much, and no bold step from which the gradients come back."""
        now = self.now
        now.rest = max(0, now.rest - 1)
        if now.rise > FAR * self.allowed > 0:
            return True
        if now.doubt:
            if growth <= BACK * now.calm:
                now.rise, now.doubt, now.growth = 0.0, 0, now.calm
                now.rest = RESTED * 2**now.forgiven
                now.forgiven += 1
                return False
            now.doubt -= 1
            return not now.doubt
        if not now.rise > self.allowed > 0:
            return False
        if self.is_soon or now.rest:
            return True
        now.doubt, now.calm = DOUBT, before
        return False

    @property
    def due(self) -> bool:
        """Time for a snapshot: there is none or an old one, and training is nearer to its best than
        to a limit. (A state that was saved without copies may have been saved after a break that
        nobody had seen yet.)
        """
        now = self.now
        is_calm = now.rise <= 0.5 * self.allowed and not now.doubt
        if now.seen:
            is_calm &= now.ema <= 0.5 * (now.best + self.limit)
        return is_calm and (self.kept is None or self.since_kept >= self.config.every)

    def keep(self) -> None:
        """A snapshot was taken, at a good time: losses of that size are no alarm."""
        if self.now.seen:
            self.now.first = max(abs(self.now.first), abs(self.now.ema))
        self.kept = replace(self.now)
        self.since_kept = 0

    def activate(self) -> None:
        """Hand over to AdamW, at the trend of the snapshot that the parameters go back to."""
        # The parameters are where they were, and nothing has moved them: there is no rise yet.
        self.now = replace(self.kept, rise=0.0) if self.kept is not None else Trend()
        if self.remaining:
            self.lr = max(LEAST_LR, self.lr * RETREAT)  # AdamW itself failed, and goes on
        else:
            measured = ADAMW_LR if self.now.log_rms is None else math.exp(self.now.log_rms)
            self.lr = min(measured, ADAMW_LR) if self.config.lr is None else self.config.lr
            self.strikes = self.strikes + 1 if self.is_soon else 1
            self.remaining = self.length = self.config.steps * 2 ** (self.strikes - 1)
        self.activations += 1
        self.since_kept = self.lasted = 0

    def forget_losses(self) -> None:
        """Losses are of other parameters, or of another problem, from now on."""
        self.now.seen, self.now.best, self.now.recent = 0, math.inf, ()

    def updated(self) -> bool:
        """An update was made, by whoever is in charge. True: it was AdamW's last one."""
        self.since_kept += 1
        if not self.remaining:
            self.lasted += 1
            return False
        self.remaining -= 1
        if self.remaining:
            return False
        self.since_kept = self.config.every  # before the learned optimizer's first step
        self.forget_losses()  # which the data have now may be higher ones, at good parameters too
        return True

    def _averaged(self, old: float | None, new: float) -> float:
        decay = self.config.decay
        return new if old is None else decay * old + (1.0 - decay) * new

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers."""
        state = {name: x for name, x in vars(self).items() if name not in ("config", "bold")}
        return {name: asdict(x) if isinstance(x, Trend) else x for name, x in state.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, x in state.items():
            setattr(self, name, Trend(**x) if isinstance(x, dict) else x)
