"""The configuration: what is accepted, and how every mistake is named."""

from itertools import pairwise
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from broker.cli import schema_text
from broker.config import Config, ConfigError, load_config
from broker.config.load import notes, parse_config
from broker.config.model import parse_listen
from tests.harness import examples
from tools import generate

ROOT = Path(__file__).parent.parent.parent

GOOD = """\
router:
  max_connections: 10
v4:
  1:
    name: one
    listen: 127.0.0.1:1883
    connections:
      max_payload_size: 20480
"""


def problems(text: str, file: str = "broker.yaml") -> list[str]:
    """Return what is wrong with a file."""
    with pytest.raises(ConfigError) as caught:
        parse_config(text, file)
    return [str(problem) for problem in caught.value.problems]


def test_shipped_file_has_the_seeds_values() -> None:
    """broker.yaml is checked, carries the values it has to, and needs no remark but rumqttd's own keys."""
    config = load_config(ROOT / "broker.yaml")
    ws, v4 = config.ws["1"], config.v4["1"]
    expected = {
        "connection_timeout_ms": 60_000,
        "max_client_id_len": 256,
        "throttle_delay_ms": 0,
        "max_payload_size": 20_480,
        "max_inflight_count": 500,
        "max_inflight_size": 1024,
    }

    assert (ws.listen, v4.listen) == ("0.0.0.0:8885", "0.0.0.0:8884")
    for listener in (ws, v4):
        assert listener.next_connection_delay_ms == 1
        assert listener.connections.model_dump(include=set(expected)) == expected
    assert all(line.startswith(("router.max_", "id ")) for line in notes(config))


def test_shipped_file_comments_every_key() -> None:
    """Each key of broker.yaml is explained by a comment above it, in its first section at least."""
    lines = (ROOT / "broker.yaml").read_text().splitlines()
    assert "$schema=docs/broker.schema.json" in lines[0]
    explained = set()
    for above, line in pairwise(lines):
        key = line.strip().partition(":")[0]
        if line.strip() and not line.strip().startswith("#") and above.strip().startswith("#"):
            explained.add(key)
    keys = {line.strip().partition(":")[0] for line in lines if line.strip() and not line.strip().startswith("#")}

    assert keys - explained <= {"1", "max_segment_size", "max_segment_count"}


def test_yaml_and_toml_are_the_same_tree() -> None:
    """The same keys in TOML give the same configuration."""
    toml = (
        '[router]\nmax_connections = 10\n[v4.1]\nname = "one"\nlisten = "127.0.0.1:1883"\n'
        "[v4.1.connections]\nmax_payload_size = 20480\n"
    )

    assert parse_config(GOOD, "broker.yaml") == parse_config(toml, "rumqttd.toml")


def test_rumqttds_shapes_are_accepted() -> None:
    """Quoted keys, numbers in quotes, and keys that do nothing here, which are named."""
    text = (
        "id: 0\nrouter:\n  id: 0\n  max_connections: '10'\n  max_segment_size: 104857600\n"
        'v4:\n  "1":\n    listen: 127.0.0.1:1\n    connections:\n      dynamic_filters: true\n'
    )
    config = parse_config(text, "b.yaml")

    assert config.router.max_connections == 10
    assert {line.split(" has no effect")[0] for line in notes(config)} == {
        "id",
        "router.id",
        "router.max_segment_size",
        "v4.1.connections.dynamic_filters",
    }


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("max_payload_size: 20480", "max_payload_sise: 20480",
         "broker.yaml:8: v4.1.connections.max_payload_sise: there is no such key; did you mean max_payload_size?"),
        ("max_payload_size: 20480", "zzz: 1",
         "broker.yaml:8: v4.1.connections.zzz: there is no such key; the keys here are"),
        ("max_payload_size: 20480", "max_payload_size: big",
         "broker.yaml:8: v4.1.connections.max_payload_size: 'big' is not a whole number"),
        ("max_payload_size: 20480", "max_payload_size: 1.5",
         "broker.yaml:8: v4.1.connections.max_payload_size: 1.5 is not a whole number"),
        ("max_payload_size: 20480", "max_payload_size: 1",
         "broker.yaml:8: v4.1.connections.max_payload_size: 1 is too small: 16 is the least"),
        ("max_payload_size: 20480", "max_inflight_count: 70000",
         "broker.yaml:8: v4.1.connections.max_inflight_count: 70000 is too large: 65535 is the most"),
        ("max_payload_size: 20480", "login_credentials: []", "write auth: {USER: PASSWORD}"),
        ("listen: 127.0.0.1:1883", "port: 1", "broker.yaml:4: v4.1.listen: is missing; add it"),
        ("127.0.0.1:1883", "127.0.0.1", "broker.yaml:6: v4.1.listen: '127.0.0.1' is not HOST:PORT"),
        ("127.0.0.1:1883", "127.0.0.1:99999", "broker.yaml:6: v4.1.listen: '127.0.0.1:99999' is not HOST:PORT"),
        ("127.0.0.1:1883", "'::1:1883'", "put the IPv6 address in brackets: [::1]:1883"),
        ("router:", "routr:", "broker.yaml:1: routr: there is no such key; did you mean router?"),
        ("router:", "v5: 3\nrouter:", "broker.yaml:1: v5: 3 is not a section with keys"),
        ("max_connections: 10", "shared_subscriptions_strategy: best",
         "router.shared_subscriptions_strategy: 'best' is not one of 'roundrobin', 'random' or 'sticky'"),
        ("max_connections: 10", "initialized_filters: ['a/#/b']", "'a/#/b': '#' must be the whole last level"),
        ("router:", "plugins: {}\nrouter:", "broker.yaml:1: plugins: is not supported yet; remove the section"),
        ("router:", "console: {listen: 'x:1'}\nrouter:", "broker.yaml:1: console: is not supported yet"),
        ("    name: one", "    tls: {certpath: a, keypath: b, identity: cn}", "identity needs capath"),
        ("    name: one", "    name: one\n    name: two", "broker.yaml:6: v4.1.name: the key stands twice"),
    ],
)  # fmt: skip
def test_every_mistake_is_named(old: str, new: str, expected: str) -> None:
    """File, line, key, value and remedy."""
    assert old in GOOD

    assert any(expected in line for line in problems(GOOD.replace(old, new))), problems(GOOD.replace(old, new))


