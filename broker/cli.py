"""The command `ternmq`: run a broker, check its configuration, publish and subscribe."""

import asyncio
import contextlib
import gc
import json
import logging
import signal
import sys
import tomllib
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from broker import __version__
from broker.app import Broker, StartError
from broker.client import PublishRequest, Server, SubscribeRequest, publish, subscribe
from broker.config import Config, ConfigError, Problem, load_config
from broker.config.load import notes, parse_config
from broker.log import set_up_logging
from broker.systemd import notify

__all__ = ["main"]

_EXIT_START = 1
_EXIT_CONFIG = 2
#: Allocations between two looks of the garbage collector. The broker makes next to no cycles, and a look at a large
#: heap stops it for long: what is there after the start is never looked at again.
_GC_THRESHOLD = 100_000

app = typer.Typer(add_completion=False, no_args_is_help=False, pretty_exceptions_enable=False)

ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", "-c", help="Configuration file: YAML, or TOML by its name.", show_default=False),
]


def main() -> None:
    """Run the command line; the exit code is 0 after an orderly end, 1 for a start that failed, 2 for bad input."""
    shadow = _shadowed_plugins()
    if shadow is not None:
        _stop(
            f"the folder {shadow} hides ternmq's own package 'plugins': start the broker from another folder, "
            "or rename yours",
            _EXIT_START,
        )
    app(prog_name="ternmq")


def _shadowed_plugins() -> Path | None:
    """Return the folder `plugins` that Python would import in place of ours, or None."""
    import importlib.util

    found = importlib.util.find_spec("plugins")
    places = [Path(place) for place in (found.submodule_search_locations or ())] if found is not None else []
    ours = Path(__file__).resolve().parent.parent / "plugins"
    for place in places:
        if place.resolve() != ours:
            return place
        return None
    return None


def _stop(message: str, code: int) -> Any:
    print(f"ternmq: {message}", file=sys.stderr)
    raise SystemExit(code)


def _load(path: Path | None) -> Config:
    if path is None:
        return Config.built_in()
    try:
        return load_config(path)
    except ConfigError as error:
        for problem in error.problems:
            print(problem, file=sys.stderr)
        raise SystemExit(_EXIT_CONFIG) from None


def _version(wanted: bool) -> None:
    if wanted:
        print(f"ternmq {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def ternmq(
    context: typer.Context,
    config: ConfigOption = None,
    host: Annotated[
        str | None, typer.Option(help="Listen on this address instead of those in the configuration.")
    ] = None,
    verbose: Annotated[int, typer.Option("--verbose", "-v", count=True, help="Log more; up to -vvv.")] = 0,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Log warnings and errors only.")] = False,
    version: Annotated[bool, typer.Option("--version", "-V", callback=_version, is_eager=True)] = False,
) -> None:
    """An MQTT broker: 3.1, 3.1.1 and 5 over TCP, TLS and WebSocket. Without a command it runs."""
    context.obj = (config, host, verbose, quiet)
    if context.invoked_subcommand is None:
        _run(config, host, verbose, quiet)


@app.command()
def run(
    context: typer.Context,
    config: ConfigOption = None,
    host: Annotated[
        str | None, typer.Option(help="Listen on this address instead of those in the configuration.")
    ] = None,
) -> None:
    """Run the broker (the default)."""
    outer_config, outer_host, verbose, quiet = context.obj
    _run(config or outer_config, host or outer_host, verbose, quiet)


def _run(path: Path | None, host: str | None, verbose: int, quiet: bool) -> None:
    set_up_logging(logging.WARNING if quiet else logging.DEBUG if verbose else logging.INFO)
    if verbose > 1:
        logging.basicConfig(level=logging.DEBUG if verbose > 2 else logging.INFO)
    config = _load(path)
    if host is not None:
        config = _with_host(config, host)
    broker = Broker(config, directory=path.parent if path is not None else Path())
    try:
        with asyncio.Runner(debug=verbose > 2, loop_factory=_loop_factory()) as runner:
            runner.run(_serve(broker, path))
    except StartError as error:
        _stop(str(error), _EXIT_START)


