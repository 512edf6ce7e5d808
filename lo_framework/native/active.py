"""Whether the code that runs may use kernels: told by whoever runs inner steps, for a model does
not know the engine.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar

from lo_framework.native import toolchain

_ACTIVE: ContextVar[bool] = ContextVar("native kernels", default=False)


def active() -> bool:
    return _ACTIVE.get()


@contextmanager
def kernels(allowed: bool) -> Iterator[None]:
    """Inside, kernels are used where ``allowed``."""
    token = _ACTIVE.set(allowed)
    try:
        yield
    finally:
        _ACTIVE.reset(token)


def usual_kernels() -> AbstractContextManager[None]:
    """Inside, kernels are used where they can be compiled; for whoever chooses no engine."""
    return kernels(not toolchain.reason())
