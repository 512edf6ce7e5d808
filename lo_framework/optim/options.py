"""Options of parameter groups: which there are, and what is said of those that change nothing.

A key that a person gives is honoured or refused (`refuse_unknown`). What is written into a group
later, by a scheduler that cycles momentum, say, cannot be refused: `GroupWatch` says it once, at
the next step. A number that cannot be, as an ``lr`` that is nan, is refused there. It looks only
when a number of a group (`NUMBERS`) is another object than at the last step, which schedulers make
``lr``, when a group has another number of options, and at the first step; so a step costs a few
comparisons of identities a group.
"""

from __future__ import annotations

import math
import operator
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

from torch import Tensor

from lo_framework.errors import UserError, check_number, nearest, number, shown

# What schedulers keep in groups for themselves.
SCHEDULERS = {
    *("initial_lr", "max_lr", "min_lr", "base_lr", "swa_lr", "lr_scale"),
    *("base_momentum", "max_momentum"),
}
# How a step is computed and not what: of torch's optimizers, from which groups may be taken over.
SPEED = {"foreach", "fused"}
CYCLED = ("momentum", "betas")  # what schedulers that cycle momentum write
SMALL = 0.01  # a multiplier below it is meant as a learning rate
NUMBERS = ("lr", "weight_decay", "eps")  # options that are a number of at least 0
ROUNDING = 1e-9  # a schedule that falls to 0 may end so far below it
FALLEN = 0.9  # of the highest lr so far: below it a scheduler lets it fall


def unknown(group: Mapping[str, Any], known: Collection[str]) -> list[str]:
    """Keys of a group that would change nothing, and that somebody may rely on: what is None or
    False asks for nothing, a text is a label, and bytes are what another class has saved.
    """
    passing = {"params", "param_names", *known, *SCHEDULERS, *SPEED}
    return [
        str(key)
        for key, value in group.items()
        if not (key in passing or value is None or value is False or isinstance(value, str | bytes))
    ]


def refuse_unknown(group: Any, known: Collection[str], owner: str) -> None:
    """Raise UserError if a group, as it was given, has an option that ``owner`` does not know."""
    for key in unknown(group, known) if isinstance(group, Mapping) else ():
        hint = nearest(key, known)
        raise UserError(
            f"{owner} has no option {shown(key)} in a parameter group{hint}; known: "
            f"{', '.join(dict.fromkeys(known))}"
        )


def without_repeats(
    group: dict[str, Any], before: Sequence[Mapping[str, Any]], owner: str
) -> dict[str, Any]:
    """A group as it was given, its parameters in a list where they could be listed only once.

    Raises:
        UserError: a parameter is in it twice, or in a group of before.
    """
    given = group.get("params") if isinstance(group, dict) else None
    if isinstance(given, Tensor):
        given = [given]
    if not isinstance(given, Iterable) or isinstance(given, set):
        return group  # torch says what is wrong with it
    if isinstance(given, Iterator):
        group = {**group, "params": (given := list(given))}
    seen = {id(p) for each in before for p in each["params"]}
    for pair in given:
        name, p = pair if isinstance(pair, tuple) and len(pair) == 2 else ("", pair)
        if id(p) in seen:
            what = f'"{name}"' if name else f"a parameter of shape {tuple(getattr(p, 'shape', ()))}"
            raise UserError(f"{owner} has {what} twice: each parameter belongs in one group, once")
        seen.add(id(p))
    return group


class Course(NamedTuple):
    """How long a run was said to be.

    Attributes:
        argument: by which argument; ``optional``: whether it may be left out.
        schedule: of what a schedule of its own runs over it; empty: of nothing.
    """

    argument: str
    steps: int
    optional: bool = True
    schedule: str = ""


