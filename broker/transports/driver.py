"""Drives the core from an event loop: tells it the time, writes out its outboxes once per turn, wakes it when due."""

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from broker.core.router import Router

__all__ = ["Driver"]

_log = logging.getLogger("broker")


class Driver:
    """The one place where the core meets the loop. Everything that calls into the core does it inside `turn`."""

    def __init__(self, loop: asyncio.AbstractEventLoop, router: Router) -> None:
        self.loop = loop
        self.router = router
        self._scheduled = False
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0
        self._closed = False
        self.tell_time()
        router.stats.started_at = router.wall

    def tell_time(self) -> None:
        """Set the core's clocks."""
        self.router.now = self.loop.time()
        self.router.wall = time.time()

    def finish(self) -> None:
        """See to it that what the core has to do later in this turn gets done."""
        router = self.router
        if (router.dirty or router.backlog or router.deadlines.changed or router.replaying) and not self._scheduled:
            self._scheduled = True
            self.loop.call_soon(self._turn)

    @contextmanager
    def turn(self) -> Iterator[Router]:
        """Call into the core in here: its clocks are set before, its output is written after."""
        self.tell_time()
        try:
            yield self.router
        finally:
            self.finish()

    def run(self, action: Callable[[], None]) -> None:
        """Call *action*, which calls into the core; what it raises is logged, and hurts nobody else."""
        with self.turn():
            try:
                action()
            except Exception:
                _log.exception("an error in the broker itself; please report it")

    def _turn(self) -> None:
        self._scheduled = False
        if self._closed:
            return
        router = self.router
        # What has come for well-behaved clients leaves before more of a flood is handled.
        router.flush()
        if router.has_backlog():
            self.tell_time()
            self._guarded(router.run_backlog)
            router.flush()
        if router.deadlines.changed:
            self._arm()
        self.finish()

    def _guarded(self, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception:
            _log.exception("an error in the broker itself; please report it")

    def _arm(self) -> None:
        self.router.deadlines.changed = False
        due = self.router.deadlines.next()
        if due is None or (self._timer is not None and self._due <= due):
            return
        if self._timer is not None:
            self._timer.cancel()
        self._due = due
        self._timer = self.loop.call_at(due, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self.tell_time()
        # A timer may fire a clock tick early; what is due by its own plan is due.
        now = max(self.router.now, self._due)
        self._guarded(lambda: self.router.deadlines.run(now))
        self.router.deadlines.changed = True
        self.finish()

    def close(self) -> None:
        """Do nothing more."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
