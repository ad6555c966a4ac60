"""The router: sessions, subscriptions, routes and retained messages, and what joins them.

Whoever drives it sets `now` and `wall` before each call in, and after it calls `flush`, and `run_backlog` and
`deadlines.run` when they have something to do. All methods are synchronous.
"""

from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

from broker.core.deadlines import Deadlines
from broker.core.hooks import Decision, Hooks, Pending, decide
from broker.core.limits import NEVER, RouterLimits
from broker.core.observer import Observer
from broker.core.replay import Replay
from broker.core.retained import RetainedStore
from broker.core.route import Route, build_route, may_receive
from broker.core.run import Delivery, Run
from broker.core.seams import Journal, Ownership, Peers
from broker.core.session import Session
from broker.core.shared import SharedGroup
from broker.core.stats import Stats
from broker.core.subscriptions import Options, SubscriptionIndex
from broker.mqtt.topics import is_wildcard, parse_shared

if TYPE_CHECKING:
    from broker.core.connection import Connection

__all__ = ["Router"]

#: Published bytes after which outboxes are written out even though the turn is not over: bounds every outbox.
_FLUSH_AT: Final = 256 * 1024
#: Connections whose left-over input is handled in one turn: with more, new input of others would wait too long.
_BACKLOG_AT_ONCE: Final = 4
#: Retained messages sent at once on SUBSCRIBE; more go in slices.
_REPLAY_AT_ONCE: Final = 100


