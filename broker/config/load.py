"""Reading a configuration file: YAML or TOML to a checked `Config`, with the line of everything that is wrong."""

import re
import tomllib
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from broker.config.errors import ConfigError, Problem
from broker.config.model import Config

__all__ = ["load_config", "notes", "parse_config"]

Place = tuple[str, ...]
_MAX_FILE = 4 * 1024 * 1024


def load_config(path: str | Path) -> Config:
    """Return the configuration in the file at *path*; a name that ends in `.toml` is TOML, anything else YAML.

    Raises ConfigError, which names every problem.
    """
    path = Path(path)
    try:
        if path.stat().st_size > _MAX_FILE:
            raise ConfigError([Problem(str(path), 0, "", f"the file has more than {_MAX_FILE} bytes")])
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        remedy = "check the path given with --config" if isinstance(error, FileNotFoundError) else "check its rights"
        raise ConfigError([Problem(str(path), 0, "", f"cannot be read: {error.strerror}; {remedy}")]) from error
    except UnicodeDecodeError as error:
        raise ConfigError([Problem(str(path), 0, "", f"is not UTF-8 text: {error.reason}")]) from error
    return parse_config(text, str(path))


def parse_config(text: str, file: str) -> Config:
    """Return the configuration in *text*, which came from *file*; raises ConfigError."""
    data, lines = _read_toml(text, file) if file.endswith(".toml") else _read_yaml(text, file)
    try:
        config = Config.model_validate(data)
    except ValidationError as error:
        raise ConfigError([_problem(details, data, lines, file) for details in error.errors()]) from error
    later = [
        Problem(file, lines.get((name,), 0), name, "is not supported yet; remove the section")
        for name in config.model_fields_set
        if _extra(Config, name).get("later") and getattr(config, name) is not None
    ]
    if later:
        raise ConfigError(later)
    return config


def notes(config: Config) -> list[str]:
    """Return a line for every key that is set and does nothing here."""
    return [f"{'.'.join(place)} has no effect here: {why}" for place, why in _without_effect(config, ())]


def _without_effect(model: BaseModel, place: Place) -> Iterator[tuple[Place, str]]:
    for name in model.model_fields_set:
        value = getattr(model, name)
        why = _extra(type(model), name).get("no_effect")
        if why is not None and value is not None:
            yield (*place, name), why
        if isinstance(value, BaseModel):
            yield from _without_effect(value, (*place, name))
        elif isinstance(value, dict):
            for key, item in value.items():
                if isinstance(item, BaseModel):
                    yield from _without_effect(item, (*place, name, key))


def _extra(model: type[BaseModel], name: str) -> dict[str, Any]:
    extra = model.model_fields[name].json_schema_extra
    return extra if isinstance(extra, dict) else {}


# --- files ------------------------------------------------------------------------------------------------------------


def _read_yaml(text: str, file: str) -> tuple[Any, dict[Place, int]]:
    try:
        loader = yaml.SafeLoader(text)
        try:
            node = loader.get_single_node()
            lines: dict[Place, int] = {}
            data = {} if node is None else _build(loader, node, (), lines, file, 0)
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark is not None else 0
        raise ConfigError([Problem(file, line, "", f"is not valid YAML: {error.problem}")]) from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError([Problem(file, 0, "", f"is not valid YAML: {error}")]) from error
    return data, lines


def _build(loader: Any, node: yaml.Node, place: Place, lines: dict[Place, int], file: str, depth: int) -> Any:
    """Return what *node* stands for, and note the line of every key below *place*."""
    line = node.start_mark.line + 1
    if depth > 32:
        raise ConfigError([Problem(file, line, ".".join(place), "is nested too deeply")])
    lines.setdefault(place, line)
    if isinstance(node, yaml.MappingNode):
        mapping: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = str(key_node.value)
            lines[(*place, key)] = key_node.start_mark.line + 1
            if key in mapping:
                first = "the key stands twice in its section; remove one"
                raise ConfigError([Problem(file, key_node.start_mark.line + 1, ".".join((*place, key)), first)])
            mapping[key] = _build(loader, value_node, (*place, key), lines, file, depth + 1)
        return mapping
    if isinstance(node, yaml.SequenceNode):
        return [
            _build(loader, item, (*place, str(index)), lines, file, depth + 1) for index, item in enumerate(node.value)
        ]
    return loader.construct_object(node)


def _read_toml(text: str, file: str) -> tuple[Any, dict[Place, int]]:
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        found = re.search(r"line (\d+)", str(error))
        line = int(found[1]) if found else text.count("\n") + 1
        raise ConfigError([Problem(file, line, "", f"is not valid TOML: {error}")]) from error
    lines: dict[Place, int] = {}
    section: Place = ()
    for number, row in enumerate(text.splitlines(), 1):
        row = row.strip()
        if row.startswith("["):
            section = _toml_key(row.strip("[]# \t"))
            for depth in range(1, len(section) + 1):
                lines.setdefault(section[:depth], number)
        elif "=" in row and not row.startswith("#"):
            lines[section + _toml_key(row.partition("=")[0])] = number
    return data, lines


def _toml_key(text: str) -> Place:
    return tuple(part.strip().strip("\"'") for part in text.split("]")[0].split("."))


# --- problems ---------------------------------------------------------------------------------------------------------


def _problem(details: ErrorDetails, data: Any, lines: dict[Place, int], file: str) -> Problem:
    place = tuple(str(part) for part in details["loc"])
    known = place
    while known and known not in lines:
        known = known[:-1]
    return Problem(file, lines.get(known, 0), ".".join(place), _message(details, place, data))


def _message(details: ErrorDetails, place: Place, data: Any) -> str:
    value = data
    for part in place:
        value = value.get(part) if isinstance(value, dict) else None
    # A value below `auth` is a password.
    shown = "the value" if "auth" in place else repr(value)
    context = details.get("ctx", {})
    match details["type"]:
        case "extra_forbidden":
            return _unknown_key(place)
        case "missing":
            return "is missing; add it"
        case "int_type" | "int_parsing" | "int_from_float":
            return f"{shown} is not a whole number"
        case "greater_than_equal":
            return f"{shown} is too small: {context['ge']} is the least"
        case "less_than_equal":
            return f"{shown} is too large: {context['le']} is the most"
        case "bool_type" | "bool_parsing":
            return f"{shown} is neither true nor false"
        case "string_type":
            return f"{shown} is not text; put it in quotes"
        case "literal_error":
            return f"{shown} is not one of {context['expected']}"
        case "model_type" | "model_attributes_type" | "dict_type":
            return f"{shown} is not a section with keys"
        case "value_error":
            return str(context["error"])
        case _:
            return f"{details['msg']} (got {shown})"


def _unknown_key(place: Place) -> str:
    model: type[BaseModel] | None = Config
    for part in place[:-1]:
        model = _below(model, part) if model is not None else None
    names = list(model.model_fields) if model is not None else []
    close = get_close_matches(place[-1], names, 1)
    if place[-1] == "login_credentials":
        return "is a key of rumqttd before 0.12; write auth: {USER: PASSWORD}"
    if close:
        return f"there is no such key; did you mean {close[0]}?"
    return f"there is no such key; the keys here are {', '.join(names)}" if names else "there is no such key"


def _below(model: type[BaseModel], part: str) -> type[BaseModel] | None:
    field = model.model_fields.get(part)
    if field is None:
        # The name of a listener, between its section and its keys.
        return model
    for found in (field.annotation, *get_args(field.annotation)):
        if isinstance(found, type) and issubclass(found, BaseModel):
            return found
    return None
