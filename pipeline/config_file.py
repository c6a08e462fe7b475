"""Configuration as plain values: read from a file, changed by `key=value` overrides. Validated in `pipeline.config`."""

import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from edgeline.serve.errors import ConfigError


def read_values(file: Path) -> dict[str, Any]:
    """Read a TOML, JSON or YAML file, by its extension.

    Raises:
        ConfigError: the file cannot be read, or is not in the format of its extension.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    kind = {".toml": "TOML", ".json": "JSON"}.get(file.suffix, "YAML")
    parse: dict[str, Callable[[str], Any]] = {"TOML": tomllib.loads, "JSON": json.loads, "YAML": yaml.safe_load}
    try:
        values = parse[kind](text)
    except (ValueError, yaml.YAMLError, RecursionError) as error:
        raise ConfigError(f"{file} is not {kind}: {' '.join(str(error).split())}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{file} must contain keys and values, got {type(values).__name__}")
    return values


def apply_override(values: dict[str, Any], override: str) -> None:
    """Set one value in place.

    Args:
        values: of the whole configuration.
        override: `section.key=value`. The value is parsed as JSON if possible, and is text otherwise.

    Raises:
        ConfigError: the override has no key or no equals sign, or its section is not a section.
    """
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"override {override!r} must look like train.epochs=5")
    *sections, last = key.split(".")
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise ConfigError(f"override {key!r}: {section} is not a section")
    try:
        values[last] = json.loads(value)
    except ValueError:
        values[last] = value