class Router:
    """The one place where a published message meets its subscribers."""

    def __init__(
        self,
        limits: RouterLimits | None = None,
        *,
        observer: Observer | None = None,
        hooks: Hooks | None = None,
        choose: Callable[[Sequence[Session]], Session],
        new_id: Callable[[], str],
    ) -> None:
        """*choose* picks at random among sessions, *new_id* makes client identifiers: chance comes from outside."""
        self.limits = limits if limits is not None else RouterLimits()
        self.observer = observer if observer is not None else Observer()
        self.hooks = hooks if hooks is not None else Hooks()
        self.new_id = new_id
        self.now = 0.0
        self.wall = 0.0
        self.deadlines = Deadlines()
        self.stats = Stats()
        self.journal: Journal | None = None
        self.ownership: Ownership | None = None
        self.peers: Peers | None = None
        self.sessions: dict[str, Session] = {}
        #: Connections that have had their CONNACK.
        self.connections: set[Connection] = set()
        self.connections_by_address: dict[str, int] = {}
        self.retained = RetainedStore(self.limits.max_retained_count, self.limits.max_retained_bytes)
        #: Connections with something in their outbox.
        self.dirty: list[Connection] = []
        #: Connections that have input left from this turn, and sessions with retained messages to get.
        self.backlog: deque[Connection] = deque()
        self.replaying: list[Session] = []
        self._choose = choose
        self._subscriptions = SubscriptionIndex()
        self._routes: dict[bytes, Route] = {}
        self._cells: dict[bytes, list[int]] = {}
        self._everywhere = 0
        self._unflushed = 0
        self._waiting_for_commit: deque[tuple[int, Connection]] = deque()

    # --- routes -----------------------------------------------------------------------------------------------------

    def route(self, topic: bytes) -> Route:
        """Return who gets messages of *topic*, which must be valid."""
        route = self._routes.get(topic)
        if route is not None and route.stamp == route.cell[0] + self._everywhere:
            return route
        if len(self._routes) >= self.limits.max_cached_routes:
            self._routes.clear()
            self._cells.clear()
        cell = self._cell(topic)
        route = build_route(topic, self._subscriptions.match(topic), self.hooks, cell, cell[0] + self._everywhere)
        self._routes[topic] = route
        return route

    def known_route(self, topic: bytes) -> Route | None:
        """Return the route of *topic* where it is at hand: then the topic has been found valid."""
        route = self._routes.get(topic)
        if route is not None and route.stamp == route.cell[0] + self._everywhere:
            return route
        return None

    def _cell(self, topic: bytes) -> list[int]:
        level = topic.partition(b"/")[0]
        cell = self._cells.get(level)
        if cell is None:
            cell = self._cells[level] = [0]
        return cell

    def _changed(self, topic_filter: bytes) -> None:
        """Make every route that *topic_filter* is part of stale."""
        if not is_wildcard(topic_filter):
            self._routes.pop(topic_filter, None)
            return
        level = topic_filter.partition(b"/")[0]
        if level in (b"+", b"#"):
            self._everywhere += 1
        else:
            cell = self._cells.get(level)
            if cell is not None:
                cell[0] += 1

    def forget_decisions(self) -> None:
        """Ask plugins again about everything: their rules changed."""
        self._everywhere += 1
        for connection in self.connections:
            connection.decisions.clear()

    def may_receive(self, session: Session, topic: bytes) -> bool:
        """Tell whether plugins let messages of *topic* reach *session*."""
        return not self.hooks.authorize_receive or may_receive(self.hooks, session, topic)

    # --- publishing -------------------------------------------------------------------------------------------------

    def publish(self, run: Run) -> None:
        """Hand *run*, whose topic is valid, to everybody who subscribed, and to the other nodes.

        Retaining is the caller's, with `retain`.
        """
        self.deliver(self.route(run.topic), run)
        if self.peers is not None:
            self.peers.forward(run)

    def deliver(self, route: Route, run: Run) -> None:
        """Hand *run* to the sessions of *route*, the route of its topic."""
        count = run.count
        run_qos = run.qos
        for group in route.groups:
            qos = group.qos if group.qos < run_qos else run_qos
            retain = run.retain and group.retain_as_published
            targets = group.targets
            if group.no_local:
                targets = [target for target in targets if target.client_id != run.publisher]
            if qos or group.individual:
                delivery = Delivery(run, qos, retain, group.identifiers)
                for target in targets:
                    target.offer(delivery)
            else:
                blob = run.encode(group.v5, 0, retain, group.identifiers).data
                for target in targets:
                    out = target.out
                    if out:
                        out.append(blob)
                    else:
                        target.first(blob, count)
        if route.shared:
            for share in route.shared:
                for index in range(count):
                    self._deliver_shared(share, run.part(index, index + 1))
        self.stats.delivered += route.weight * count
        self._unflushed += len(run.data)
        if self._unflushed > _FLUSH_AT:
            self.flush()

    def _deliver_shared(self, share: SharedGroup, run: Run) -> None:
        topic = run.topic
        member = share.pick(lambda session: self.may_receive(session, topic))
        if member is None:
            return
        options = share.members[member]
        identifiers = (options.identifier,) if options.identifier and member.v5 else ()
        retain = run.retain and options.retain_as_published
        member.offer(Delivery(run, min(run.qos, options.qos), retain, identifiers, share))

    def retain(self, run: Run) -> str | None:
        """Make the last message of *run* the retained one of its topic, or clear it where its payload is empty.

        Returns why it could not be kept, or None [5: section 3.3.1.3].
        """
        topic = run.topic
        last = run.part(run.count - 1, run.count)
        if last.payload_at == last.size:
            if self.retained.remove(topic) and self.journal is not None:
                self.journal.retained(topic, None)
            return None
        refusal = self.retained.refusal(topic, last)
        if refusal is not None:
            self.observer.retained_refused(topic, refusal)
            return refusal
        self.retained.set(topic, last)
        if self.journal is not None:
            self.journal.retained(topic, last)
        if last.expiry is not None and self.retained.next_expiry() == last.wall + last.expiry:
            self.deadlines.at(self.now + last.expiry + 1, self._sweep_retained)
        return None

    def _sweep_retained(self) -> None:
        self.retained.sweep(self.wall)
        following = self.retained.next_expiry()
        if following is not None:
            self.deadlines.at(self.now + max(1.0, following - self.wall), self._sweep_retained)

    def aged(self, run: Run) -> Run:
        """Return *run*, one retained message with an expiry, with the time that is left from now."""
        assert run.expiry is not None, "only messages with an expiry age"
        left = max(1, run.expiry - run.waited(self.wall))
        return Run.message(
            run.topic,
            run.payload(0),
            qos=run.qos,
            retain=run.retain,
            properties=run.properties,
            expiry=left,
            wall=self.wall,
            publisher=run.publisher,
        )

    # --- subscriptions ----------------------------------------------------------------------------------------------

    def subscribe(self, session: Session, topic_filter: bytes, options: Options) -> bool:
        """Make or replace a subscription whose filter is valid; tell whether it is new [5:MQTT-3.8.4-3]."""
        is_new = topic_filter not in session.subscriptions
        session.subscriptions[topic_filter] = options
        shared = parse_shared(topic_filter) if topic_filter[:1] == b"$" else None
        if shared is None:
            bucket = self._subscriptions.bucket(topic_filter)
            first = bucket.is_empty()
            bucket.subscribers[session] = options
            plain = topic_filter
        else:
            plain = shared.topic_filter
            bucket = self._subscriptions.bucket(plain)
            first = bucket.is_empty()
            if bucket.shared is None:
                bucket.shared = {}
            share = bucket.shared.get(shared.share_name)
            if share is None:
                share = bucket.shared[shared.share_name] = SharedGroup(
                    shared.share_name, plain, self.limits.shared_strategy, self._choose
                )
            share.members[session] = options
        self._changed(plain)
        if first and self.peers is not None:
            self.peers.interest(plain, True)
        if self.journal is not None and session.durable:
            self.journal.subscription_saved(session.client_id, topic_filter, options.byte, options.identifier)
        return is_new

    def unsubscribe(self, session: Session, topic_filter: bytes) -> bool:
        """Remove a subscription; tell whether there was one. What is queued stays [5:MQTT-3.10.4-3]."""
        if session.subscriptions.pop(topic_filter, None) is None:
            return False
        shared = parse_shared(topic_filter) if topic_filter[:1] == b"$" else None
        plain = topic_filter if shared is None else shared.topic_filter
        bucket = self._subscriptions.find(plain)
        if bucket is not None:
            if shared is None:
                bucket.subscribers.pop(session, None)
            elif bucket.shared is not None and shared.share_name in bucket.shared:
                share = bucket.shared[shared.share_name]
                share.members.pop(session, None)
                if not share.members:
                    del bucket.shared[shared.share_name]
            gone = self._subscriptions.discard_if_empty(plain)
            if gone and self.peers is not None:
                self.peers.interest(plain, False)
        self._changed(plain)
        if self.journal is not None and session.durable:
            self.journal.subscription_removed(session.client_id, topic_filter)
        return True

    def replay(self, session: Session, topic_filter: bytes, options: Options) -> None:
        """Send the retained messages that match *topic_filter* to a new subscription [5:MQTT-3.3.1-9 to -11]."""
        topics = deque(self.retained.topics(topic_filter))
        if not topics:
            return
        if session.replay is None:
            session.replay = Replay(session)
        session.replay.add(topics, options)
        if len(topics) <= _REPLAY_AT_ONCE:
            session.replay.step()
        if session.replay is not None:
            self.go_on_replaying(session)

    def go_on_replaying(self, session: Session) -> None:
        """Send more of the retained messages that *session* waits for in the next turn."""
        if session.replay is not None and session not in self.replaying:
            self.replaying.append(session)

    def subscriptions(self) -> SubscriptionIndex:
        """Return the index of all subscriptions, for reading."""
        return self._subscriptions

    # --- sessions ---------------------------------------------------------------------------------------------------

    def invalidate(self, session: Session) -> None:
        """Group *session* anew in every route: its protocol version or its abilities changed."""
        if session.subscriptions:
            self._everywhere += 1

    def keep(self, session: Session) -> None:
        """Keep *session* while its client is away, for its expiry interval [5:MQTT-3.1.2-23]."""
        if session.expiry_interval != NEVER:
            session.expires_at = self.wall + session.expiry_interval
            session.expiry_deadline = self.deadlines.at(
                self.now + session.expiry_interval, lambda: self._expire(session)
            )
        self.save(session)

    def save(self, session: Session) -> None:
        """Tell the journal of *session*: that it is there, or no longer outlives its connection."""
        if self.journal is None:
            return
        if session.durable:
            session.is_stored = True
            self.journal.session_saved(session)
        elif session.is_stored:
            session.is_stored = False
            self.journal.session_removed(session.client_id)

    def _expire(self, session: Session) -> None:
        """End *session* where its time has come by the wall clock too, which may have been set back meanwhile."""
        assert session.expires_at is not None, "only a session with an end has a deadline"
        left = session.expires_at - self.wall
        if left > 1:
            session.expiry_deadline = self.deadlines.at(self.now + left, lambda: self._expire(session))
        else:
            self.end_session(session, expired=True)

    def end_session(self, session: Session, *, expired: bool = False) -> None:
        """Discard *session* with everything it holds; its will is due now [5:MQTT-3.1.3-9]."""
        if self.sessions.get(session.client_id) is session:
            del self.sessions[session.client_id]
        if session.expiry_deadline is not None:
            session.expiry_deadline.cancel()
        session.end_losses()
        for topic_filter in list(session.subscriptions):
            self.unsubscribe(session, topic_filter)
        session.expiry_interval = 0
        self.send_will(session)
        self._hand_over(session)
        self.save(session)
        if self.ownership is not None:
            self.ownership.release(session.client_id)
        self.observer.session_ended(session, expired)

    def _hand_over(self, session: Session) -> None:
        """Give QoS 1 messages of shared subscriptions that *session* did not acknowledge to other members.

        QoS 2 ones that were sent are not given to anybody [5:MQTT-4.8.2-4, 5:MQTT-4.8.2-5].
        """
        left: list[tuple[Delivery, int, int]] = []
        if session.window is not None:
            left += [(s[3], s[2], s[2] + s[1]) for s in session.window.unacknowledged() if s[3].qos == 1]
            session.window = None
        if session.queue is not None:
            left += session.queue
            session.queue = None
        for delivery, start, stop in left:
            if isinstance(delivery.share, SharedGroup) and delivery.share.members:
                for index in range(start, stop):
                    self._deliver_shared(delivery.share, delivery.run.part(index, index + 1))

    def send_will(self, session: Session) -> None:
        """Publish the will of *session* now, if it has one left [5:MQTT-3.1.2-8]."""
        will, session.will = session.will, None
        if session.will_deadline is not None:
            session.will_deadline.cancel()
            session.will_deadline = None
        if will is None:
            return
        # Asked again, since the rules may have changed since CONNECT.
        answers = [hook(session, will.topic, will.qos, will.retain) for hook in self.hooks.authorize_publish]
        verdict = decide(answers, self.hooks.default_authorize)
        if isinstance(verdict, Pending):
            verdict.then(lambda decision: self._publish_will(session, will, decision))
        else:
            self._publish_will(session, will, verdict)

    def _publish_will(self, session: Session, will: Run, decision: Decision) -> None:
        if decision is Decision.DENY:
            self.observer.denied(session, "send its will to", will.topic)
            return
        will.wall = self.wall
        if will.retain:
            self.retain(will)
        self.publish(will)

    def delay_will(self, session: Session) -> None:
        """Publish the will of *session* after its delay, unless the client is back by then [5:MQTT-3.1.3-9]."""
        session.will_deadline = self.deadlines.at(self.now + session.will_delay, lambda: self.send_will(session))

    # --- turns ------------------------------------------------------------------------------------------------------

    def flush(self) -> None:
        """Write out every outbox: one write per connection."""
        self._unflushed = 0
        dirty = self.dirty
        if not dirty:
            return
        self.dirty = []
        for connection in dirty:
            connection.flush()

    def run_backlog(self) -> None:
        """Let a few connections that have input left go on for one more budget, and every replay for a slice."""
        for _ in range(min(len(self.backlog), _BACKLOG_AT_ONCE)):
            self.backlog.popleft().go_on()
        if self.replaying:
            replaying, self.replaying = self.replaying, []
            for session in replaying:
                if session.replay is not None and session.replay.step():
                    self.go_on_replaying(session)

    def has_backlog(self) -> bool:
        """Tell whether `run_backlog` has something to do in the next turn."""
        return bool(self.backlog or self.replaying)

    def wait_for_commit(self, position: int, connection: "Connection") -> None:
        """Call *connection* back when the journal has committed *position*."""
        self._waiting_for_commit.append((position, connection))

    def is_waiting_for_commit(self) -> bool:
        """Tell whether anything waits for the journal."""
        return bool(self._waiting_for_commit)

    def committed(self, position: int) -> None:
        """Let everything go that waited for the journal's batches up to *position*."""
        waiting = self._waiting_for_commit
        while waiting and waiting[0][0] <= position:
            waiting.popleft()[1].release_held(position)
