"""The composition root: makes the broker from its configuration, starts and stops it."""

import asyncio
import hmac
import logging
import random
import secrets
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from broker.config.load import notes
from broker.config.model import Config, Connections, Listener, WebSocketListener, parse_listen
from broker.core.hooks import Decision, Hooks, Login
from broker.core.limits import ConnectionLimits, RouterLimits
from broker.core.observer import Observers
from broker.core.router import Router
from broker.link import Link
from broker.log import LogObserver
from broker.mqtt.reason_codes import ReasonCode
from broker.transports.driver import Driver
from broker.transports.listener import Listener as OpenListener
from broker.transports.settings import Identity, ListenerSettings, TlsSettings, WebSocketSettings

__all__ = ["Broker", "StartError"]

_log = logging.getLogger("broker")

#: Seconds that clients have for reading the last DISCONNECT when the broker stops.
_STOP_TIMEOUT = 3.0


#: A link holds back by not acknowledging; how long its user takes is the user's business.
_LINK_LIMITS = ConnectionLimits(max_inflight_count=65_535, slow_reader_timeout=365 * 24 * 3600.0)


class StartError(Exception):
    """The broker cannot start; the message names the port or file, its key and a remedy."""


class Broker:
    """An MQTT broker on the running loop: `async with Broker(config) as broker: ...`.

    *config* is a `Config`, or a mapping like the YAML file; without one it is the built-in default. Relative paths in
    it are relative to *directory*.
    """

    def __init__(self, config: Config | Mapping[str, Any] | None = None, *, directory: str | Path = ".") -> None:
        """Check *config*; raises pydantic.ValidationError where a mapping is not right."""
        if config is None:
            config = Config.built_in()
        self.config = config if isinstance(config, Config) else Config.model_validate(dict(config))
        self.directory = Path(directory)
        self.hooks = Hooks()
        self.observers = Observers(LogObserver(time.monotonic))
        self.router = Router(
            _router_limits(self.config),
            observer=self.observers,
            hooks=self.hooks,
            choose=random.choice,
            new_id=lambda: f"ternmq-{secrets.token_hex(16)}",
        )
        self._auth = {
            place: listener.connections.auth
            for place, listener in self.config.listeners().items()
            if listener.connections.auth is not None
        }
        if self._auth:
            self.hooks.authenticate.append(self._check_password)
        self._driver: Driver | None = None
        self._listeners: dict[str, OpenListener] = {}

    # --- start and stop -----------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Open every listener; raises StartError, with nothing left open, where one cannot be."""
        self._driver = Driver(asyncio.get_running_loop(), self.router)
        by_address: Counter[str] = Counter()
        max_per_address = self.router.limits.max_connections_per_address
        for place, section in self.config.listeners().items():
            settings = _listener_settings(place, section, self.directory)
            listener = OpenListener(self._driver, settings, by_address, max_per_address)
            try:
                await listener.open()
            except OSError as error:
                await self._close_listeners()
                raise StartError(_cannot_open(place, section, error)) from error
            self._listeners[place] = listener
        for line in notes(self.config):
            _log.info("%s", line)

    async def stop(self) -> None:
        """Stop in order: accept nobody, publish wills, tell every client 0x8B, write everything out, close.

        Returns within a few seconds, whatever clients do. Harmless when the broker is not running.
        """
        if self._driver is None:
            return
        driver = self._driver
        for listener in self._listeners.values():
            listener.stop_accepting()
        with driver.turn() as router:
            for session in list(router.sessions.values()):
                router.send_will(session)
            router.flush()
            for connection in list(router.connections):
                connection.end(ReasonCode.SERVER_SHUTTING_DOWN, "the broker is shutting down")
            router.flush()
        deadline = driver.loop.time() + _STOP_TIMEOUT
        while any(listener.connections() for listener in self._listeners.values()):
            if driver.loop.time() > deadline:
                break
            await asyncio.sleep(0.01)
        await self._close_listeners()
        driver.close()
        self._driver = None

    async def _close_listeners(self) -> None:
        for listener in self._listeners.values():
            listener.stop_accepting()
            await listener.close()
        self._listeners.clear()

    async def __aenter__(self) -> "Broker":
        await self.start()
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.stop()

    # --- use ----------------------------------------------------------------------------------------------------------

    def port(self, place: str) -> int:
        """Return the port that the listener *place* (`v4.1`) uses; raises KeyError where there is none."""
        return self._listeners[place].port

    def link(self, client_id: str = "") -> Link:
        """Return a client inside this process, connected; the broker must be running.

        Raises LinkError where a plugin refuses it, RuntimeError where the broker is not running.
        """
        if self._driver is None:
            raise RuntimeError("the broker is not running: use it inside 'async with Broker(...)'")
        return Link(self._driver, client_id, _LINK_LIMITS)

    def reload_certificates(self) -> None:
        """Read the certificate files again; connections stay. A file that cannot be read leaves the old one in use."""
        for place, listener in self._listeners.items():
            try:
                listener.reload_tls()
            except OSError as error:
                _log.error("%s.tls: the certificates are not reloaded, the old ones stay: %s", place, error)

    def describe(self) -> list[str]:
        """Return what is served where and with what protection, one line a listener."""
        lines = []
        for place, section in self.config.listeners().items():
            scheme = "ws" if isinstance(section, WebSocketListener) else "mqtt"
            host, _, path = parse_listen(section.listen)
            where = f"unix:{path}" if path is not None else f"{host}:{self.port(place)}"
            tls = "TLS" if section.tls is not None else "no TLS"
            if section.tls is not None and section.tls.capath is not None:
                tls += " with client certificates"
            auth = "login required" if section.connections.auth is not None else "anonymous clients allowed"
            scope = ", this machine only" if host in ("localhost", "127.0.0.1", "::1") else ""
            secure = "s" if section.tls is not None else ""
            lines.append(f"{place}: {scheme}{secure}://{where} (MQTT 3.1, 3.1.1 and 5; {tls}; {auth}{scope})")
        return lines

    def _check_password(self, login: Login) -> Decision | None:
        """Compare with the `auth` map of the listener, in constant time whether the user exists or not."""
        pairs = self._auth.get(login.listener)
        if pairs is None:
            return None
        expected = pairs.get(login.user_name or "", "")
        given = login.password or b""
        same = hmac.compare_digest(expected.encode(), given)
        return Decision.ALLOW if same and login.user_name in pairs else Decision.DENY


