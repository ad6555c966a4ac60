"""A route: who gets the messages of one topic, grouped by what their packets look like; kept until it is stale."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from broker.core.hooks import Decision, Hooks

if TYPE_CHECKING:
    from broker.core.session import Session
    from broker.core.shared import SharedGroup
    from broker.core.subscriptions import Bucket, Options

__all__ = ["Group", "Route", "build_route"]


class Group:
    """Targets whose packets are the same but for the packet identifier."""

    __slots__ = ("identifiers", "individual", "no_local", "qos", "retain_as_published", "targets", "v5")

    def __init__(
        self,
        v5: bool,
        qos: int,
        identifiers: tuple[int, ...],
        retain_as_published: bool,
        no_local: bool,
        individual: bool,
    ) -> None:
        self.v5 = v5
        self.qos = qos
        self.identifiers = identifiers
        self.retain_as_published = retain_as_published
        #: Whether a message does not go back to the client that published it.
        self.no_local = no_local
        #: Whether each target needs a look of its own: topic aliases, Maximum Packet Size.
        self.individual = individual
        self.targets: list[Session] = []


class Route:
    """Targets of one topic. It holds while *cell* and the router's global count still add up to *stamp*."""

    __slots__ = ("cell", "groups", "shared", "stamp", "weight")

    def __init__(
        self, groups: tuple[Group, ...], shared: tuple["SharedGroup", ...], cell: list[int], stamp: int
    ) -> None:
        self.groups = groups
        self.shared = shared
        #: Counts the changes to wildcard subscriptions with this topic's first level.
        self.cell = cell
        self.stamp = stamp
        #: How many sessions a message goes to: what it costs.
        self.weight = sum(len(group.targets) for group in groups) + len(shared)


def may_receive(hooks: Hooks, session: "Session", topic: bytes) -> bool:
    """Tell whether plugins let messages of *topic* reach *session*."""
    said = [hook(session, topic) for hook in hooks.authorize_receive]
    if Decision.DENY in said:
        return False
    return Decision.ALLOW in said or hooks.default_authorize is Decision.ALLOW


def build_route(topic: bytes, buckets: Iterable["Bucket"], hooks: Hooks, cell: list[int], stamp: int) -> Route:
    """Return the route of *topic* given the *buckets* of all filters that match it.

    A session with overlapping subscriptions is one target: the highest QoS, the identifiers of all of them, and No
    Local or not Retain As Published only where all say so [5: section 3.3.4].
    """
    merged: dict[Session, list[Options]] = {}
    shared: list[SharedGroup] = []
    for bucket in buckets:
        for session, options in bucket.subscribers.items():
            found = merged.get(session)
            if found is None:
                merged[session] = [options]
            else:
                found.append(options)
        if bucket.shared is not None:
            shared.extend(bucket.shared.values())
    groups: dict[tuple[bool, int, tuple[int, ...], bool, bool, bool], Group] = {}
    checked = bool(hooks.authorize_receive)
    for session, all_options in merged.items():
        if checked and not may_receive(hooks, session, topic):
            continue
        v5 = session.v5
        if len(all_options) == 1:
            options = all_options[0]
            identifiers: tuple[int, ...] = (options.identifier,) if options.identifier and v5 else ()
            key = (v5, options.qos, identifiers, options.retain_as_published, options.no_local, session.individual)
        else:
            key = (
                v5,
                max(options.qos for options in all_options),
                tuple(sorted({options.identifier for options in all_options if options.identifier})) if v5 else (),
                any(options.retain_as_published for options in all_options),
                all(options.no_local for options in all_options),
                session.individual,
            )
        group = groups.get(key)
        if group is None:
            group = groups[key] = Group(*key)
        group.targets.append(session)
    return Route(tuple(groups.values()), tuple(shared), cell, stamp)
