"""How far a long computation is, for whoever watches.

The mathematics knows how many steps it has and nothing of bars, streams or logs: it says so here, and a watcher, if
there is one in this thread's context, hears it. Nothing computed depends on it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol


class Watcher(Protocol):
    """Somebody who wants to know, such as a progress bar."""

    def expect(self, count: int) -> None:
        """`count` more steps will come."""
        ...

    def advance(self, count: int = 1) -> None:
        """`count` more steps are done."""
        ...


_watcher: ContextVar[Watcher | None] = ContextVar("sparse_ga_watcher", default=None)


@contextmanager
def watched_by(watcher: Watcher) -> Iterator[None]:
    """Tell `watcher` of the work done in this context."""
    token = _watcher.set(watcher)
    try:
        yield
    finally:
        _watcher.reset(token)


def expect(count: int) -> None:
    """Say that `count` more steps will come."""
    if (watcher := _watcher.get()) is not None:
        watcher.expect(count)


def advance(count: int = 1) -> None:
    """Say that `count` more steps are done."""
    if (watcher := _watcher.get()) is not None:
        watcher.advance(count)