class GroupWatch:
    """Follows the groups of ``owner``, which have the options ``known``, from step to step."""

    def __init__(self, owner: str, known: Collection[str]) -> None:
        self.owner, self.known = owner, known
        self._numbers = [name for name in NUMBERS if name in known]
        self.course: Course | None = None
        self._end = math.inf
        self._rates: list[Any] = []
        self._sizes: list[int] = []
        self._highest: dict[int, float] = {}
        self._said: set[str] = set()

    def expect(self, course: Course) -> None:
        """From now on say it if the run goes on beyond its course, or ``lr`` falls beside it."""
        self.course, self._end = course, course.steps

    def look(self, groups: Sequence[Mapping[str, Any]], updates: int) -> None:
        """Before a step, after ``updates`` others. Nobody waits for an ``lr`` that is on an
        accelerator: it is not followed, nor is a tensor that a scheduler writes into.

        Raises:
            UserError: a number in a group cannot be; it is looked at again at the next step.
        """
        if updates >= self._end:
            self._say_past()
        rates: list[Any] = [g.get(name) for name in self._numbers for g in groups]  # lr first
        sizes = [*map(len, groups)]
        if sizes == self._sizes and all(map(operator.is_, rates, self._rates)):
            return
        for i, group in enumerate(groups):
            self._check_numbers(group, f"{self.owner}, parameter group {i}: ")
            for key in unknown(group, self.known):
                self._say_ignored(key)
        self._rates, self._sizes = rates, sizes
        if self.course is not None and self.course.schedule:
            for i, rate in enumerate(rates[: len(groups)]):
                if not isinstance(rate, Tensor) or rate.device.type == "cpu":
                    self._follow(i, float(rate))

    def _check_numbers(self, group: Mapping[str, Any], place: str) -> None:
        for name in self._numbers:
            value = group.get(name, 0.0)
            if isinstance(value, Tensor) and value.device.type != "cpu":
                continue
            x = number(value)
            if x is None or not -ROUNDING <= x < math.inf:
                check_number(name, value, subject=place + name)

    def _say_ignored(self, key: str) -> None:
        if key in CYCLED:
            self._say(
                key,
                f'"{key}" in a parameter group changes nothing, since momenta are not set from '
                "outside here: a scheduler that cycles them cycles lr alone; say "
                "cycle_momentum=False",
            )
        else:
            hint = nearest(key, self.known)
            known = ", ".join(self.known)
            self._say(
                key, f"{shown(key)} in a parameter group changes nothing{hint}; known: {known}"
            )

    def say_idle(self) -> None:
        """A step finds no gradient at all."""
        self._say(
            "idle",
            "no parameter has a gradient, so this step changes nothing: an optimizer belongs to "
            "one model; make it anew where the model is made anew, and after fully_shard",
        )

    def _say_past(self) -> None:
        assert self.course is not None
        argument, steps, optional, _ = self.course
        self._end = math.inf
        self._say(
            argument,
            f"the run goes on beyond {argument}={steps}, with steps as at its end: give the number "
            f"of steps that the run has{f', or leave {argument} out' * optional}",
        )

    def _follow(self, i: int, rate: float) -> None:
        if not 0 < rate < math.inf:
            return  # a step that is left out, not a smaller one
        highest = self._highest[i] = max(rate, self._highest.get(i, rate))
        if rate < FALLEN * highest and self.course is not None:
            argument, _, optional, schedule = self.course
            self._say(
                "schedule",
                f"lr has fallen from {highest:.3g} to {rate:.3g}, beside the schedule over "
                f"{argument} that {schedule} has learned: the update falls twice; leave the "
                f"scheduler{f' or {argument}' * optional} out",
            )

    def _say(self, what: str, text: str) -> None:
        if what not in self._said:
            self._said.add(what)
            warnings.warn(f"{self.owner}: {text} (said once)", stacklevel=2)


class WithOptions:
    """The part of an optimizer that knows the options of its groups.

    Attributes:
        multiplies: of what ``lr`` is a multiplier, where the update has a size of its own; empty:
            it is a learning rate.
        swaps: whether parameters in the groups may be replaced in the midst of a run.
        group_keys: options of a parameter group beside the defaults.
    """

    multiplies: ClassVar[str] = ""
    swaps: ClassVar[bool] = False
    group_keys: ClassVar[tuple[str, ...]] = ()
    defaults: dict[str, Any]
    param_groups: list[dict[str, Any]]

    def _know_options(self, defaults: Mapping[str, Any]) -> None:
        self._options = [*defaults, *self.group_keys]
        self._groups_seen = GroupWatch(type(self).__name__, self._options)

    def _meet_schedulers(self) -> None:
        """Schedulers that cycle momentum look for one of these in the defaults, and write it into
        groups, where `GroupWatch` says that it changes nothing.
        """
        if "betas" not in self.defaults:
            self.defaults["momentum"] = None

    def _checked_options(self, group: Any) -> Any:
        """A group as it was given. Raises UserError for an unknown option, one that cannot be, or a
        parameter twice.
        """
        refuse_unknown(group, self._options, type(self).__name__)
        if isinstance(group, Mapping):
            self._check_values(group, f"parameter group {len(self.param_groups)}: ")
        return without_repeats(group, self.param_groups, type(self).__name__)

    def _check_values(self, given: Mapping[str, Any], place: str = "") -> None:
        """Raise UserError, whose line begins with the ``place``, for an option that cannot be."""
        for name in NUMBERS:
            if name in given and name in self._options:
                is_factor = name == "lr" and self.multiplies
                what = f"lr is a multiplier of {self.multiplies}: it" if is_factor else name
                check_number(name, given[name], subject=f"{place}{what}")

    def _say_small(self, groups: Sequence[Mapping[str, Any]], stacklevel: int) -> None:
        """Say that ``lr`` is a multiplier, if it is and one of a group looks like a rate."""
        rates = [float(group["lr"]) for group in groups] if self.multiplies else []
        small = [rate for rate in rates if 0 < rate < SMALL]
        if small:
            warnings.warn(
                f"{type(self).__name__}: lr={small[0]:g} is no learning rate but a multiplier of "
                "the update, of which 1 is the whole: next to nothing will be learned; leave lr "
                "out",
                stacklevel=stacklevel,
            )