def _loop_factory() -> Any:
    """Return what makes the loop: uvloop where there is one, else asyncio's own."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


def _with_host(config: Config, host: str) -> Config:
    data = config.model_dump(exclude_unset=True)
    shown = f"[{host}]" if ":" in host else host
    for section in ("v4", "v5", "ws"):
        for listener in data.get(section, {}).values():
            if not listener["listen"].startswith("unix:"):
                listener["listen"] = f"{shown}:{listener['listen'].rpartition(':')[2]}"
    return Config.model_validate(data)


async def _serve(broker: Broker, path: Path | None) -> None:
    log = logging.getLogger("broker")
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    # Before the ports open: whoever can connect can also ask for an orderly stop.
    for name in ("SIGTERM", "SIGINT"):
        # Windows has no signal handlers on the loop; Ctrl-C raises KeyboardInterrupt there.
        with contextlib.suppress(NotImplementedError):
            loop.add_signal_handler(getattr(signal, name), stopping.set)
    if hasattr(signal, "SIGHUP"):
        loop.add_signal_handler(signal.SIGHUP, broker.reload_certificates)
    await broker.start()
    log.info("ternmq %s with %s", __version__, path if path is not None else "built-in defaults (no --config)")
    for line in broker.describe():
        log.info("%s", line)
    if path is None:
        log.info("reachable from this machine only: --host 0.0.0.0 opens it")
    gc.collect()
    gc.freeze()
    gc.set_threshold(_GC_THRESHOLD, 50, 100)
    _notify("READY=1")
    try:
        await stopping.wait()
    finally:
        log.info("stopping")
        _notify("STOPPING=1")
        await broker.stop()
        log.info("stopped")


def _notify(state: str) -> None:
    try:
        notify(state)
    except OSError as error:
        logging.getLogger("broker").warning("cannot tell systemd %s: %s", state, error)


@app.command()
def check(
    context: typer.Context,
    file: Annotated[Path | None, typer.Argument(help="The file to check.", show_default=False)] = None,
    config: ConfigOption = None,
) -> None:
    """Check a configuration file; opens no port and changes nothing. Exit code 2 where something is wrong."""
    path = file or config or context.obj[0]
    if path is None:
        _stop("name the file to check: ternmq check broker.yaml", _EXIT_CONFIG)
    checked = _load(path)
    _check_files(checked, path)
    for line in notes(checked):
        print(f"note: {line}")
    print(f"{path}: fine, {len(checked.listeners())} listeners")


def _check_files(config: Config, path: Path) -> None:
    problems = []
    for place, listener in config.listeners().items():
        for key in ("certpath", "keypath", "capath"):
            name = getattr(listener.tls, key, None) if listener.tls is not None else None
            if name is not None and not (path.parent / name).is_file():
                problems.append(Problem(str(path), 0, f"{place}.tls.{key}", f"there is no file {path.parent / name}"))
    for problem in problems:
        print(problem, file=sys.stderr)
    if problems:
        raise SystemExit(_EXIT_CONFIG)


@app.command()
def schema() -> None:
    """Print the JSON Schema of the configuration file, for editors."""
    print(schema_text(), end="")


def schema_text() -> str:
    """Return the JSON Schema of the configuration file."""
    found = Config.model_json_schema()
    return json.dumps({"$schema": "https://json-schema.org/draft/2020-12/schema", **found}, indent=2) + "\n"


@app.command("generate-config")
def generate_config() -> None:
    """Print the built-in default configuration as YAML."""
    data = Config.built_in().model_dump(mode="json", exclude_none=True, exclude={"router": {"id"}})
    print("# ternmq's built-in defaults. 'ternmq schema' describes every key.")
    print(yaml.safe_dump(data, sort_keys=False), end="")


@app.command("import")
def import_(file: Annotated[Path, typer.Argument(help="A rumqttd.toml.")]) -> None:
    """Print rumqttd's TOML configuration as YAML for this broker."""
    try:
        text = file.read_text(encoding="utf-8")
        data = tomllib.loads(text)
        checked = parse_config(text, str(file) if file.suffix == ".toml" else f"{file}.toml")
    except OSError as error:
        _stop(f"{file}: cannot be read: {error.strerror}", _EXIT_CONFIG)
    except ConfigError as error:
        for problem in error.problems:
            print(problem, file=sys.stderr)
        raise SystemExit(_EXIT_CONFIG) from None
    print(f"# made from {file.name}")
    for line in notes(checked):
        print(f"# {line}")
    print(yaml.safe_dump(data, sort_keys=False), end="")


