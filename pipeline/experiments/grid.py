"""The cells of an experiment: every combination of some settings, each with some seeds, over the same split.

    cells = make_cells({"data": "photos"}, read_axes(["train.learning_rate=1e-3,3e-4", "model=mobilenet_v2,resnet18"]), seeds=3)

The first combination, of the first value of each setting, is what the others are compared with.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from itertools import product
from typing import Any

from edgeline.pipeline.config import PipelineConfig, load_config, parse_config
from edgeline.pipeline.config_file import apply_override
from edgeline.pipeline.runs.atomic_files import digest_of
from edgeline.serve.errors import ConfigError

Axes = Mapping[str, Sequence[str]]
"""The values of each setting, as text, by its dotted name."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One run of an experiment."""

    setting: str
    """The values of the settings that vary, in words: what all seeds of a combination share."""
    seed: int
    config: PipelineConfig

    @property
    def key(self) -> str:
        """A digest of the configuration."""
        return digest_of(self.config.model_dump(mode="json"))[:12]


def read_axes(overrides: Iterable[str]) -> dict[str, list[str]]:
    """Read settings with one or more values: `train.learning_rate=1e-3,3e-4`.

    A comma within brackets or quotes does not separate: `train.unfreeze=["layer3.1","layer4.1"]` is one value.

    Raises:
        ConfigError: one has no value, or is given twice.
    """
    axes: dict[str, list[str]] = {}
    for override in overrides:
        name, equals, text = override.partition("=")
        values = split_values(text)
        if not equals or not name or not all(values):
            raise ConfigError(f"setting {override!r} must look like train.learning_rate=1e-3,3e-4")
        if name in axes:
            raise ConfigError(f"setting {name} is given twice; give all its values at once, separated by commas")
        axes[name] = values
    return axes


def split_values(text: str) -> list[str]:
    """Split at the commas that are not within brackets or quotes."""
    values, depth, quoted = [""], 0, False
    for character in text:
        quoted ^= character == '"'
        depth += (character in "[{") - (character in "]}")
        if character == "," and not depth and not quoted:
            values.append("")
        else:
            values[-1] += character
    return [value.strip() for value in values]


def make_cells(base: Mapping[str, Any], axes: Axes, seeds: int) -> list[Cell]:
    """Return every combination of the settings' values with every seed.

    All seeds have the split of the first one, the configuration's own.

    Args:
        base: the configuration that the cells share, as plain values.
        axes: the values of each setting; one with a single value does not vary.
        seeds: how many for each combination: `seed`, `seed + 1`, ...

    Raises:
        ConfigError: a configuration is invalid; the message names the combination.
    """
    if "seed" in axes:
        raise ConfigError("seed cannot be varied with the other settings; use --seeds for the number of seeds")
    varied = [name for name, values in axes.items() if len(values) > 1]
    cells = []
    for values in product(*axes.values()):
        chosen = dict(zip(axes, values, strict=True))
        setting = ", ".join(f"{_short(name)} {chosen[name]}" for name in varied) or "as configured"
        settings = deepcopy(dict(base))
        for name, value in chosen.items():
            apply_override(settings, f"{name}={value}")
        try:
            first = parse_config(settings)
        except ConfigError as error:
            raise ConfigError(f"{setting}: {error}") from error
        cells += [Cell(setting, first.seed + offset, _with_seed(first, offset)) for offset in range(seeds)]
    if len({cell.key for cell in cells}) < len(cells):
        raise ConfigError("a value is given twice, so that two cells are the same; give each once")
    return cells


def base_values(config: PipelineConfig) -> dict[str, Any]:
    """A configuration as plain values, without what is at its default."""
    return config.model_dump(mode="json", exclude_defaults=True)


def command_of(cell: Cell) -> str:
    """The command that trains and publishes a cell's model."""
    from shlex import quote

    values = _differences(cell.config.model_dump(mode="json"), load_config().model_dump(mode="json"), "")
    options = [f"--data {quote(cell.config.data)}"]
    options += [f"--set {quote(f'{name}={_text(value)}')}" for name, value in values if name != "data"]
    return f"edgeline run {' '.join(options)}"


def _with_seed(config: PipelineConfig, offset: int) -> PipelineConfig:
    """The same configuration with another seed and the same split. The first one stays as it is: `edgeline run` makes it."""
    if offset == 0:
        return config
    split = config.seed if config.prepare.seed is None else config.prepare.seed
    prepare = config.prepare.model_copy(update={"seed": split})
    return config.model_copy(update={"seed": config.seed + offset, "prepare": prepare})


def _short(name: str) -> str:
    return name.rpartition(".")[2]


def _differences(values: Mapping[str, Any], defaults: Mapping[str, Any], prefix: str) -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for name, value in values.items():
        if isinstance(value, dict):
            found += _differences(value, defaults[name], f"{prefix}{name}.")
        elif value != defaults[name]:
            found.append((f"{prefix}{name}", value))
    return found


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
