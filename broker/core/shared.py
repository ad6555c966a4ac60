"""Shared subscriptions: a group of sessions of which one gets each message [5: section 4.8.2]."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from broker.core.session import Session
    from broker.core.subscriptions import Options

__all__ = ["STRATEGIES", "SharedGroup"]

#: What `router.shared_subscriptions_strategy` may say.
STRATEGIES = ("roundrobin", "random", "sticky")


class SharedGroup:
    """The members of one share name on one topic filter."""

    __slots__ = ("_choose", "_next", "_strategy", "members", "name", "topic_filter")

    def __init__(
        self, name: bytes, topic_filter: bytes, strategy: str, choose: Callable[[Sequence["Session"]], "Session"]
    ) -> None:
        """*choose* picks one of several sessions at random; chance comes from outside."""
        self.name = name
        self.topic_filter = topic_filter
        self.members: dict[Session, Options] = {}
        self._strategy = strategy
        self._choose = choose
        self._next = 0

    def pick(self, may_receive: Callable[["Session"], bool]) -> "Session | None":
        """Return the member that gets the next message, or None where no member may have it.

        Connected members come first; messages wait for one that is away only where nobody is connected
        [5: section 4.8.2].
        """
        able = [member for member in self.members if may_receive(member)]
        candidates = [member for member in able if member.connection is not None] or able
        if not candidates:
            return None
        if self._strategy == "random":
            return self._choose(candidates)
        if self._strategy == "sticky":
            return candidates[0]
        self._next += 1
        return candidates[self._next % len(candidates)]