# --- clients ----------------------------------------------------------------------------------------------------------

HostOption = Annotated[str, typer.Option("--host", "-h", help="The broker's host.")]
PortOption = Annotated[int | None, typer.Option("--port", "-p", help="Its port; by default that of the scheme.")]
UserOption = Annotated[str | None, typer.Option("--user", "-u")]
PasswordOption = Annotated[str | None, typer.Option("--password", "-P", envvar="TERNMQ_PASSWORD", show_envvar=True)]
IdOption = Annotated[str, typer.Option("--id", "-i", help="Client identifier.")]
VersionOption = Annotated[str, typer.Option("--mqtt", "-V", help="Protocol version: 3.1, 3.1.1 or 5.")]
WsOption = Annotated[bool, typer.Option("--ws", help="Over WebSocket.")]
PathOption = Annotated[str, typer.Option("--path", help="WebSocket path.")]
CaOption = Annotated[str | None, typer.Option("--cafile", help="Use TLS, and trust the certificates in this file.")]


@app.command()
def pub(
    topic: Annotated[str, typer.Option("--topic", "-t")],
    message: Annotated[
        str | None, typer.Option("--message", "-m", help="The payload; without it, a line of input.")
    ] = None,
    qos: Annotated[int, typer.Option("--qos", "-q", min=0, max=2)] = 0,
    retain: Annotated[bool, typer.Option("--retain", "-r")] = False,
    host: HostOption = "localhost",
    port: PortOption = None,
    user: UserOption = None,
    password: PasswordOption = None,
    client_id: IdOption = "",
    version: VersionOption = "5",
    ws: WsOption = False,
    path: PathOption = "/mqtt",
    cafile: CaOption = None,
    expiry: Annotated[int | None, typer.Option(help="Message expiry interval in seconds.")] = None,
    content_type: Annotated[str | None, typer.Option(help="Content type.")] = None,
    response_topic: Annotated[str | None, typer.Option(help="Response topic.")] = None,
    correlation: Annotated[str | None, typer.Option(help="Correlation data.")] = None,
    user_property: Annotated[list[str] | None, typer.Option("--user-property", help="NAME=VALUE, repeatable.")] = None,
) -> None:
    """Publish a message."""
    pairs = [tuple(pair.partition("=")[::2]) for pair in user_property or []]
    properties = {
        "MessageExpiryInterval": expiry,
        "ContentType": content_type,
        "ResponseTopic": response_topic,
        "CorrelationData": correlation.encode() if correlation is not None else None,
        "UserProperty": pairs or None,
    }
    server = Server(host, port, user, password, client_id, version, ws, path, cafile)
    payload = message.encode() if message is not None else sys.stdin.buffer.readline().rstrip(b"\n")
    wanted = {name: value for name, value in properties.items() if value is not None}
    error = publish(server, PublishRequest(topic, payload, qos, retain, wanted))
    if error is not None:
        _stop(error, _EXIT_START)


@app.command()
def sub(
    topic: Annotated[list[str], typer.Option("--topic", "-t", help="Topic filter, repeatable.")],
    qos: Annotated[int, typer.Option("--qos", "-q", min=0, max=2)] = 0,
    count: Annotated[int, typer.Option("--count", "-C", help="Stop after this many messages; 0 never.")] = 0,
    show_topic: Annotated[bool, typer.Option("--verbose", "-v", help="Print topics and properties too.")] = False,
    host: HostOption = "localhost",
    port: PortOption = None,
    user: UserOption = None,
    password: PasswordOption = None,
    client_id: IdOption = "",
    version: VersionOption = "5",
    ws: WsOption = False,
    path: PathOption = "/mqtt",
    cafile: CaOption = None,
) -> None:
    """Subscribe, and print what comes."""
    server = Server(host, port, user, password, client_id, version, ws, path, cafile)
    error = subscribe(server, SubscribeRequest(topic, qos, count, show_topic))
    if error is not None:
        _stop(error, _EXIT_START)
