"""What plugins may decide; lists of callables that `broker.plugin` fills.

A hook answers at once, or with a `Pending` that is resolved later: then the connection that asked waits, and nobody
else does. Deny wins over allow; where nobody has an opinion, the default holds.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from broker.mqtt.reason_codes import ReasonCode

if TYPE_CHECKING:
    from broker.core.session import Session
    from broker.mqtt.packets import Connect, Will

__all__ = ["Answer", "AuthStep", "Decision", "Exchange", "Hooks", "Login", "Pending", "decide"]

T = TypeVar("T")


class Decision(Enum):
    """What a hook says; None in its place is no opinion."""

    ALLOW = "allow"
    DENY = "deny"


class Pending(Generic[T]):
    """An answer that comes later: who owes it calls `resolve` once, who waits for it calls `then` once."""

    __slots__ = ("_action", "_answered", "_value")

    def __init__(self) -> None:
        self._action: Callable[[T], None] | None = None
        self._answered = False
        self._value: T | None = None

    def resolve(self, value: T) -> None:
        """Hand *value* to whoever waits, now or as soon as it asks; a second answer is ignored."""
        if self._answered:
            return
        self._answered = True
        if self._action is not None:
            self._action(value)
        else:
            self._value = value

    def then(self, action: Callable[[T], None]) -> None:
        """Call *action* with the answer, at once where it is there."""
        if self._answered:
            action(self._value)  # type: ignore[arg-type]  # answered: the value is a T
        else:
            self._action = action


#: What an authorizing hook returns: a decision, no opinion, or either of them later.
Answer = Decision | None | Pending[Decision | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Login:
    """What a CONNECT says about who is there; the password is never shown."""

    client_id: str
    user_name: str | None
    password: bytes | None = field(repr=False)
    address: str
    listener: str
    tls_identity: str | None
    connect: "Connect"


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthStep:
    """What an enhanced authentication says next: go on with *data*, done as *user*, or refused with *reason*."""

    reason: ReasonCode
    data: bytes | None = None
    user: str | None = None


class Exchange(Protocol):
    """One enhanced authentication in progress [5: section 4.12]."""

    def step(self, data: bytes | None) -> "AuthStep | Pending[AuthStep]":
        """Answer the authentication data of the client."""
        ...


@dataclass(slots=True)
class Hooks:
    """Every decision that plugins take part in; an empty list costs nothing."""

    authenticate: list[Callable[[Login], Answer]] = field(default_factory=list)
    #: Authentication method → what starts an exchange of that method.
    exchanges: dict[str, Callable[[Login], Exchange]] = field(default_factory=dict)
    #: Session, topic, QoS, retain; answers are remembered per session until `Router.forget_decisions`.
    authorize_publish: list[Callable[["Session", bytes, int, bool], Answer]] = field(default_factory=list)
    #: Session, topic filter, QoS asked for.
    authorize_subscribe: list[Callable[["Session", bytes, int], Answer]] = field(default_factory=list)
    #: Session, topic: whether messages of the topic may reach it. Plain answers only, part of the route.
    authorize_receive: list[Callable[["Session", bytes], Decision | None]] = field(default_factory=list)
    authorize_will: list[Callable[[Login, "Will"], Answer]] = field(default_factory=list)
    #: The answers when no hook has an opinion.
    default_authenticate: Decision = Decision.ALLOW
    default_authorize: Decision = Decision.ALLOW


def decide(answers: Sequence[Answer], default: Decision) -> "Decision | Pending[Decision]":
    """Return what *answers* come to together: deny if one denies, allow if one allows, else *default*."""
    waiting = [answer for answer in answers if isinstance(answer, Pending)]
    said = [answer for answer in answers if isinstance(answer, Decision)]
    if Decision.DENY in said:
        return Decision.DENY
    if not waiting:
        return said[0] if said else default
    verdict: Pending[Decision] = Pending()
    missing = len(waiting)

    def answered(answer: Decision | None) -> None:
        nonlocal missing
        missing -= 1
        if answer is not None:
            said.append(answer)
        if answer is Decision.DENY:
            verdict.resolve(Decision.DENY)
        elif not missing:
            verdict.resolve(said[0] if said else default)

    for pending in waiting:
        pending.then(answered)
    return verdict