def test_all_mistakes_at_once() -> None:
    """Every problem is listed, in the order of the file."""
    text = GOOD.replace("max_connections: 10", "max_connections: x").replace("20480", "-1").replace("name:", "nam:")

    lines = problems(text)

    assert [line.split(":")[1] for line in lines] == ["2", "5", "8"]


@pytest.mark.parametrize(
    ("text", "file", "expected"),
    [
        ("a: [", "b.yaml", "b.yaml:1: is not valid YAML"),
        ("a:\n\t- b", "b.yaml", "b.yaml:2: is not valid YAML"),
        ("a = ", "b.toml", "b.toml:1: is not valid TOML"),
        ("- a", "b.yaml", "is not a section with keys"),
        ("", "b.yaml", "there is no listener"),
        ("{}", "b.yaml", "there is no listener"),
        ("[" * 50 + "]" * 50, "b.yaml", "nested too deeply"),
        (
            '[v4.1]\nlisten = "x:1"\n[v4.1.connections]\nmax_payload_size = "x"\n',
            "b.toml",
            "b.toml:4: v4.1.connections",
        ),
    ],
)
def test_files_that_are_no_configuration(text: str, file: str, expected: str) -> None:
    """Broken syntax is named with its line; so is a file without a listener."""
    assert any(expected in line for line in problems(text, file)), problems(text, file)


def test_password_is_not_shown() -> None:
    """A mistake below `auth` does not print what may be a password."""
    (line,) = problems(GOOD.replace("max_payload_size: 20480", "auth: {user: [hunter2]}"))

    assert "hunter2" not in line
    assert "v4.1.connections.auth.user" in line
    config = parse_config(GOOD.replace("max_payload_size: 20480", "auth: {user: hunter2}"), "b.yaml")
    assert "hunter2" not in repr(config)


@pytest.mark.parametrize(
    ("name", "expected"), [("nothing.yaml", "check the path"), ("", "check its rights"), ("binary.yaml", "not UTF-8")]
)
def test_unreadable_files(tmp_path: Path, name: str, expected: str) -> None:
    """A missing file, a folder and a binary file are named."""
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=expected):
        load_config(tmp_path / name)


def test_huge_file_is_refused(tmp_path: Path) -> None:
    """A file that cannot be a configuration is not read."""
    path = tmp_path / "big.yaml"
    path.write_bytes(b"#" * 5_000_000)
    with pytest.raises(ConfigError, match="more than"):
        load_config(path)


@settings(max_examples=examples(200))
@given(st.text(max_size=60), st.sampled_from(["b.yaml", "b.toml"]))
def test_any_text_is_a_configuration_or_an_error(text: str, file: str) -> None:
    """No text makes the loader fail in another way."""
    try:
        parse_config(text, file)
    except ConfigError as error:
        assert error.problems  # noqa: PT017  # both outcomes are fine


@pytest.mark.parametrize(
    ("listen", "expected"),
    [
        ("0.0.0.0:1", ("0.0.0.0", 1, None)),
        ("localhost:0", ("localhost", 0, None)),
        ("[::]:1883", ("::", 1883, None)),
        ("unix:/run/x", (None, 0, "/run/x")),
    ],
)
def test_listen(listen: str, expected: tuple[str | None, int, str | None]) -> None:
    """Addresses, names and paths."""
    assert parse_listen(listen) == expected


def test_built_in_defaults_are_rumqttds_ports_on_this_machine() -> None:
    """1883, 1884 and 8083, and no address that others can reach."""
    listens = [listener.listen for listener in Config.built_in().listeners().values()]

    assert listens == ["localhost:1883", "localhost:1884", "localhost:8083"]


def test_generated_files_are_up_to_date() -> None:
    """The schema, the reference and the conformance table are what the code says; `make docs` writes them."""
    assert generate.main(["--check"]) == 0


def test_every_statement_has_a_test_and_every_tag_a_statement() -> None:
    """The list of normative statements and the tags agree."""
    known = {f"{version}:{number}" for version, rows in generate.statements().items() for number in rows}

    assert set(generate.tagged_tests()) == known


def test_schema_agrees_with_the_loader() -> None:
    """The shipped file is valid by the schema, and the schema is one."""
    schema = schema_text()
    parsed = yaml.safe_load(schema)
    Draft202012Validator.check_schema(parsed)
    data = yaml.load((ROOT / "broker.yaml").read_text(), yaml.BaseLoader)  # keys and values as text

    errors = [error.message for error in Draft202012Validator(parsed).iter_errors(_typed(data))]

    assert errors == []


def _typed(value: object) -> object:
    """Return YAML's text with numbers as numbers, keys as text."""
    if isinstance(value, dict):
        return {key: _typed(item) for key, item in value.items()}
    return int(value) if isinstance(value, str) and value.isdigit() else value