def _cannot_open(place: str, section: Listener, error: OSError) -> str:
    if isinstance(error, FileNotFoundError) or error.filename is not None:
        return f"{place}.tls: {error.filename or 'a certificate file'}: {error.strerror or error}; check the path"
    if error.errno is None or "SSL" in type(error).__name__:
        return f"{place}.tls: the certificate or key cannot be used: {error}"
    return (
        f"{place}.listen: cannot listen on {section.listen}: {error.strerror or error}; choose another port or address"
    )


# --- from the configuration to the settings of each part --------------------------------------------------------------


def _router_limits(config: Config) -> RouterLimits:
    section = config.router
    return RouterLimits(
        max_connections=section.max_connections,
        max_connections_per_address=section.max_connections_per_address,
        max_retained_count=section.max_retained_count,
        max_retained_bytes=section.max_retained_bytes,
        max_session_expiry=section.max_session_expiry_seconds,
        session_expiry_v3=section.session_expiry_v3_seconds,
        shared_strategy=section.shared_subscriptions_strategy,
    )


def _connection_limits(section: Connections) -> ConnectionLimits:
    return ConnectionLimits(
        connection_timeout=section.connection_timeout_ms / 1000,
        max_client_id_length=section.max_client_id_len,
        max_remaining_length=section.max_payload_size,
        max_inflight_count=section.max_inflight_count,
        max_inflight_bytes=section.max_inflight_size * 1024,
        max_queue_count=section.max_queue_count,
        max_queue_bytes=section.max_queue_bytes,
        max_outbox_bytes=section.max_outbox_bytes,
        slow_reader_timeout=section.slow_reader_timeout_ms / 1000,
        max_subscriptions=section.max_subscriptions,
        max_topic_levels=section.max_topic_levels,
        max_topic_length=section.max_topic_length,
        topic_alias_maximum=section.topic_alias_maximum,
        max_keep_alive=section.max_keep_alive,
        disconnect_denied_publisher=section.disconnect_denied_publisher,
    )


def _listener_settings(place: str, section: Listener, directory: Path) -> ListenerSettings:
    host, port, path = parse_listen(section.listen)
    tls = section.tls
    return ListenerSettings(
        name=place,
        host=host,
        port=port,
        path=str(directory / path) if path is not None else None,
        tls=None
        if tls is None
        else TlsSettings(
            certificate_path=str(directory / tls.certpath),
            key_path=str(directory / tls.keypath),
            ca_path=None if tls.capath is None else str(directory / tls.capath),
            require_certificate=tls.require_certificate,
            identity=None if tls.identity is None else Identity(tls.identity),
        ),
        websocket=WebSocketSettings(paths=section.paths, origins=section.origins, compression=section.compression)
        if isinstance(section, WebSocketListener)
        else None,
        limits=_connection_limits(section.connections),
        next_connection_delay=section.next_connection_delay_ms / 1000,
        throttle_delay=section.connections.throttle_delay_ms / 1000,
        max_pending=section.max_pending_connections,
    )
