"""Named things of one kind, which spec strings name and files of one's own add to.

ESTIMATORS: Registry[Estimator] = Registry("estimator")

@ESTIMATORS.register("pes", config=PESConfig)
class PES: ...                                     # built as PES(config, *what the room gives)

ESTIMATORS.build("pes:sigma=0.01", family)         # PES(PESConfig(sigma=0.01), family)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from lo_framework.errors import UserError, choose
from lo_framework.spec import build_config, parse_spec

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True, kw_only=True)
class NoOptions:
    """The config of a thing that takes no options."""


@dataclass(frozen=True)
class Entry(Generic[T]):
    """How to build one thing: ``build(config, ...)``, the dataclass of its options, and ``facts``
    that its room wants to know without building it.
    """

    name: str
    build: Callable[..., T]
    config: type
    facts: Mapping[str, Any] = field(default_factory=dict)


class Registry(dict[str, Entry[T]]):
    """The things of one ``kind``, in the order in which they were registered."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def register(self, name: str, *, config: type = NoOptions, **facts: Any) -> Callable[[F], F]:
        """Decorate a class or function to be known by ``name``; it is called with a ``config``.

        Raises:
            UserError: the name is taken by something else, or holds a character of spec strings.
        """
        if not name or any(c in name for c in ":,=+/ "):
            raise UserError(
                f'"{name}" cannot name a {self.kind}: it must hold none of : , = + / and no blank'
            )

        def decorate(build: F) -> F:
            known = self.get(name)
            # The same thing registered again (a plugin file loaded twice) is no conflict.
            if known is not None and place_of(known.build) != place_of(build):
                there = getattr(known.build, "__module__", "another file")
                raise UserError(
                    f'the {self.kind} "{name}" exists already (in {there}); choose another name'
                )
            self[name] = Entry(name, build, config, facts)
            return build

        return decorate

    def find(self, name: str) -> Entry[T]:
        """The entry called ``name``; raises UserError, which names the nearest one."""
        return self[choose(self.kind, name, self)]

    def parse(self, spec: str) -> tuple[Entry[T], Any]:
        """The entry and the config that ``"name:key=value,..."`` stands for; raises UserError."""
        name, options = parse_spec(spec)
        entry = self.find(name)
        return entry, build_config(entry.config, options, name)

    def build(self, spec: str, *arguments: Any) -> T:
        """Build what ``spec`` names from its config and ``arguments``; raises UserError."""
        entry, config = self.parse(spec)
        return entry.build(config, *arguments)


def place_of(build: Callable[..., Any]) -> tuple[Any, Any]:
    """Where a thing comes from: the same for two names of one thing."""
    return getattr(build, "__module__", None), getattr(build, "__qualname__", build)
