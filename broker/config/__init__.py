"""The configuration file: rumqttd's tree in YAML or TOML, checked as a whole, errors with file and line."""

from broker.config.errors import ConfigError, Problem
from broker.config.load import load_config
from broker.config.model import Config

__all__ = ["Config", "ConfigError", "Problem", "load_config"]
